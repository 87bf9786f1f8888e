"""Rotary embeddings that depend on the length of a row: what is right by segment, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from w2sr.groups import pack_sharing
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.policy.positions import in_long_segments
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import IGNORE_INDEX, SampleRequest, Sampling, Segment

LIMIT = 24
SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def longrope() -> Policy:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(
        **SHAPE, max_position_embeddings=128, original_max_position_embeddings=LIMIT, rope_parameters=rope
    )
    return new_policy(config)


def dynamic() -> Policy:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    return new_policy(LlamaConfig(**SHAPE, max_position_embeddings=LIMIT, rope_parameters=rope))


def segment(length: int, num_prompt_tokens: int = 0) -> Segment:
    ids = np.arange(3, 3 + length) % 61
    labels = np.append(ids[1:], IGNORE_INDEX)
    labels[:num_prompt_tokens] = IGNORE_INDEX
    return Segment(f"s{length}", ids, labels)


@torch.no_grad()
def test_a_long_neighbour_does_not_change_the_frequencies_of_a_short_segment() -> None:
    """`numerics/test_families.py` compares both with the model itself; here is a guard that they would have changed."""
    policy = longrope()
    alone, beside = policy(pack_row([segment(10)])), policy(pack_row([segment(10), segment(LIMIT + 6)]))
    torch.testing.assert_close(beside[:10], alone, atol=1e-6, rtol=0)
    as_long = policy(pack_row([segment(LIMIT + 6)]))[:9] - alone[:9]
    assert as_long.abs().max() > 1e-3, "guard: the same tokens of a longer segment have others"


def test_a_longer_segment_is_refused_where_positions_depend_on_its_length() -> None:
    policy = dynamic()
    policy(pack_row([segment(LIMIT), segment(5)]))
    with pytest.raises(ValueError, match=rf"A segment of 25 tokens: with rope_type=dynamic .* beyond {LIMIT} tokens"):
        policy(pack_row([segment(LIMIT + 1), segment(5)]))


def test_rows_that_share_prompts_stay_within_the_limit() -> None:
    """The tokens of a shared prompt would need the frequencies of two lengths."""
    policy = longrope()
    policy(pack_sharing([segment(LIMIT, 6), segment(LIMIT - 4, 6)], [6, 6]))
    with pytest.raises(ValueError, match="A segment of 25 tokens: with rope_type=longrope"):
        policy(pack_sharing([segment(LIMIT + 1, 6), segment(9, 6)], [6, 6]))


@pytest.mark.parametrize("make", [longrope, dynamic])
def test_generation_stays_within_the_limit(make: Any) -> None:
    policy = make()
    assert policy.max_positions == LIMIT
    generator = EmbeddedGenerator(policy, [62], str)
    request = SampleRequest("p", 0, tuple(range(3, 15)))
    (completion,) = generator.stream([request], Sampling(0.0, 1.0, LIMIT - 12))
    assert len(completion.token_ids) == LIMIT - 12
    with pytest.raises(ValueError, match=rf"needs 25 positions; the model has {LIMIT}"):
        list(generator.stream([request], Sampling(0.0, 1.0, LIMIT - 11)))


def test_tokens_of_long_segments() -> None:
    # segments of 2, 5 and 3 tokens; more than 3 is long
    positions = torch.tensor([0, 1, 0, 1, 2, 3, 4, 0, 1, 2])
    assert in_long_segments(positions, 3).tolist() == [False] * 2 + [True] * 5 + [False] * 3
