"""Rows whose segments share their prompts against the same segments one at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3Config

from w2sr import attention
from w2sr.attention import engines
from w2sr.attention.engines import Scores
from w2sr.groups import pack_sharing
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment

ATOL = 2e-5
"""Different summation orders of float32 products of length 48 and less, in log-probabilities and gradients near 1."""

VOCAB = 29
NUM_SHARED = [6, 6, 6, 6, 0]


def policy() -> Policy:
    torch.manual_seed(3)
    return new_policy(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            head_dim=8,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )


def segments() -> list[Segment]:
    """Three share six tokens and go on for 9, 1 and 5; another prompt is as long; one has none."""
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, VOCAB, 6)
    made = []
    for number, (begin, length) in enumerate([(prompt, 9), (prompt[::-1], 7), (prompt, 2), (prompt, 5), ([], 4)]):
        input_ids = np.concatenate([begin, rng.integers(0, VOCAB, length)]).astype(np.int64)
        labels = np.append(input_ids[1:], IGNORE_INDEX)
        labels[: len(begin)] = IGNORE_INDEX
        made.append(Segment(f"s{number}", input_ids, labels))
    return made


def weighted(model: Policy, batch: PackedBatch, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the labels, and the gradients of their weighted sum."""
    logprobs = model(batch)[batch.labels != IGNORE_INDEX]
    return logprobs.detach(), list(torch.autograd.grad((weights * logprobs).sum(), list(model.parameters())))


def check_against_each_alone(model: Policy, shared: PackedBatch) -> None:
    parts = segments()
    counts = [part.num_loss_tokens for part in parts]
    weights = torch.linspace(-1, 1, sum(counts)).split(counts)
    logprobs, gradients = weighted(model, shared, torch.cat(weights))
    alone = [weighted(model, pack_row([part]), weight) for part, weight in zip(parts, weights, strict=True)]
    torch.testing.assert_close(logprobs, torch.cat([part for part, _ in alone]), atol=ATOL, rtol=0)
    for number, gradient in enumerate(gradients):
        expected = torch.stack([of_part[number] for _, of_part in alone]).sum(0)
        torch.testing.assert_close(gradient, expected, atol=ATOL, rtol=ATOL)


def test_logprobs_and_gradients_are_those_of_each_segment_alone() -> None:
    shared = pack_sharing(segments(), NUM_SHARED)
    assert len(shared.input_ids) == sum(map(len, segments())) - 2 * 6, "the prompt of three stands once"
    check_against_each_alone(policy(), shared)


def test_engines_that_take_bounds_get_the_segments_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loop over segments in the place of torch's CUDA kernel."""

    def loop(query: Tensor, key: Tensor, value: Tensor, packed: attention.Packed, scores: Scores) -> Tensor:
        parts = []
        for start, end in pairwise(packed.cu_seqlens.tolist()):
            q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
            parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scores.scaling, enable_gqa=True))
        return torch.cat(parts, 1).transpose(0, 1)

    monkeypatch.setattr(engines, "_varlen", loop)
    monkeypatch.setattr(Policy, "engine", lambda self: "varlen")
    check_against_each_alone(policy(), pack_sharing(segments(), NUM_SHARED))


def test_a_row_in_which_nothing_is_equal_is_the_ordinary_one() -> None:
    parts = segments()[:2]
    for ours, theirs in zip(pack_sharing(parts, NUM_SHARED[:2]), pack_row(parts), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
