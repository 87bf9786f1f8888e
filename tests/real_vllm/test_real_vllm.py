"""Both vLLM engines with a real vLLM: `make setup-vllm` installs one beside the main environment.

One engine in process and one server for all tests of this file, and each starts in another process: half a minute to
two. Their model is the miniature's teacher with a generation_config.json that spoils what is sampled with it: its
settings must not reach our completions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from starting import ENGINE, REPOSITORY, START_S, TEACHER, Server, run_script, serving, skip_without_vllm

from w2sr.chat import Chat
from w2sr.policy import load_policy
from w2sr.problems import read_problems
from w2sr.rollouts import EmbeddedGenerator, OpenAIServer, ToolGenerator, sample_requests
from w2sr.rollouts.agreement import agreement
from w2sr.tools import Calculator
from w2sr.types import Completion, SampleRequest, Sampling

pytestmark = pytest.mark.vllm

GREEDY = Sampling(temperature=0.0, max_new_tokens=160)
UNTIL_TEXT = replace(GREEDY, stop_text=(" = ",))
SAMPLED = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=160, seed=3)
NUM_PROBLEMS = 64


class Engines(NamedTuple):
    """A server that runs, and what the engine in process answered to each job."""

    model: Path
    server: Server
    url: str
    local: dict[str, Any]


@pytest.fixture(scope="module")
def requests() -> list[SampleRequest]:
    problems = read_problems(REPOSITORY / "w2sr" / "miniature" / "data" / "test.jsonl.gz")[:NUM_PROBLEMS]
    chat = Chat.load(TEACHER)
    return [request for problem in problems for request in sample_requests(problem, chat)]


@pytest.fixture(scope="module")
def engines(requests: list[SampleRequest], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("vllm")
    model = spoiled_teacher(folder / "teacher")
    with serving(model, folder) as server:
        yield Engines(model, server, server.url, run_local(model, jobs(requests), folder))  # while the server starts


def spoiled_teacher(folder: Path) -> Path:
    """The teacher, with defaults that would change every completion: vLLM's server reads them unless it is told."""
    shutil.copytree(TEACHER, folder)
    newline = Chat.load(TEACHER).vocabulary["\n"]
    settings = {"eos_token_id": [newline], "repetition_penalty": 1.7, "top_k": 2, "temperature": 0.1, "top_p": 0.3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def jobs(requests: list[SampleRequest]) -> dict[str, Any]:
    """What the engine in process is asked, in this order; see drive.py."""
    some, greedy, sampled = requests[:16], vars(GREEDY), vars(SAMPLED)
    others = [SampleRequest(r.problem_id, 1, r.prompt_ids) for r in some]
    return {
        "greedy": {"requests": rows(requests), "sampling": greedy},
        "walked away": {"requests": rows(requests), "sampling": greedy, "take": 3},
        "sampled": {"requests": rows(some), "sampling": sampled},
        "sampled in another batch": {"requests": rows([*reversed(requests[:24])]), "sampling": sampled},
        "other samples": {"requests": rows(others), "sampling": sampled},
        "other seed": {"requests": rows(some), "sampling": {**sampled, "seed": 4}},
        "cut": {"requests": rows(some), "sampling": {**greedy, "max_new_tokens": 9}},
        "until a text": {"requests": rows(some), "sampling": vars(UNTIL_TEXT)},
        "too long": {"requests": [["long/9", 0, [5] * 400, 0]], "sampling": greedy},
    }


def rows(requests: list[SampleRequest]) -> list[list[Any]]:
    return [[r.problem_id, r.sample_index, list(r.prompt_ids), r.num_done] for r in requests]


def run_local(model: Path, jobs: dict[str, Any], folder: Path) -> dict[str, Any]:
    answers = run_script("drive.py", {"model": str(model), "engine": ENGINE, "jobs": list(jobs.values())}, folder)
    return {
        name: answer
        if isinstance(answer, str)
        else [Completion(p, i, tuple(ids), *more) for p, i, ids, *more in answer]
        for name, answer in zip(jobs, answers, strict=True)
    }


def by_key(completions: list[Completion]) -> dict[tuple[str, int], Completion]:
    found = {(c.problem_id, c.sample_index): c for c in completions}
    assert len(found) == len(completions)
    return found


def ask_server(
    engines: Engines, requests: list[SampleRequest], sampling: Sampling, **settings: Any
) -> list[Completion]:
    engine = OpenAIServer(engines.url, give_up_after_s=START_S, backoff_limit_s=1.0, **settings)
    with engine.open(str(engines.model), Chat.load(TEACHER), torch.device("cpu")) as generator:
        return list(generator.stream(requests, sampling))


def check_equal_or_tied(requests: list[SampleRequest], others: list[Completion]) -> None:
    """Token by token what the embedded engine writes, or a tie where they part; and most without any tie."""
    chat, policy = Chat.load(TEACHER), load_policy(TEACHER)
    embedded = by_key(list(EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode).stream(requests, GREEDY)))
    assert len({len(c.token_ids) for c in embedded.values()}) > 3, "completions must differ in length"
    other = by_key(others)
    assert other.keys() == embedded.keys()
    kinds = []
    for request in requests:
        key = request.problem_id, request.sample_index
        found = agreement(policy.eval(), request.prompt_ids, embedded[key].token_ids, other[key].token_ids)
        assert found.kind in ("same", "tie"), (key, found)
        kinds.append(found.kind)
        if found.kind == "same":
            assert (other[key].text, other[key].finish_reason) == (embedded[key].text, embedded[key].finish_reason)
            assert not other[key].retokenized
    assert kinds.count("same") > 0.9 * len(kinds), kinds


def test_vllm_in_process_writes_what_the_embedded_engine_writes(
    engines: Engines, requests: list[SampleRequest]
) -> None:
    check_equal_or_tied(requests, engines.local["greedy"])


def test_the_server_writes_what_the_embedded_engine_writes(engines: Engines, requests: list[SampleRequest]) -> None:
    check_equal_or_tied(requests, ask_server(engines, requests, GREEDY))


def test_completions_come_as_they_finish(engines: Engines) -> None:
    lengths = [len(c.token_ids) for c in engines.local["greedy"]]
    assert lengths[0] == min(lengths) < max(lengths) == lengths[-1]


def test_walking_away_leaves_an_engine_that_works(engines: Engines) -> None:
    """The jobs after it have the right answers (the tests below), and it has its three."""
    assert len(engines.local["walked away"]) == 3
    assert by_key(engines.local["walked away"]).items() <= by_key(engines.local["greedy"]).items()


def test_a_sample_is_a_function_of_its_names_and_not_of_its_batch(
    engines: Engines, requests: list[SampleRequest]
) -> None:
    local = {name: by_key(answer) for name, answer in engines.local.items() if name != "too long"}
    sampled = local["sampled"]
    assert len(sampled) == 16 and sampled.items() <= local["sampled in another batch"].items()
    assert sum(sampled[p, 0].token_ids != c.token_ids for (p, _), c in local["other samples"].items()) > 8
    assert sum(sampled[key].token_ids != c.token_ids for key, c in local["other seed"].items()) > 8
    assert sum(sampled[key].token_ids != local["greedy"][key].token_ids for key in sampled) > 8
    assert by_key(ask_server(engines, requests[:16], SAMPLED, concurrency=3)) == sampled


def test_a_completion_that_meets_the_limit_says_so(engines: Engines, requests: list[SampleRequest]) -> None:
    cut = ask_server(engines, requests[:16], Sampling(temperature=0.0, max_new_tokens=9))
    assert by_key(cut) == by_key(engines.local["cut"])
    assert {(len(c.token_ids), c.finish_reason) for c in cut} == {(9, "length")}
    assert {c.finish_reason for c in engines.local["greedy"]} == {"stop"}


def test_a_completion_that_ends_at_a_text_can_go_on_behind_it(engines: Engines, requests: list[SampleRequest]) -> None:
    whole, parts = by_key(engines.local["greedy"]), engines.local["until a text"]
    assert by_key(ask_server(engines, requests[:16], UNTIL_TEXT)) == by_key(parts)
    prompts = {(r.problem_id, r.sample_index): r.prompt_ids for r in requests}
    rest = []
    for part in parts:
        key = part.problem_id, part.sample_index
        assert part.finish_reason == "stop" and part.text.endswith(" = ") and part.text.count(" = ") == 1
        rest.append(SampleRequest(*key, prompts[key] + part.token_ids, num_done=len(part.token_ids)))
    for key, last in by_key(ask_server(engines, rest, GREEDY)).items():
        assert by_key(parts)[key].token_ids + last.token_ids == whole[key].token_ids
    # 160 tokens in all, not 160 more
    (cut,) = ask_server(engines, rest[:1], replace(GREEDY, max_new_tokens=rest[0].num_done + 5))
    assert len(cut.token_ids) == 5 and cut.finish_reason == "length"


def test_a_calculator_works_through_the_server(engines: Engines, requests: list[SampleRequest]) -> None:
    """Round by round through the server as in the embedded engine; where they part, the logits were tied."""
    chat, policy = Chat.load(TEACHER), load_policy(TEACHER)
    calculator = Calculator(open="", close=" = ", result="{}")
    embedded = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode)
    here = by_key(list(ToolGenerator(embedded, calculator, chat).stream(requests[:16], GREEDY)))
    engine = OpenAIServer(engines.url, give_up_after_s=START_S)
    with engine.open(str(engines.model), chat, torch.device("cpu")) as generator:
        there = by_key(list(ToolGenerator(generator, calculator, chat).stream(requests[:16], GREEDY)))
    same = [here[key] == there[key] for key in here]
    assert sum(same) >= 15, "a tie is rare"
    assert sum(len(completion.no_loss_spans) for completion in there.values()) > 50


def test_prompts_beyond_the_model_are_named(engines: Engines) -> None:
    message = "problem 'long/9' has a prompt of 400 tokens; with max_new_tokens=160 it needs 560 positions"
    assert message in engines.local["too long"]
    with pytest.raises(ValueError, match=message):
        ask_server(engines, [SampleRequest("long/9", 0, tuple([5] * 400))], GREEDY)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_server_that_is_asked_as_text_writes_the_same(
    api: str, engines: Engines, requests: list[SampleRequest]
) -> None:
    neutral = {
        "repetition_penalty": 1.0,
        "top_k": 0,
        "ignore_eos": True,
        "stop_token_ids": [Chat.load(TEACHER).stop_token_id],
    }
    completions = ask_server(engines, requests[:8], GREEDY, api=api, extra_body=neutral)
    local = by_key(engines.local["greedy"])
    for completion in completions:
        same = local[completion.problem_id, 0]
        assert completion.retokenized
        assert (completion.text, completion.token_ids) == (same.text, same.token_ids)


def test_another_model_behind_the_url_is_found_out(engines: Engines, shared_data: Path) -> None:
    other = Chat.load(shared_data / "tokenizers" / "smollm2-135m-instruct", template="simple")
    engine = OpenAIServer(engines.url)
    with (
        pytest.raises(ValueError, match="our token ids would be other text to its model"),
        engine.open("HuggingFaceTB/SmolLM2-135M", other, torch.device("cpu")),
    ):
        pass


def test_a_server_that_is_killed_loses_nothing_that_was_received(
    engines: Engines, requests: list[SampleRequest]
) -> None:
    """Last, because the server is gone afterwards."""
    engine = OpenAIServer(engines.url, concurrency=4, backoff_s=0.05, give_up_after_s=1.0)
    got: list[Completion] = []
    with engine.open(str(engines.model), Chat.load(TEACHER), torch.device("cpu")) as generator:
        many = [SampleRequest(r.problem_id, i, r.prompt_ids) for i in range(8) for r in requests]
        with pytest.raises(ConnectionError) as caught:
            for completion in generator.stream(many, GREEDY):
                got.append(completion)
                if len(got) == 20:
                    engines.server.kill()
    assert 20 <= len(by_key(got)) < len(many)
    whole = by_key(engines.local["greedy"])
    assert all(c.token_ids == whole[c.problem_id, 0].token_ids for c in got)
    message = str(caught.value)
    assert engines.url in message and "no connection to" in message
    assert f"{len(got)} completions of this call were received, {len(many) - len(got)} are open" in message
