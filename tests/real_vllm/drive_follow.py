"""Runs in the environment that has vLLM: python drive_follow.py SPEC.json ANSWERS.json. One engine follows a policy.

The answer holds, for each act, the largest difference in nats between vLLM's log-probabilities of what it wrote and
the policy's; or the text of an error.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from w2sr.chat import Chat
from w2sr.policy import LoRA, Policy, load_policy
from w2sr.rollouts import VLLM, PolicyGenerator
from w2sr.rollouts.freshness import completion_logprobs
from w2sr.types import SampleRequest, Sampling

SAMPLED = Sampling(temperature=0.7, max_new_tokens=40, seed=3)
GREEDY = Sampling(temperature=0.0, max_new_tokens=40)
CUT = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=40, seed=3)


def main() -> None:
    spec_path, answers_path = map(Path, sys.argv[1:])
    spec = json.loads(spec_path.read_text())
    chat, policy = Chat.load(spec["model"]), load_policy(spec["model"])
    requests = [SampleRequest(f"p{number}", 0, tuple(ids)) for number, ids in enumerate(spec["prompts"])]
    with VLLM(**spec["engine"]).follow(policy, chat, torch.device("cpu")) as generator:
        answers_path.write_text(json.dumps(acts(generator, policy, chat, requests)))


def acts(generator: Any, policy: Policy, chat: Chat, requests: list[SampleRequest]) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    def ask(name: str, sampling: Sampling = SAMPLED) -> None:
        answers[name] = report(generator, policy, requests, sampling)

    generator.update(0)
    ask("first")
    ask("greedy", GREEDY)
    answers["cut"] = [completion.logprobs for completion in generator.stream(requests, CUT)]
    change(policy)
    ask("changed, no update")
    generator.update(1)
    ask("changed")
    policy.add_lora(LoRA(rank=4), chat.stop_token_id)
    change(policy)
    ask("lora, no update")
    generator.update(7)
    generator.rest()
    ask("lora")
    generator.llm.update_weight_version("default")  # what a restart would leave
    answers["stale"] = error_of(lambda: list(generator.stream(requests, SAMPLED)))
    for process in multiprocessing.active_children():
        process.kill()
    begun = time.monotonic()
    answers["dead stream"] = error_of(lambda: list(generator.stream(requests, SAMPLED)))
    answers["dead update"] = error_of(lambda: generator.update(8))
    answers["dead seconds"] = time.monotonic() - begun
    return answers


def report(
    generator: PolicyGenerator, policy: Policy, requests: list[SampleRequest], sampling: Sampling
) -> dict[str, Any]:
    prompts = {request.problem_id: request for request in requests}
    gaps, versions, lengths = [], set(), []
    for completion in generator.stream(requests, sampling):
        expected = completion_logprobs(policy, prompts[completion.problem_id], completion, sampling.temperature or 1.0)
        gaps.append(float(abs(expected - completion.logprobs).max()))
        versions.add(completion.policy_version)
        lengths.append(len(completion.token_ids))
    assert len(gaps) == len(requests)
    return {"gap": max(gaps), "versions": sorted(versions), "tokens": sum(lengths)}


def change(policy: Policy) -> None:
    """Moves all that is trained, adapters included."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))


def error_of(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return None


if __name__ == "__main__":  # vLLM's own processes import this file
    main()
