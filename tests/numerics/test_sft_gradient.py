"""The loss and gradient of one optimizer step: the same for every split into rows and ranks, and equal to a loop."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from w2sr.datamodules.steps import StepDataset
from w2sr.losses import sft_loss
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment

LOSS_ATOL = 2e-6
"""A loss near 4.5: 8 float32 ulps (4.8e-7 each) for sums in another order."""
GRAD_ATOL = 2e-6
"""Gradients of up to 0.5 are sums over 145 tokens, whose order follows the rows; float32 rounds each to 3e-8."""

VOCAB = 53
LENGTHS = [61, 5, 23, 17, 3, 36]
"""145 tokens with 38 loss tokens spread unevenly: long traces carry few of them, short ones many."""
NUM_LOSS = [4, 4, 2, 15, 2, 11]

Gradients = dict[str, Tensor]


def fresh_policy() -> Policy:
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return new_policy(config)


@cache
def segments() -> list[Segment]:
    rng = np.random.default_rng(13)
    made = []
    for number, (length, num_loss) in enumerate(zip(LENGTHS, NUM_LOSS, strict=True)):
        input_ids = rng.integers(0, VOCAB, length)
        labels = np.append(input_ids[1:], IGNORE_INDEX)
        labels[: length - 1 - num_loss] = IGNORE_INDEX
        made.append(Segment(f"t{number}", input_ids, labels))
        assert made[-1].num_loss_tokens == num_loss
    return made


def accumulated(policy: Policy, rows: list[PackedBatch], num_loss_tokens: int) -> tuple[float, Gradients]:
    """Loss and gradients after a backward pass of each row, as the training step does it."""
    policy.zero_grad()
    loss = 0.0
    for row in rows:
        row_loss = sft_loss(policy(row, reduction="sum"), num_loss_tokens)
        row_loss.backward()
        loss += row_loss.item()
    return loss, {name: parameter.grad.clone() for name, parameter in policy.lm.named_parameters()}


@cache
def by_hand() -> tuple[float, Gradients]:
    """One trace after another through transformers' own attention; the sum over the step, divided once."""
    policy = fresh_policy()
    lm = AutoModelForCausalLM.from_config(policy.lm.config, attn_implementation="eager")
    lm.load_state_dict(policy.lm.state_dict())
    total = torch.zeros(())
    for segment in segments():
        logits = lm(input_ids=torch.tensor(segment.input_ids)[None]).logits[0]
        total = total + F.cross_entropy(
            logits, torch.tensor(segment.labels), ignore_index=IGNORE_INDEX, reduction="sum"
        )
    loss = total / sum(NUM_LOSS)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in lm.named_parameters()}


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=LOSS_ATOL, rel=0)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=GRAD_ATOL, rtol=0, msg=name)


def steps(max_tokens: int, rank: int = 0, world_size: int = 1, pad_rows: bool = False) -> StepDataset:
    return StepDataset(
        segments(),
        seed=3,
        max_tokens=max_tokens,
        step_sequences=len(LENGTHS),
        step_tokens=None,
        window=1,
        rank=rank,
        world_size=world_size,
        pad_rows=pad_rows,
    )


@pytest.mark.parametrize(
    ("max_tokens", "num_rows", "pad_rows"), [(145, 1, False), (84, 2, True), (64, 3, False), (61, 3, True)]
)
def test_every_split_into_rows_gives_the_loops_loss_and_gradient(
    max_tokens: int, num_rows: int, pad_rows: bool
) -> None:
    step = steps(max_tokens, pad_rows=pad_rows)[0]
    assert len(step.rows) == num_rows and step.num_loss_tokens == sum(NUM_LOSS) == 38
    assert_same(accumulated(fresh_policy(), step.rows, step.num_loss_tokens), by_hand())


def test_one_trace_a_row_gives_the_loops_loss_and_gradient() -> None:
    rows = [pack_row([segment]) for segment in segments()]
    assert_same(accumulated(fresh_policy(), rows, sum(NUM_LOSS)), by_hand())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_sum_over_ranks_gives_the_loops_loss_and_gradient(world_size: int) -> None:
    """3 rows: on 2 ranks one of them, and on 4 ranks one, has a row that is only padding."""
    parts = [steps(64, rank, world_size)[0] for rank in range(world_size)]
    assert {part.num_loss_tokens for part in parts} == {38}, "every rank divides by the whole step"
    assert len({len(part.rows) for part in parts}) == 1, "equally many rows"
    assert sum(not part.trace_ids for part in parts) == (world_size == 4)
    found = [accumulated(fresh_policy(), part.rows, part.num_loss_tokens) for part in parts]
    loss = sum(rank_loss for rank_loss, _ in found)
    gradients = {name: sum((grads[name] for _, grads in found), torch.zeros(())) for name in found[0][1]}
    assert_same((loss, gradients), by_hand())


def test_a_mean_of_means_is_something_else() -> None:
    """The case is interesting: the mean of the rows' means, as the authors take it, misses by far more."""
    _, gradients = by_hand()
    policy = fresh_policy()
    rows = steps(64)[0].rows
    for row in rows:
        own = int((row.labels != IGNORE_INDEX).sum())
        (sft_loss(policy(row), own) / len(rows)).backward()
    worst = max(
        float((parameter.grad - gradients[name]).abs().max()) for name, parameter in policy.lm.named_parameters()
    )
    assert worst > 1000 * GRAD_ATOL, worst


@pytest.mark.parametrize("max_tokens", [64, 145])
def test_the_packed_loss_curve_is_the_unpacked_one(max_tokens: int) -> None:
    """5 steps of SGD, packed or one trace a row; the curve falls, so each step's weights are part of the test."""

    def curve(rows: list[PackedBatch]) -> list[float]:
        policy = fresh_policy()
        losses = []
        for _ in range(5):
            loss, _ = accumulated(policy, rows, sum(NUM_LOSS))
            losses.append(loss)
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter -= 0.1 * parameter.grad
        return losses

    packed, unpacked = curve(steps(max_tokens)[0].rows), curve([pack_row([segment]) for segment in segments()])
    assert all(before - after > 0.02 for before, after in pairwise(packed)), packed
    np.testing.assert_allclose(packed, unpacked, rtol=0, atol=5 * LOSS_ATOL)
