"""Packed attention against one segment at a time; no token sees another segment or the future."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from w2sr.attention import group_segments, plan_grid
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.types import IGNORE_INDEX, Segment

FLOAT32_ATOL = 2e-5
"""Different summation orders of float32 products of length 48 and less."""

VOCAB = 61


def tiny(model: str = "qwen2", **changes: object) -> Policy:
    torch.manual_seed(3)
    config = {"qwen2": Qwen2Config, "llama": LlamaConfig}[model](
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        **changes,
    )
    return new_policy(config)


def segments(lengths: list[int], seed: int = 5) -> list[Segment]:
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        input_ids = rng.integers(0, VOCAB, length)
        labels = np.append(input_ids[1:], IGNORE_INDEX)
        labels[: length // 3] = IGNORE_INDEX
        made.append(Segment(f"s{number}", input_ids, labels))
    return made


def alone(policy: Policy, segment: Segment) -> torch.Tensor:
    """The same model through transformers' own eager attention, one segment, full logits."""
    lm = AutoModelForCausalLM.from_config(policy.lm.config, attn_implementation="eager")
    lm.load_state_dict(policy.lm.state_dict())
    logits = lm(input_ids=torch.tensor(segment.input_ids)[None]).logits[0]
    labels = torch.tensor(segment.labels)
    picked = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels == IGNORE_INDEX, 0.0, picked)


@pytest.mark.parametrize("model", ["qwen2", "llama"])
def test_packed_logprobs_equal_each_segment_alone(model: str) -> None:
    policy, parts = tiny(model), segments([7, 31, 2, 19, 1, 300])
    packed = policy(pack_row(parts, pad_to=370))
    expected = torch.cat([alone(policy, part) for part in parts])
    assert (packed[360:] == 0).all()
    torch.testing.assert_close(packed[:360], expected, atol=FLOAT32_ATOL, rtol=0)


def test_packed_gradient_equals_each_segment_alone() -> None:
    policy, parts = tiny(), segments([7, 31, 2, 19])
    policy(pack_row(parts)).sum().backward()
    packed = {name: p.grad.clone() for name, p in policy.lm.named_parameters()}
    reference = AutoModelForCausalLM.from_config(policy.lm.config, attn_implementation="eager")
    reference.load_state_dict(policy.lm.state_dict())
    for part in parts:
        logits = reference(input_ids=torch.tensor(part.input_ids)[None]).logits[0]
        (-F.cross_entropy(logits, torch.tensor(part.labels), ignore_index=IGNORE_INDEX, reduction="sum")).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=2e-4, rtol=1e-4, msg=name)


def test_no_token_sees_another_segment_or_the_future() -> None:
    policy, parts = tiny(), segments([12, 20, 9])
    before = policy.hidden(*_call(policy, parts))
    changed = [parts[0], Segment("x", parts[1].input_ids.copy(), parts[1].labels), parts[2]]
    changed[1].input_ids[15] = (changed[1].input_ids[15] + 1) % VOCAB
    after = policy.hidden(*_call(policy, changed))
    moved = (before != after).any(-1).nonzero()[:, 0].tolist()
    # segment 1 lies at 12..31; its token 15 is row position 27: 27..31 may move and nothing else
    assert moved == [27, 28, 29, 30, 31]


def _call(policy: Policy, parts: list[Segment]) -> tuple[object, ...]:
    from w2sr.attention import packed_layout

    batch = pack_row(parts)
    return batch.input_ids, batch.position_ids, packed_layout(batch, "sdpa")


def test_a_row_without_labels_has_zero_gradient_not_none() -> None:
    policy = tiny()
    policy(pack_row([])).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


def test_every_token_has_one_cell_of_its_own_segment() -> None:
    bounds = torch.tensor([0, 5, 6, 200, 207], dtype=torch.int32)
    grid = plan_grid(bounds)
    assert torch.equal(grid.gather[grid.scatter], torch.arange(207))
    assert sum(s * length for s, length in grid.shapes) == len(grid.gather)


def test_like_lengths_share_a_group_and_unlike_ones_do_not() -> None:
    lengths = [1000, 40, 990, 35, 30]
    assert group_segments(lengths) == [[0, 2], [1, 3, 4]]


def test_a_model_that_wants_dropout_is_refused_by_the_attention() -> None:
    from w2sr.attention import packed_attention

    q = torch.zeros(1, 2, 3, 4)
    layout = _call(tiny(), segments([3]))[2]
    with pytest.raises(ValueError, match=r"attention dropout 0.1"):
        packed_attention(torch.nn.Module(), q, q, q, None, 0.5, dropout=0.1, layout=layout)


def test_an_engine_that_is_not_there_is_named() -> None:
    policy = tiny()
    policy.attention = "flash"
    with pytest.raises(ValueError, match=r"attention=flash cannot run on device 'cpu' here; available: sdpa"):
        policy(pack_row(segments([4])))
