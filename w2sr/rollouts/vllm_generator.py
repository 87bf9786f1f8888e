"""The completions of one `vllm.LLM`, of a model that stays as it is or of a policy that is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from w2sr.chat import Chat
from w2sr.policy import Policy
from w2sr.ranks import together
from w2sr.rollouts.freshness import check_copy
from w2sr.rollouts.protocol import check_positions
from w2sr.rollouts.sampling import request_seed
from w2sr.rollouts.weight_sync import new_run, written
from w2sr.types import Completion, SampleRequest, Sampling

LOOK_EVERY_S = 1.0
"""How often somebody who waits for vLLM looks whether its process still lives."""


class VLLMGenerator:
    """Completions of one `vllm.LLM`. One stream at a time.

    `LLM.generate` returns only when all requests are finished, so we call what it is made of: `LLMEngine.add_request`
    and `LLMEngine.step`. Beside chunks of `LLM.generate` this yields each completion when it is finished, and no
    batch waits for its slowest member.
    """

    def __init__(self, llm: Any, chat: Chat, policy_version: int = 0, *, follows: bool = False) -> None:
        self.engine, self.renderer = llm.llm_engine, llm.renderer
        self.max_model_len: int = llm.model_config.max_model_len
        self.stop_token_ids = list(chat.stop_token_ids)
        self.decode = chat.decode
        self.policy_version = policy_version
        self.follows = follows
        self.call: Callable[[Callable[[], Any]], Any] = Watched(llm) if follows else _at_once
        self._num_asked = 0

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """See `Generator.stream`. Raises ValueError where prompt and completion exceed the model's positions."""
        if not requests:
            return
        check_positions(requests, sampling, self.max_model_len)
        waiting: dict[str, SampleRequest] = {}
        prompts = self.renderer.render_cmpl([{"prompt_token_ids": list(request.prompt_ids)} for request in requests])
        try:
            for request, prompt in zip(requests, prompts, strict=True):
                name = str(self._num_asked)
                self._num_asked += 1
                self.engine.add_request(name, prompt, self._params(request, sampling))
                waiting[name] = request
            while waiting:
                for output in self.call(self.engine.step):
                    if output.finished and output.request_id in waiting:
                        yield self._completion(waiting.pop(output.request_id), output.outputs[0])
        finally:
            self.engine.abort_request(list(waiting))

    def _params(self, request: SampleRequest, sampling: Sampling) -> Any:
        """Sampling parameters of one request. Only our stop tokens end it: `ignore_eos` turns vLLM's own off."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens - request.num_done,
            seed=request_seed(sampling, request, self.policy_version),
            stop_token_ids=self.stop_token_ids,
            ignore_eos=True,
            stop=list(sampling.stop_text),
            include_stop_str_in_output=True,
            detokenize=bool(sampling.stop_text),
            skip_special_tokens=False,  # a stop text may be one
            # 0: of the sampled token alone. Behind top_p they would be those of what it keeps: no request for them
            logprobs=0 if self.follows and sampling.top_p == 1 else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, request: SampleRequest, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(
                f"vLLM ended sample {request.sample_index} of problem '{request.problem_id}' with "
                f"{output.finish_reason!r} after {len(output.token_ids):,} tokens, not with 'stop' or 'length'."
            )
        token_ids = tuple(output.token_ids)
        text = self.decode(token_ids[:-1] if token_ids[-1] in self.stop_token_ids else token_ids)
        completion = Completion(
            request.problem_id,
            request.sample_index,
            token_ids,
            text,
            output.finish_reason,
            policy_version=self.policy_version,
        )
        if output.logprobs is None:
            return completion
        logprobs = (step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True))
        return replace(completion, logprobs=tuple(logprobs))


def _at_once(call: Callable[[], Any]) -> Any:
    return call()


class Watched:
    """Calls vLLM in a thread, and gives up where its process has died: vLLM itself would wait for ever."""

    def __init__(self, llm: Any) -> None:
        self._resources = llm.llm_engine.engine_core.resources
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        # a daemon: a call that never returns must not keep the run from ending
        threading.Thread(target=self._work, name="w2sr-vllm", daemon=True).start()

    def __call__(self, call: Callable[[], Any]) -> Any:
        """What the call returns. Raises vLLM's EngineDeadError where it never will."""
        reply: Future[Any] = Future()
        self._calls.put((call, reply))
        while not wait([reply], timeout=LOOK_EVERY_S).done:
            if self._resources.engine_dead:
                from vllm.v1.engine.exceptions import EngineDeadError

                raise EngineDeadError
        return reply.result()

    def _work(self) -> None:
        while True:
            call, reply = self._calls.get()
            try:
                reply.set_result(call())
            except BaseException as error:
                reply.set_exception(error)


class VLLMFollower:
    """A `VLLMGenerator` whose weights are the policy's as they were at the last update.

    `folder` is where they come from; this rank puts them there for all of its machine if it `writes`.
    """

    def __init__(
        self,
        llm: Any,
        generator: VLLMGenerator,
        policy: Policy,
        chat: Chat,
        folder: Path,
        *,
        writes: bool,
        sleeps: bool,
        tolerance: float,
    ) -> None:
        self.llm, self.generator, self.policy, self.chat, self.folder = llm, generator, policy, chat, folder
        self.writes, self.sleeps, self.tolerance = writes, sleeps, tolerance
        self._run, self._rests = new_run(), False

    @property
    def policy_version(self) -> int:
        """See `PolicyGenerator.policy_version`."""
        return self.generator.policy_version

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """See `Generator.stream`.

        Raises:
            ValueError: prompt and completion exceed the model's positions.
            RuntimeError: vLLM's process has ended, or its weights are not those of the last update.
        """
        assert self.policy_version >= 0 and not self._rests, "update comes before sampling, and after a rest"
        with _while_alive():
            self._check_stamp()
            yield from self.generator.stream(requests, sampling)
            self._check_stamp()

    def update(self, version: int) -> None:
        """See `PolicyGenerator.update`.

        Raises:
            RuntimeError: vLLM's process has ended, or its log-probabilities are not the policy's afterwards.
        """
        with written(self.policy, self.folder if self.writes else None):
            together(self._bring)
        self.generator.policy_version = version
        with _while_alive():
            self.generator.call(lambda: self.llm.update_weight_version(self._stamp()))
        check_copy(self, self.policy, self.chat, self.tolerance)

    def rest(self) -> None:
        """See `PolicyGenerator.rest`: on a GPU vLLM drops weights and caches; on a CPU it cannot."""
        if self.sleeps and not self._rests:
            with _while_alive():
                self.generator.call(lambda: self.llm.sleep(level=2))
            self._rests = True

    def _bring(self) -> None:
        with _while_alive():
            self.generator.call(self._load)

    def _load(self) -> None:
        if self._rests:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self.folder)})
        if self._rests:
            self.llm.wake_up(tags=["kv_cache"])
            self._rests = False
        # keys and values of old weights would else serve prompts that begin alike
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache over an update, so it still has requests of a stream.")

    def _stamp(self) -> str:
        return f"{self._run}/{self.policy_version}"

    def _check_stamp(self) -> None:
        found = self.generator.call(self.llm.get_weight_version)
        if found != self._stamp():
            raise RuntimeError(
                f"vLLM holds the weights {found!r}, not {self._stamp()!r} of the last update. Something else than this "
                "run changed them; go on from the last checkpoint."
            )


@contextmanager
def _while_alive() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise RuntimeError(
            "vLLM's process has ended; its own messages stand above. If memory ran out, lower gpu_memory_utilization "
            "or engine_args.max_num_seqs; then go on from the last checkpoint."
        ) from error
