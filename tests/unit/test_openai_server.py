"""The server engine against a server that refuses, breaks, lies, hangs, dies and comes back."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_server import Behaviour, FakeServer, fake_server, good_reply

from w2sr.chat import Chat
from w2sr.miniature.tokenizer import build_tokenizer
from w2sr.rollouts import OpenAIServer, sample_requests
from w2sr.rollouts.patience import FailedTry, GaveUp, Patience
from w2sr.rollouts.sampling import request_seed
from w2sr.rollouts.wire import read_reply, request_body
from w2sr.types import Completion, Problem, SampleRequest, Sampling

CHAT = Chat(build_tokenizer(), instruction="\nPlease reason step by step")
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=23, seed=5)
QUICK = {"backoff_s": 0.02, "backoff_limit_s": 0.1, "give_up_after_s": 5.0, "timeout_s": 5.0}


def problem(number: int) -> Problem:
    return Problem(f"p{number}", "quiz", f"Today Mia has {number} kites.", str(number))


def requests(count: int = 6, num_samples: int = 1) -> list[SampleRequest]:
    return [request for number in range(count) for request in sample_requests(problem(number), CHAT, num_samples)]


def told(server: FakeServer) -> FakeServer:
    server.tokenize = lambda text: CHAT.tokenizer(text, add_special_tokens=False)["input_ids"]
    return server


def ask(
    server: FakeServer, asked: Sequence[SampleRequest] | None = None, model: str = "any", **settings: Any
) -> list[Completion]:
    engine = OpenAIServer(base_url=told(server).url, **{**QUICK, **settings})
    with engine.open(model, CHAT, torch.device("cpu")) as generator:
        return list(generator.stream(requests() if asked is None else asked, SAMPLING))


def check_complete(completions: Sequence[Completion], asked: Sequence[SampleRequest]) -> None:
    """Every request has its own answer (the good reply echoes the prompt), and each has one."""
    assert sorted((c.problem_id, c.sample_index) for c in completions) == sorted(
        (r.problem_id, r.sample_index) for r in asked
    )
    prompts = {(r.problem_id, r.sample_index): r.prompt_ids for r in asked}
    for completion in completions:
        ids = prompts[completion.problem_id, completion.sample_index]
        assert completion.token_ids == (*ids, CHAT.stop_token_id)
        assert completion.text == CHAT.decode(ids)


def only(number: int, *replies: Any) -> Behaviour:
    """The bad replies for the first requests, whichever problems they are of, and good ones afterwards."""
    return lambda count, body: replies[count] if count < number else None


def test_vllm_is_sent_our_ids_our_stops_and_a_seed_for_each_sample() -> None:
    with fake_server() as server:
        asked = requests(3, num_samples=2)
        completions = ask(server, asked)
        check_complete(completions, asked)
        assert not any(c.retokenized for c in completions)
        sent = {tuple(body["prompt"]): body for body in server.asked}
        assert set(sent) == {r.prompt_ids for r in asked}
        assert {body["seed"] for body in server.asked} == {request_seed(SAMPLING, r) for r in asked}
        for body in server.asked:
            assert body["path"] == "/v1/completions" and body["model"] == "fake/model"
            assert body["stop_token_ids"] == list(CHAT.stop_token_ids) and body["ignore_eos"] is True
            assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 23)
            # what Qwen's generation_config.json would change otherwise
            assert (body["repetition_penalty"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0)


def test_a_busy_server_is_asked_again_after_the_time_that_it_names() -> None:
    busy = (429, {"Retry-After": "1"}, '{"error": "slow down"}')
    with fake_server(only(1, busy)) as server:
        check_complete(ask(server, requests(1)), requests(1))
        first, second = server.asked_at
        # our own first wait is at most 0.02 s
        assert 1.0 <= second - first < 3.0


def test_errors_of_the_server_and_garbage_are_failed_tries() -> None:
    def choices(*items: Any) -> tuple[int, dict[str, str], str]:
        return 200, {}, json.dumps({"choices": list(items)})

    good = json.loads(good_reply({"prompt": [1], "stop_token_ids": [2]})[2])["choices"][0]
    bad = [
        (500, {}, "boom"),
        (503, {"Content-Type": "text/html"}, "<html>bad gateway</html>"),
        (408, {}, ""),
        (200, {}, "not JSON"),
        (200, {"Content-Type": "text/plain"}, "42"),
        (200, {}, "[]"),
        (200, {}, "{}"),
        choices(),
        choices(good, good),
        choices("text"),
        choices({"finish_reason": "stop", "token_ids": ["1"]}),
        choices({**good, "finish_reason": "abort"}),
        (200, {"Content-Length": "500"}, '{"choices": ['),  # half a reply
    ]
    with fake_server(only(len(bad), *bad)) as server:
        check_complete(ask(server, concurrency=2), requests())
        assert len(server.asked) == len(bad) + len(requests())


def test_a_reply_that_hangs_is_asked_for_again() -> None:
    def hang(count: int, body: dict[str, Any]) -> None:
        time.sleep(0.8 if count == 0 else 0)

    with fake_server(hang) as server:
        check_complete(ask(server, requests(2), timeout_s=0.2), requests(2))
        assert len(server.asked) == 3


def test_no_more_requests_are_open_than_allowed_and_no_fewer() -> None:
    with fake_server(lambda count, body: time.sleep(0.03)) as server:
        check_complete(ask(server, requests(12), concurrency=3), requests(12))
        assert server.most_open == 3


def test_completions_come_as_they_finish() -> None:
    gate = threading.Event()

    def first_waits(count: int, body: dict[str, Any]) -> None:
        if body["prompt"] == list(requests()[0].prompt_ids):
            assert gate.wait(5)

    with fake_server(first_waits) as server, OpenAIServer(told(server).url).open("any", CHAT, torch.device("cpu")) as g:
        stream = g.stream(requests(), SAMPLING)
        early = [next(stream) for _ in range(5)]
        gate.set()
        assert [c.problem_id for c in stream] == ["p0"]
        assert sorted(c.problem_id for c in early) == ["p1", "p2", "p3", "p4", "p5"]


def test_walking_away_stops_asking() -> None:
    with fake_server(lambda count, body: time.sleep(0.05)) as server:
        engine = OpenAIServer(told(server).url, concurrency=2)
        with engine.open("any", CHAT, torch.device("cpu")) as generator:
            stream = generator.stream(requests(40), SAMPLING)
            next(stream)
            stream.close()  # type: ignore[attr-defined]
            num_asked = len(server.asked)
            time.sleep(0.5)  # time for twenty more
            assert len(server.asked) <= num_asked + 2
            check_complete(list(generator.stream(requests(2), SAMPLING)), requests(2))


def test_a_server_that_dies_and_comes_back_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    back: list[FakeServer] = []

    def dies(count: int, body: dict[str, Any]) -> tuple[int, dict[str, str], str] | None:
        return (200, {"Content-Length": "500"}, "{") if count >= 4 else None

    with fake_server(dies) as first:
        engine = OpenAIServer(told(first).url, concurrency=1, **QUICK)
        with engine.open("any", CHAT, torch.device("cpu")) as generator, caplog.at_level(logging.WARNING):
            stream = generator.stream(requests(9), SAMPLING)
            got = [next(stream) for _ in range(4)]
            first.shutdown()
            first.server_close()
            time.sleep(0.3)  # nobody listens: connections are refused
            with fake_server(port=first.server_address[1]) as second:
                back.append(told(second))
                got += list(stream)
                check_complete(got, requests(9))
                assert len(second.asked) == 5
    assert "trying again in" in caplog.text and caplog.text.count("WARNING") == 1


def test_a_server_that_stays_dead_ends_in_one_error_after_all_that_was_received() -> None:
    got = []
    with fake_server(lambda count, body: (503, {}, "going down") if count >= 4 else None) as server:
        engine = OpenAIServer(told(server).url, concurrency=2, **{**QUICK, "give_up_after_s": 0.4})
        with engine.open("any", CHAT, torch.device("cpu")) as generator:
            began = time.monotonic()
            with pytest.raises(ConnectionError) as caught:
                got.extend(generator.stream(requests(9), SAMPLING))
            assert time.monotonic() - began < 3
    message = str(caught.value)
    assert server.url in message and "give_up_after_s=0.4" in message and "503: 'going down'" in message
    assert "4 completions of this call were received, 5 are open" in message
    assert len(got) == 4


def test_one_request_that_always_fails_lets_all_others_finish_first() -> None:
    poison = list(requests()[1].prompt_ids)
    got = []
    with fake_server(lambda count, body: (500, {}, "poison") if body["prompt"] == poison else None) as server:
        engine = OpenAIServer(told(server).url, concurrency=2, **{**QUICK, "give_up_after_s": 0.4})
        with (
            engine.open("any", CHAT, torch.device("cpu")) as generator,
            pytest.raises(ConnectionError, match="11 completions of this call were received, 1 are open"),
        ):
            for completion in generator.stream(requests(12), SAMPLING):
                got.append(completion.problem_id)
    assert sorted(got) == sorted(f"p{n}" for n in range(12) if n != 1)


def test_a_wait_beyond_patience_is_not_waited() -> None:
    with fake_server(lambda count, body: (429, {"Retry-After": "3600"}, "tomorrow")) as server:
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="429: 'tomorrow'"):
            ask(server, requests(1))
        assert time.monotonic() - began < 3 and len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_will_never_work_is_not_tried_again(status: int) -> None:
    long = "no " * 400
    with fake_server(lambda count, body: (status, {}, long)) as server:
        with pytest.raises(ValueError, match=rf"answered {status}: 'no no .*…'. Check base_url") as caught:
            ask(server, requests(1))
        assert len(server.asked) == 1 and len(str(caught.value)) < 500


def test_a_server_without_token_ids_is_told_apart_from_a_broken_one() -> None:
    reply = json.dumps({"choices": [{"text": "42", "finish_reason": "stop"}]})
    with fake_server(lambda count, body: (200, {}, reply)) as server:
        with pytest.raises(ValueError, match=r"no token_ids.*api to completions or chat"):
            ask(server, requests(1))
        assert len(server.asked) == 1


def test_a_server_that_cuts_prompts_is_found_out() -> None:
    choice = {"text": "", "finish_reason": "stop", "token_ids": [5, 2], "prompt_token_ids": [7]}
    with (
        fake_server(lambda count, body: (200, {}, json.dumps({"choices": [choice]}))) as server,
        pytest.raises(ValueError, match=r"changed the prompt of problem 'p0': \d+ token ids were sent and it read 1"),
    ):
        ask(server, requests(1))


def test_another_tokenizer_is_found_out_before_anything_is_asked() -> None:
    with fake_server() as server:
        told(server)
        right = server.tokenize
        assert right is not None
        server.tokenize = lambda text: [*right(text)[:3], 7, 8]
        engine = OpenAIServer(server.url, **QUICK)
        with (
            pytest.raises(ValueError, match=r"5 tokens, \[7, 8\] from number 3 on"),
            engine.open("any", CHAT, torch.device("cpu")),
        ):
            pass
        assert not server.asked


def test_which_model_a_server_is_asked_for() -> None:
    with fake_server() as server:
        server.models = [{"id": "a/one"}, {"id": "b/two"}]
        ask(server, requests(1), model="b/two")
        assert {body["model"] for body in server.asked} == {"b/two"}
        engine = OpenAIServer(told(server).url, model="a/one", **QUICK)
        with engine.open("b/two", CHAT, torch.device("cpu")) as generator:
            list(generator.stream(requests(1), SAMPLING))
        assert server.asked[-1]["model"] == "a/one"
        with pytest.raises(ValueError, match="lists a/one, b/two; none is called 'c/three'"):
            ask(server, requests(1), model="c/three")


def test_prompts_longer_than_the_servers_model_are_named() -> None:
    asked = [SampleRequest("long/9", 0, tuple([5] * 290))]
    with fake_server() as server, pytest.raises(ValueError, match=r"'long/9' has a prompt of 290 tokens.*has 300"):
        ask(server, asked)


def test_a_server_that_never_comes_up() -> None:
    with fake_server() as server:
        url = server.url
    engine = OpenAIServer(url, **{**QUICK, "give_up_after_s": 0.2})
    with (
        pytest.raises(ConnectionError, match=rf"{url} did not answer for give_up_after_s=0.2 s: no connection"),
        engine.open("any", CHAT, torch.device("cpu")),
    ):
        pass


def test_text_completions_are_counted_by_our_tokenizer() -> None:
    with fake_server() as server:
        asked = requests(2)
        completions = ask(server, asked, api="completions")
        assert {body["prompt"] for body in server.asked} == {r.prompt for r in asked}
        assert all(body["stop"] == ["<|im_end|>"] and "top_k" not in body for body in server.asked)
        for completion in completions:
            assert completion.text == "12 + 30 = 42" and completion.retokenized
            # 12, " + ", 30, " = ", 42 and the stop token
            assert len(completion.token_ids) == 6 and CHAT.decode(completion.token_ids) == completion.text


def test_a_completion_goes_on_behind_its_first_part_and_ends_at_a_text() -> None:
    first = replace(requests(1)[0], prompt_ids=(5, 6, 7, 8), num_done=3)
    sampling = replace(SAMPLING, stop_text=(">>",))
    with fake_server() as server, OpenAIServer(told(server).url).open("any", CHAT, torch.device("cpu")) as generator:
        list(generator.stream([first], sampling))
        (body,) = server.asked
        assert (body["max_tokens"], body["stop"], body["include_stop_str_in_output"]) == (20, [">>"], True)
        assert body["seed"] != request_seed(SAMPLING, requests(1)[0]), "the first part's noise would come again"
    for asked, settings in ((first, SAMPLING), (requests(1)[0], sampling)):
        with pytest.raises(ValueError, match="api=chat cannot end completions at"):
            request_body("chat", "m", asked, settings, CHAT, 0)


def test_chat_sends_turns() -> None:
    with fake_server() as server:
        (completion,) = ask(server, requests(1), api="chat", extra_body={"top_k": 3})
        (body,) = server.asked
        assert body["path"] == "/v1/chat/completions" and body["top_k"] == 3
        question = "Today Mia has 0 kites.\nPlease reason step by step"
        assert body["messages"] == [{"role": "user", "content": question}]
        assert completion.text == question and completion.finish_reason == "stop"


def test_reasoning_that_a_server_splits_off_is_put_back() -> None:
    def reply(message: Any, finish: str | None = "length") -> Completion:
        text = json.dumps({"choices": [{"message": message, "finish_reason": finish}]})
        return read_reply("chat", text, requests(1)[0], CHAT)

    assert reply({"content": "42", "reasoning_content": "40 + 2"}).text == "<think>\n40 + 2\n</think>\n\n42"
    assert reply({"content": None, "reasoning": "40 + "}).text == "<think>\n40 + \n</think>\n\n"
    assert reply({"content": "42"}).finish_reason == "length"
    assert reply({"content": "42"}, "content_filter").finish_reason == "unknown"
    for message in ({}, {"content": 42}, "42", None):
        with pytest.raises(FailedTry):
            reply(message)


def test_the_key_is_read_from_the_environment_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-this-server")
    monkeypatch.setenv("MY_KEY", "s3cret")
    with fake_server() as server:
        ask(server, requests(1))
        ask(server, requests(1), api_key_env="MY_KEY")
        assert [seen["authorization"] for seen in server.headers_seen] == ["Bearer none", "Bearer s3cret"]
        with pytest.raises(ValueError, match="api_key_env=OTHER_KEY: this environment variable is not set"):
            ask(server, requests(1), api_key_env="OTHER_KEY")
    with pytest.raises(ValueError, match="must be the name of an environment variable") as caught:
        OpenAIServer("http://x/v1", api_key_env="sk-s3cret")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "is no URL"),
        ({"concurrency": 0}, "between 1 and 1000"),
        ({"timeout_s": 0}, "timeout_s=0 must be greater than 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenAIServer(**{"base_url": "http://x/v1", **settings})


def test_extra_body_may_not_replace_what_the_engine_sets() -> None:
    with (
        fake_server() as server,
        pytest.raises(ValueError, match="extra_body sets seed, top_p, which"),
    ):
        ask(server, requests(1), extra_body={"seed": 1, "top_p": 0.5, "x": 1})


def test_waits_double_with_jitter_up_to_the_limit() -> None:
    patience = Patience(0.5, 30.0, 600.0)
    for num_failed, longest in ((0, 0.5), (1, 1.0), (3, 4.0), (6, 30.0), (10_000, 30.0)):
        waits = [patience.wait_s(num_failed) for _ in range(200)]
        assert longest / 2 <= min(waits) < 0.6 * longest and 0.9 * longest < max(waits) <= longest


def test_giving_up_counts_from_the_last_success_of_any_call() -> None:
    import asyncio

    patience = Patience(0.01, 0.02, 0.3)

    async def fails() -> None:
        raise FailedTry("no")

    async def works() -> str:
        return "yes"

    async def both() -> float:
        began = time.monotonic()
        failing = asyncio.create_task(patience.persist(fails))
        await asyncio.sleep(0.25)
        assert await patience.persist(works) == "yes"
        with pytest.raises(GaveUp, match="no"):
            await failing
        return time.monotonic() - began

    # 0.25 s until the success, then 0.3 s less at most one wait of 0.02 s
    assert asyncio.run(both()) > 0.52


def test_importing_the_engines_imports_neither_vllm_nor_openai() -> None:
    code = "import w2sr.rollouts, sys; sys.exit(bool({'vllm', 'openai'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("name", "module", "extra"), [("OpenAIServer", "openai", "server"), ("VLLM", "vllm", "vllm")])
def test_a_missing_package_is_named_with_its_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2sr import rollouts

    monkeypatch.setitem(sys.modules, module, None)
    engine = rollouts.VLLM() if name == "VLLM" else OpenAIServer("http://127.0.0.1:1/v1")
    with (
        pytest.raises(ValueError, match=rf"w2sr.rollouts.{name} needs .*pip install 'w2sr\[{extra}\]'"),
        engine.open("any", CHAT, torch.device("cpu")),
    ):
        pass
