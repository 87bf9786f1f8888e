"""A server with OpenAI's interface that behaves as badly as it is told to. Its completions echo the prompt."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from w2sr.chat import Chat
from w2sr.policy import Policy, load_policy
from w2sr.rollouts.freshness import completion_logprobs
from w2sr.types import Completion, SampleRequest

Reply = tuple[int, dict[str, str], str]
"""Status, headers, body."""
Behaviour = Callable[[int, dict[str, Any]], Reply | None]
"""(number of this request, its body) → a reply of its own, or None for the good one."""


Score = Callable[[list[int], list[int], float], list[float]]
"""(prompt, completion, temperature) → log-probability of each token of the completion."""


class FakeWeights:
    """What vLLM's development routes read and change; a restart brings back what was there at first.

    `load`: the folder that `reload_weights` names → how likely completions are by the weights in it.
    """

    def __init__(self, load: Callable[[str], Score], first: Score) -> None:
        self.load, self.first, self.calls = load, first, list[str]()
        self.restarts_while_loading = 0
        self.ignores_loading = False
        self.restart()

    def restart(self) -> None:
        self.version, self.score = "default", self.first

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        self.calls.append(path)
        if path == "/update_weight_version":
            self.version = body["new_version"]
        elif path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            try:
                loaded = self.load(body["kwargs"]["weights_path"])
            except OSError as error:
                return 500, {}, str(error)
            self.score = self.score if self.ignores_loading else loaded
            if self.restarts_while_loading:
                self.restarts_while_loading -= 1
                self.restart()
        return 200, {}, json.dumps({"success": True, "weight_version": self.version})


class FakeServer(ThreadingHTTPServer):
    """What it was asked, and how many requests it had open at once."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviour = behaviour
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.asked_at: list[float] = []
        self.headers_seen: list[dict[str, str]] = []
        self.num_open = self.most_open = 0
        self.models: list[dict[str, Any]] = [{"id": "fake/model", "max_model_len": 300}]
        self.tokenize: Callable[[str], list[int]] | None = None
        self.weights: FakeWeights | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/weight_info":
            self._development({})
            return
        self._send(200, {}, json.dumps({"data": self.server.models}))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            assert server.tokenize is not None
            self._send(200, {}, json.dumps({"tokens": server.tokenize(body["prompt"])}))
            return
        if not self.path.endswith("/completions"):
            self._development(body)
            return
        with server.lock:
            number = len(server.asked)
            server.asked.append({"path": self.path, **body})
            server.asked_at.append(time.monotonic())
            server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            server.num_open += 1
            server.most_open = max(server.most_open, server.num_open)
        status, headers, text = server.behaviour(number, body) or good_reply(body, server.weights)
        with server.lock:
            server.num_open -= 1
        self._send(status, headers, text)

    def _development(self, body: dict[str, Any]) -> None:
        weights = self.server.weights
        self._send(*(weights.answer(self.path, body) if weights else (404, {}, '{"detail": "Not Found"}')))

    def _send(self, status: int, headers: dict[str, str], text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", headers.pop("Content-Type", "application/json"))
        self.send_header("Content-Length", headers.pop("Content-Length", str(len(data))))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def good_reply(body: dict[str, Any], weights: FakeWeights | None = None) -> Reply:
    """The completion of `tokens` is the prompt's own ids and the first stop token; of text, the prompt in capitals."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if "messages" in body:
        choice["message"] = {"role": "assistant", "content": body["messages"][-1]["content"]}
    elif isinstance(body["prompt"], str):
        choice["text"] = "12 + 30 = 42"
    else:
        ids = [*body["prompt"], body["stop_token_ids"][0]]
        choice |= {"text": "", "token_ids": ids, "prompt_token_ids": body["prompt"]}
        if "logprobs" in body and weights:
            choice["logprobs"] = {"token_logprobs": weights.score(body["prompt"], ids, body["temperature"])}
    return 200, {}, json.dumps({"choices": [choice]})


@contextmanager
def fake_server(behaviour: Behaviour = lambda number, body: None, port: int = 0) -> Iterator[FakeServer]:
    server = FakeServer(behaviour, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def score_by(policy: Policy, *, temperature_matters: bool = True) -> Score:
    def score(prompt: list[int], ids: list[int], temperature: float) -> list[float]:
        asked, done = SampleRequest("", 0, tuple(prompt)), Completion("", 0, tuple(ids), "", "stop")
        return completion_logprobs(policy, asked, done, temperature if temperature_matters else 1.0).tolist()

    return score


@contextmanager
def server_of(
    tiny_world: Any, chat: Chat, behaviour: Behaviour = lambda number, body: None, **score: bool
) -> Iterator[FakeServer]:
    """A server that can be given weights, and begins with the student's."""
    with fake_server(behaviour) as server:
        server.tokenize = lambda text: chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        first = score_by(load_policy(tiny_world.student))
        server.weights = FakeWeights(lambda folder: score_by(load_policy(folder), **score), first)
        yield server
