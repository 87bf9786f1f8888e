"""Architectures against their own eager forward pass, one segment at a time: right, or refused in words."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from families import REFUSED, RIGHT, VOCAB, WINDOW, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from w2sr.packing import pack_row
from w2sr.policy import Policy, check_model
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import IGNORE_INDEX, SampleRequest, Sampling, Segment

ATOL = 1e-4
"""Of float32 log-probabilities near 5 nats: two orders of summation over two layers; measured 2e-6 and less."""
LENGTHS = [7, 31, 1, 19]


def judge(policy: Policy) -> torch.nn.Module:
    """The same weights in a model that transformers made, without anything of ours."""
    lm = AutoModelForCausalLM.from_config(deepcopy(policy.lm.config), attn_implementation="eager")
    lm.load_state_dict(policy.lm.state_dict())
    return lm.eval()


def segments() -> list[Segment]:
    rng = np.random.default_rng(5)
    made = []
    for number, length in enumerate(LENGTHS):
        ids = rng.integers(3, VOCAB, length)
        made.append(Segment(f"s{number}", ids, np.append(ids[1:], IGNORE_INDEX)))
    return made


def own_logprobs(lm: torch.nn.Module, ids: np.ndarray | list[int]) -> Tensor:
    """Log-probability [L - 1] of each token but the first."""
    logits = lm(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[1:, None])[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("name", RIGHT)
def test_a_family_that_passes_the_probe_is_right(name: str) -> None:
    """Packed rows, and what the embedded engine samples, with segments beyond windows and longrope's switch."""
    policy = tiny(name, RIGHT[name]).eval()
    check_model(policy)
    lm, parts = judge(policy), segments()
    row = pack_row(parts)
    found = policy(row)[row.labels != IGNORE_INDEX]
    expected = torch.cat([own_logprobs(lm, part.input_ids) for part in parts])
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)

    generator = EmbeddedGenerator(policy, [VOCAB + 1], str, num_slots=2, logprobs=True)
    prompts = [tuple(part.input_ids.tolist())[:13] for part in parts]
    requests = [SampleRequest(str(number), 0, prompt) for number, prompt in enumerate(prompts)]
    assert max(map(len, prompts)) > WINDOW, "guard: prompts leave windows too"
    sampled = 0
    for completion in generator.stream(requests, Sampling(1.0, 1.0, 10, seed=1)):
        prompt = prompts[int(completion.problem_id)]
        theirs = own_logprobs(lm, [*prompt, *completion.token_ids])[len(prompt) - 1 :]
        torch.testing.assert_close(torch.tensor(completion.logprobs), theirs, atol=ATOL, rtol=0)
        sampled += len(completion.token_ids)
    assert sampled == 10 * len(prompts)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_would_be_wrong_is_refused_in_words(name: str) -> None:
    words, changes = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        check_model(tiny(name, changes))


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "phi3 longrope", "granite", "phi"])
def test_gradients_are_those_of_the_model_itself(name: str) -> None:
    """Windows, soft-caps, sinks, positions by segment, scales of logits, and biases of heads."""
    policy, parts = tiny(name, RIGHT[name]).eval(), segments()
    policy(pack_row(parts), reduction="sum").backward()
    lm = judge(policy)
    torch.cat([own_logprobs(lm, part.input_ids) for part in parts]).sum().backward()
    theirs = dict(lm.named_parameters())
    assert any(name.endswith("sinks") for name in theirs) == (name == "gpt_oss")
    for parameter_name, parameter in policy.lm.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[parameter_name].grad, atol=1e-3, rtol=1e-4, msg=f"{name} {parameter_name}"
        )
