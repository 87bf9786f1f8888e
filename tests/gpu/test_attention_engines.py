"""Every attention engine that a GPU can run, against grouped SDPA on the CPU in float32. Skipped without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3Config

from w2sr.attention import available_engines, packed_layout
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BFLOAT16_ATOL = 0.15
"""Two layers in bfloat16 (8 bits) against float32: logprobs near -4 step by 0.03."""

ENGINES = available_engines(torch.device("cuda")) if torch.cuda.is_available() else ["sdpa"]
VOCAB = 97


def policy() -> Policy:
    torch.manual_seed(0)
    return new_policy(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
        )
    )


def row(changed: int | None = None) -> PackedBatch:
    rng = np.random.default_rng(1)
    parts = []
    for number, length in enumerate([40, 3, 129, 17]):
        ids = rng.integers(0, VOCAB, length)
        parts.append(Segment(str(number), ids, np.append(ids[1:], IGNORE_INDEX)))
    batch = pack_row(parts, pad_to=200)
    if changed is not None:
        batch.input_ids[changed] = (batch.input_ids[changed] + 1) % VOCAB
    return batch


def on_gpu(batch: PackedBatch) -> PackedBatch:
    return PackedBatch(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in batch))


@pytest.mark.parametrize("engine", ENGINES)
def test_logprobs_equal_the_cpu(engine: str) -> None:
    reference = policy()
    expected = reference(row())
    moved = policy().cuda().bfloat16()
    moved.attention = engine
    torch.testing.assert_close(moved(on_gpu(row())).cpu(), expected, atol=BFLOAT16_ATOL, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_token_sees_another_segment_or_the_future(engine: str) -> None:
    moved = policy().cuda().bfloat16()
    before, after = (
        moved.hidden(batch.input_ids, batch.position_ids, packed_layout(batch, engine))
        for batch in (on_gpu(row()), on_gpu(row(changed=100)))
    )
    touched = (before != after).any(-1).nonzero()[:, 0].tolist()
    # token 100 lies in the third segment, 43..171
    assert touched and min(touched) == 100 and max(touched) <= 171


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_equal_the_cpu(engine: str) -> None:
    reference, moved = policy(), policy().cuda().bfloat16()
    moved.attention = engine
    reference(row()).sum().backward()
    moved(on_gpu(row())).sum().backward()
    for (name, ours), theirs in zip(moved.named_parameters(), reference.parameters(), strict=True):
        scale = theirs.grad.abs().max()
        assert (ours.grad.cpu().float() - theirs.grad).abs().max() <= 0.1 * scale, name
