"""How two engines' completions are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from w2sr.policy import Policy, load_policy
from w2sr.rollouts.agreement import Agreement, agreement

PROMPT = (5, 9, 30)


@pytest.fixture(scope="module")
def policy(tiny_world: tuple[Path, ...]) -> Policy:
    return load_policy(tiny_world[0]).eval()


def logprobs_after(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    """By transformers' own forward, with its own attention."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(policy.lm.config._name_or_path, attn_implementation="eager")
    with torch.no_grad():
        return lm(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def test_equal_completions_are_the_same(policy: Policy) -> None:
    assert agreement(policy, PROMPT, (4, 7, 2), [4, 7, 2]) == Agreement("same")


def test_the_gap_is_that_of_the_two_tokens_at_the_first_difference(policy: Policy) -> None:
    logprobs = logprobs_after(policy, (*PROMPT, 4))
    best, second = logprobs.topk(2).indices.tolist()
    gap = float(logprobs[best] - logprobs[second])
    assert gap > 0.01, "the two tokens must be apart, or the test below says nothing"
    found = agreement(policy, PROMPT, (4, best, 7), (4, second, 8, 9))
    assert (found.kind, found.at) == ("different", 1) and found.gap == pytest.approx(gap, abs=1e-5)
    assert agreement(policy, PROMPT, (4, best), (4, second), tolerance=1.01 * gap).kind == "tie"
    assert agreement(policy, PROMPT, (4, best), (4, second), tolerance=0.99 * gap).kind == "different"


def test_a_completion_that_ends_early_is_different(policy: Policy) -> None:
    assert agreement(policy, PROMPT, (4, 7, 2), (4, 7)) == Agreement("different", 2, float("inf"))
