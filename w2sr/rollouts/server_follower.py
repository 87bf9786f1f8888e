"""A vLLM server that follows a policy: its weights through a folder that both see, and a stamp that it loses with them.

The routes are those that vLLM has with VLLM_SERVER_DEV_MODE=1. They let whoever reaches the server run any method of
it, so such a server belongs into a network of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.chat import Chat
from w2sr.policy import Policy
from w2sr.ranks import from_first_rank, rank
from w2sr.rollouts.freshness import check_copy, copy_tolerance
from w2sr.rollouts.patience import FailedTry
from w2sr.rollouts.weight_sync import written
from w2sr.rollouts.wire import check_reset, read_stamp
from w2sr.types import Completion, SampleRequest, Sampling

if TYPE_CHECKING:
    from w2sr.rollouts.openai_server import ServerGenerator


class ServerFollower:
    """A `ServerGenerator` whose weights are the policy's as they were at the last update.

    Rank 0 brings the weights for all ranks, which gather them where they are sharded. Every rank asks for the stamp
    before and after its streams.

    Args:
        generator: the server's completions.
        policy: the model that is trained.
        chat: its tokenizer.
        folder: where rank 0 writes weights and the server reads them.
        run: the first part of this run's stamps.
    """

    def __init__(self, generator: ServerGenerator, policy: Policy, chat: Chat, folder: Path, run: str) -> None:
        self.generator, self.policy, self.chat, self.folder, self.run = generator, policy, chat, folder, run

    @property
    def policy_version(self) -> int:
        """See `PolicyGenerator.policy_version`."""
        return self.generator.policy_version

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """See `Generator.stream`.

        Raises:
            ValueError: prompt and completion exceed the model's positions, or the server refuses a request.
            ConnectionError: nothing was answered for `give_up_after_s`.
            RuntimeError: the server's weights are not those of the last update, or were changed meanwhile.
        """
        assert self.policy_version >= 0, "update comes before sampling"
        self._check_stamp()
        yield from self.generator.stream(requests, sampling)
        self._check_stamp()

    def update(self, version: int) -> None:
        """See `PolicyGenerator.update`.

        Raises:
            ValueError: the server has no such routes, or cannot load the weights.
            ConnectionError: nothing was answered for `give_up_after_s`.
            RuntimeError: the server's log-probabilities are not the policy's afterwards.
        """
        self.generator.policy_version = version
        # all ranks are here, and none still samples from the old weights, when the new ones are written
        with written(self.policy, self.folder if rank() == 0 else None):
            from_first_rank(lambda: self.generator.persist(self._load))
        check_copy(self, self.policy, self.chat, copy_tolerance(self.policy, None), one_for_all=True)

    def rest(self) -> None:
        """See `PolicyGenerator.rest`. A server has devices of its own."""

    def check_routes(self) -> None:
        """Raises a ValueError where the server cannot be given weights."""
        self.generator.persist(lambda: self._get("/weight_info"))

    async def _load(self) -> None:
        """All of it in one try: a server that is started anew half-way has to load the weights again."""
        loading = f"{self._stamp()} is loading"
        await self._post("/update_weight_version", {"new_version": loading})
        rpc = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        await self._post("/collective_rpc", rpc)
        # keys and values of old weights would else serve prompts that begin alike
        check_reset(await self._post("/reset_prefix_cache", {}))
        if read_stamp(await self._get("/weight_info")) != loading:
            raise FailedTry("the server was started anew while it loaded weights")
        await self._post("/update_weight_version", {"new_version": self._stamp()})

    def _stamp(self) -> str:
        return f"{self.run}/{self.policy_version}"

    def _check_stamp(self) -> None:
        found = read_stamp(self.generator.persist(lambda: self._get("/weight_info")))
        if found != self._stamp():
            raise RuntimeError(
                f"The server at {self.generator.engine.base_url} holds the weights {found!r}, not {self._stamp()!r} of "
                "the last update: it was started anew since then, or another run gave it weights. Completions of those "
                "are not the policy's. Go on from the last checkpoint, with a server that no other run uses."
            )

    async def _get(self, path: str) -> str:
        return await self._reply(self.generator.client.get(self._url(path), cast_to=str))

    async def _post(self, path: str, body: dict[str, Any]) -> str:
        return await self._reply(self.generator.client.post(self._url(path), body=body, cast_to=str))

    async def _reply(self, call: Any) -> str:
        url = self.generator.root
        letters = {
            404: f"The server at {url} cannot be given weights. Start vLLM's server with the environment variable "
            "VLLM_SERVER_DEV_MODE=1, in a network of your own: it lets callers run any method.",
            500: f"The server at {url} did not take the weights in {self.folder}; its own log says why. It must see "
            "this folder under the same path (engine.init_args.sync_folder) and run the policy's model.",
        }
        return await self.generator.reply(call, letters)

    def _url(self, path: str) -> str:
        return f"{self.generator.root}{path}"
