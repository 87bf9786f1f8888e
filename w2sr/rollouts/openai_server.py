"""An OpenAI-compatible server as an engine: many requests at once, patience with failures, completions as they come."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch

from w2sr.chat import Chat
from w2sr.policy import Policy
from w2sr.ranks import from_first_rank
from w2sr.rollouts.patience import FailedTry, GaveUp, Patience, retry_after_s
from w2sr.rollouts.protocol import Generator, PolicyGenerator, RolloutEngine, check_positions
from w2sr.rollouts.server_follower import ServerFollower
from w2sr.rollouts.weight_sync import new_run, sync_folder
from w2sr.rollouts.wire import PATHS, Api, check_same_ids, choose_model, quote, read_models, read_reply, request_body
from w2sr.tokenizer import PROBE_TEXT
from w2sr.types import Completion, SampleRequest, Sampling

_T = TypeVar("_T")

RETRIED_STATUS = frozenset({408, 409, 425, 429})
"""Statuses under 500 that a later try may mend (time-out, conflict, too early, too many requests)."""

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class OpenAIServer(RolloutEngine):
    """vLLM's server, or any other server with OpenAI's interface, such as one that `vllm serve MODEL` starts.

    Every request waits with exponential back-off and tries again where the server is gone, busy (429), broken (5xx),
    too slow, or replies nonsense. The run stops when nothing was answered for `give_up_after_s`; what was received
    until then was handed on already.

    With `api: tokens` prompts are our token ids, and the completion's token ids are those that the model sampled. With
    `completions` and `chat` a completion's token ids are our tokenizer's reading of its text (`retokenized`); text that
    spells control tokens is read by the server as it likes; reasoning that a chat server splits off comes back inside
    `<think>`; and what the server adds to sampling (top_k, penalties) is the server's.

    Attributes:
        base_url: where it listens, usually with `/v1` at the end.
        model: the model's name there; None takes what the server lists.
        api: `tokens` for vLLM; `completions` or `chat` for servers that know no token ids.
        api_key_env: the *name* of the environment variable that holds the key; None where the server wants none.
        concurrency: requests that are open at the same time, on each rank.
        timeout_s: seconds that one completion may take.
        backoff_s: the first wait after a failed try; it doubles, with jitter, up to `backoff_limit_s`.
        backoff_limit_s: the longest wait between tries, where the server's Retry-After does not ask for more.
        give_up_after_s: seconds without any answer after which the run stops.
        extra_body: more fields of every request, such as `{top_k: 20}`.
        sync_folder: where a policy's weights are written for a server that follows it: a folder that both see under the
            same path. None takes memory (/dev/shm), for a server on this machine.
    """

    base_url: str
    model: str | None = None
    api: Api = "tokens"
    api_key_env: str | None = None
    concurrency: int = 64
    timeout_s: float = 600.0
    backoff_s: float = 0.5
    backoff_limit_s: float = 30.0
    give_up_after_s: float = 600.0
    extra_body: dict[str, Any] | None = None
    sync_folder: str | None = None

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url={self.base_url!r} is no URL. Give it with http:// or https://, and /v1.")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise ValueError(
                "api_key_env must be the name of an environment variable, such as OPENAI_API_KEY; what is there cannot "
                "be a name. Put the key itself into that variable: configurations are saved with every run."
            )
        if not 1 <= self.concurrency <= 1000:  # the client's pool of connections ends there
            raise ValueError(f"concurrency={self.concurrency} must be between 1 and 1000.")
        for name in ("timeout_s", "backoff_s", "backoff_limit_s", "give_up_after_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0.")

    @contextmanager
    def open(self, model: str, chat: Chat, device: torch.device) -> Iterator[Generator]:
        """See `RolloutEngine.open`. `model` gives the tokenizer; the weights are the server's.

        Raises:
            ValueError: the `openai` client is not installed, the key is not set, or the server has another model.
            ConnectionError: the server did not answer for `give_up_after_s`.
        """
        with self._connected(model, chat) as generator:
            yield generator

    @contextmanager
    def follow(self, policy: Policy, chat: Chat, device: torch.device) -> Iterator[PolicyGenerator]:
        """See `RolloutEngine.follow`. vLLM's server only, started with VLLM_SERVER_DEV_MODE=1 and
        `--logprobs-mode processed_logprobs`. Its model may hold any weights of the policy's architecture.

        Raises:
            ValueError: `api` is not tokens, the server takes no weights, or as in `open`.
            ConnectionError: the server did not answer for `give_up_after_s`.
        """
        if self.api != "tokens":
            raise ValueError(
                f"api={self.api} returns neither the token ids that were sampled nor their log-probabilities, so no "
                "policy can be trained on it. Set engine.init_args.api to tokens, with a vLLM server."
            )
        if self.sync_folder is None and urlsplit(self.base_url).hostname not in LOCAL_HOSTS:
            raise ValueError(
                f"The server at {self.base_url} is on another machine, so it cannot read this one's memory. Set "
                "engine.init_args.sync_folder to a folder that both see under the same path."
            )
        with self._connected(chat.name, chat, follows=True) as generator, ExitStack() as stack:
            folder = from_first_rank(lambda: stack.enter_context(sync_folder(policy, self.sync_folder)))
            follower = ServerFollower(generator, policy, chat, folder, from_first_rank(new_run))
            follower.check_routes()
            yield follower

    @contextmanager
    def _connected(self, model: str, chat: Chat, *, follows: bool = False) -> Iterator[ServerGenerator]:
        self._check_thoughts(chat)
        client = _import_openai().AsyncOpenAI(
            base_url=self.base_url, api_key=self._api_key(), max_retries=0, timeout=self.timeout_s
        )
        with _event_loop() as loop:
            try:
                generator = ServerGenerator(self, client, loop, chat, -1 if follows else 0, follows=follows)
                generator.connect(model)
                yield generator
            finally:
                asyncio.run_coroutine_threadsafe(client.close(), loop).result()

    def _check_thoughts(self, chat: Chat) -> None:
        """Raises a ValueError where the server's text would lack `<think>`: a thought would be read as the answer."""
        if self.api != "tokens" and chat.thoughts_are_special and (self.extra_body or {}).get("skip_special_tokens", 1):
            raise ValueError(
                f"api={self.api}: <think> is a special token of {chat.name!r}, and servers leave special tokens out of "
                "their text, so a thought would be read as the answer. Set engine.init_args.api=tokens (vLLM), or "
                "engine.init_args.extra_body={skip_special_tokens: false} if the server knows that field."
            )

    def _api_key(self) -> str:
        if self.api_key_env is None:
            return "none"  # else the client would send what OPENAI_API_KEY holds, to whatever server this is
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ValueError(f"api_key_env={self.api_key_env}: this environment variable is not set. Export the key.")
        return key


class ServerGenerator:
    """Completions of one server. Requests run in an event loop of a thread, also while the consumer is busy."""

    def __init__(
        self,
        engine: OpenAIServer,
        client: Any,
        loop: asyncio.AbstractEventLoop,
        chat: Chat,
        policy_version: int = 0,
        *,
        follows: bool = False,
    ) -> None:
        self.engine, self.client, self.loop, self.chat = engine, client, loop, chat
        self.root = re.sub(r"/v1/?$", "", engine.base_url)
        self.policy_version, self.follows = policy_version, follows
        self.patience = Patience(engine.backoff_s, engine.backoff_limit_s, engine.give_up_after_s)
        self.model = engine.model or ""
        self.max_model_len: int | None = None

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """See `Generator.stream`.

        Raises:
            ValueError: prompt and completion exceed the model's positions, or the server refuses a request.
            ConnectionError: nothing was answered for `give_up_after_s`. All that was received is yielded before.
        """
        if not requests:
            return
        check_positions(requests, sampling, self.max_model_len)
        inbox: SimpleQueue[Completion | None] = SimpleQueue()
        run = self._start(self._answer_all(requests, sampling, inbox))
        run.add_done_callback(lambda _: inbox.put(None))
        num_received = 0
        try:
            while (completion := inbox.get()) is not None:
                num_received += 1
                yield completion
            run.result()
        except GaveUp as failure:
            raise ConnectionError(
                f"The server at {self.engine.base_url} answered nothing for give_up_after_s="
                f"{self.engine.give_up_after_s:g} s: {failure}. {num_received:,} completions of this call were "
                f"received, {len(requests) - num_received:,} are open. Start the server again, then the same command."
            ) from failure
        finally:
            run.cancel()

    async def _answer_all(
        self, requests: Sequence[SampleRequest], sampling: Sampling, inbox: SimpleQueue[Completion | None]
    ) -> None:
        waiting = iter(requests)

        async def worker() -> None:
            for request in waiting:  # one iterator for all workers
                inbox.put(await self.patience.persist(lambda request=request: self._ask(request, sampling)))  # type: ignore[misc]

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.engine.concurrency, len(requests))):
                    group.create_task(worker())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None  # the first; the group cancelled the others

    async def _ask(self, request: SampleRequest, sampling: Sampling) -> Completion:
        engine = self.engine
        body = request_body(
            engine.api, self.model, request, sampling, self.chat, self.policy_version, follows=self.follows
        )
        more = engine.extra_body or {}
        if twice := sorted(body.keys() & more.keys()):
            raise ValueError(f"extra_body sets {', '.join(twice)}, which the engine sets itself.")
        reply = await self.reply(self.client.post(PATHS[engine.api], body=body | more, cast_to=str))
        return read_reply(engine.api, reply, request, self.chat, self.policy_version)

    async def reply(self, call: Coroutine[Any, Any, str], letters: Mapping[int, str] | None = None) -> str:
        """The text of a reply, or FailedTry where another try may help, or ValueError where none will.

        `letters`: what to tell the user where a status has a meaning of its own; such a status is final.
        """
        openai = _import_openai()
        url = self.engine.base_url
        try:
            async with asyncio.timeout(self.engine.timeout_s):
                return await call
        except (openai.APITimeoutError, TimeoutError) as error:
            raise FailedTry(f"no reply from {url} within timeout_s={self.engine.timeout_s:g}") from error
        except openai.APIConnectionError as error:
            raise FailedTry(f"no connection to {url}: {quote(str(error.__cause__ or error))}") from error
        except openai.APIStatusError as error:
            said = f"{url} answered {error.status_code}: {quote(error.response.text)}"
            if letters and error.status_code in letters:
                raise ValueError(f"{letters[error.status_code]} {said}.") from error
            if error.status_code in RETRIED_STATUS or error.status_code >= 500:
                raise FailedTry(said, retry_after_s(error.response.headers.get("retry-after"))) from error
            raise ValueError(f"{said}. Check base_url (it usually ends in /v1), model and api_key_env.") from error

    def connect(self, asked: str) -> None:
        """Waits for the server, finds the model's name and length, and compares tokenizers.

        Raises:
            ValueError: the server has another model or another tokenizer.
            ConnectionError: it did not answer for `give_up_after_s`.
        """
        if self.engine.model is None or self.engine.api == "tokens":
            listed = self.persist(self._list_models)
            card = choose_model(listed, self.engine.model, asked, self.engine.base_url)
            self.model = str(card["id"])
            length = card.get("max_model_len")
            self.max_model_len = length if isinstance(length, int) else None
        if self.engine.api == "tokens":
            self.persist(self._compare_tokenizers)

    def persist(self, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What a call to the server returns in the end. Raises ConnectionError after `give_up_after_s`."""
        try:
            return self._start(self.patience.persist(call)).result()
        except GaveUp as failure:
            raise ConnectionError(
                f"The server at {self.engine.base_url} did not answer for give_up_after_s="
                f"{self.engine.give_up_after_s:g} s: {failure}. Start it, or set engine.init_args.base_url."
            ) from failure

    async def _list_models(self) -> list[Mapping[str, Any]]:
        return read_models(await self.reply(self.client.get("/models", cast_to=str)))

    async def _compare_tokenizers(self) -> None:
        """Raises a ValueError where the server reads a prompt as other ids: ours would mean other text to its model."""
        text = self.chat.render_prompt(PROBE_TEXT)
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        reply = await self.reply(self.client.post(f"{self.root}/tokenize", body=body, cast_to=str))
        ids: list[int] = self.chat.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        check_same_ids(reply, ids, self.chat.name, self.engine.base_url)

    def _start(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


def _import_openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise ValueError(
            "The engine w2sr.rollouts.OpenAIServer needs the openai client, which is not installed here. Install it: "
            "pip install 'w2sr[server]'."
        ) from error
    return openai


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own. What still runs at the end is cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="w2sr-openai-server", daemon=True)
    thread.start()

    async def cancel_rest() -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(cancel_rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
