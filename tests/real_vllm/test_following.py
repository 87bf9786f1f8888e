"""Both vLLM engines follow a policy, with a real vLLM: one engine in process and one server for this file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from drive_follow import SAMPLED, change, report
from starting import ENGINE, START_S, TEACHER, Server, run_script, serving, skip_without_vllm

from w2sr.chat import Chat
from w2sr.policy import LoRA, Policy, load_policy
from w2sr.rollouts import OpenAIServer, PolicyGenerator, sample_requests
from w2sr.types import Problem, SampleRequest

pytestmark = pytest.mark.vllm

CPU = torch.device("cpu")
SAME = 1e-3
"""Nats between two float32 engines that add in another order; 3e-5 was measured."""
OTHER = 0.05
"""What a changed policy must differ by, at one token at least."""
LONG = 300
"""Tokens of a prompt that vLLM keeps in its prefix cache: whole blocks, of 128 on a CPU."""


@pytest.fixture(scope="module")
def requests() -> list[SampleRequest]:
    chat = Chat.load(TEACHER)
    asked = [
        request
        for number in range(6)
        for request in sample_requests(Problem(f"p{number}", "quiz", f"Today Mia has {number} kites.", "0"), chat)
    ]
    ids = asked[0].prompt_ids
    return [*asked, SampleRequest("long", 0, (ids * LONG)[:LONG])]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that can be given weights. Its model is untied: see `Policy.save_untied`."""
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("server")
    load_policy(TEACHER).save_untied(folder / "teacher")
    Chat.load(TEACHER).save(folder / "teacher")
    with serving(folder / "teacher", folder, "--logprobs-mode=processed_logprobs", VLLM_SERVER_DEV_MODE="1") as started:
        yield started


@pytest.fixture(scope="module")
def local(server: Server, requests: list[SampleRequest], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened to an engine in process, which runs while the server starts."""
    spec = {"model": str(TEACHER), "engine": ENGINE, "prompts": [list(request.prompt_ids) for request in requests]}
    answers: dict[str, Any] = run_script("drive_follow.py", spec, tmp_path_factory.mktemp("local"))
    return answers


@pytest.mark.parametrize(
    ("act", "version"), [("first", 0), ("greedy", 0), ("changed", 1), ("lora", 7)], ids=lambda value: str(value)
)
def test_vllm_in_process_is_the_policy_after_an_update(act: str, version: int, local: dict[str, Any]) -> None:
    assert local[act]["gap"] < SAME and local[act]["versions"] == [version]
    assert local[act]["tokens"] > 60


@pytest.mark.parametrize(("act", "version"), [("changed, no update", 0), ("lora, no update", 1)])
def test_vllm_in_process_is_the_old_policy_before_an_update(act: str, version: int, local: dict[str, Any]) -> None:
    assert local[act]["gap"] > OTHER and local[act]["versions"] == [version]


def test_logprobs_of_a_cut_distribution_are_none(local: dict[str, Any]) -> None:
    assert local["cut"] == [None] * 7


def test_a_stamp_that_is_gone_is_found_out(local: dict[str, Any]) -> None:
    assert "vLLM holds the weights 'default', not '" in local["stale"]


def test_an_engine_that_has_died_ends_the_run(local: dict[str, Any]) -> None:
    assert "vLLM's process has ended" in local["dead stream"] and "vLLM's process has ended" in local["dead update"]
    assert local["dead seconds"] < 30


def follow(server: Server, policy: Policy) -> Any:
    return OpenAIServer(server.url, give_up_after_s=START_S, backoff_limit_s=1.0).follow(
        policy, Chat.load(TEACHER), CPU
    )


def gap(generator: PolicyGenerator, policy: Policy, requests: list[SampleRequest]) -> float:
    return float(report(generator, policy, requests, SAMPLED)["gap"])


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_the_server_is_the_policy_after_an_update_and_not_before(
    lora: LoRA | None, server: Server, requests: list[SampleRequest]
) -> None:
    policy = load_policy(TEACHER)
    with follow(server, policy) as generator:
        generator.update(0)
        assert gap(generator, policy, requests) < SAME
        if lora:
            policy.add_lora(lora, Chat.load(TEACHER).stop_token_id)
        change(policy)
        assert gap(generator, policy, requests) > OTHER
        generator.update(3)
        answers = list(generator.stream(requests, SAMPLED))
        assert {c.policy_version for c in answers} == {3} and np.isfinite([c.logprobs[0] for c in answers]).all()
        assert gap(generator, policy, requests) < SAME


@pytest.mark.usefixtures("local")
def test_a_server_that_another_run_gave_its_weights_is_found_out(server: Server, requests: list[SampleRequest]) -> None:
    policy, other = load_policy(TEACHER), load_policy(TEACHER)
    change(other)
    with follow(server, policy) as generator, follow(server, other) as thief:
        generator.update(0)
        thief.update(0)
        with pytest.raises(RuntimeError, match=r"holds the weights '.*/0', not '.*/0' of the last update"):
            list(generator.stream(requests, SAMPLED))
        assert gap(thief, other, requests) < SAME


@pytest.mark.usefixtures("local")
def test_a_killed_server_ends_the_run_in_time(server: Server, requests: list[SampleRequest]) -> None:
    """Last, because the server is gone afterwards."""
    policy = load_policy(TEACHER)
    engine = OpenAIServer(server.url, give_up_after_s=1.0, backoff_s=0.05)
    with engine.follow(policy, Chat.load(TEACHER), CPU) as generator:
        generator.update(0)
        server.kill()
        with pytest.raises(ConnectionError, match=r"did not answer for give_up_after_s=1 s"):
            generator.update(1)
