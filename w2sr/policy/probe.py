"""Whether packed rows and cached tokens of a policy are what the model itself computes, on a few short segments.

No list of architectures: a model whose layers carry a state across segments, see the future, ignore the layout, or make
something else of the hidden states than `w2sr.policy.heads` says, gives other numbers than its own forward pass.

Legend: T tokens of the row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from w2sr.attention import ATTENTION_NAME, Decode, Prefill, SlotCache, no_mask, packed_layout
from w2sr.packing import boundaries
from w2sr.policy.model import Policy
from w2sr.types import PackedBatch

LENGTHS = (9, 1, 14, 3)
LONGEST = 2
"""Tokens of the segments of the probe, and which one is the longest."""
NUM_DECODED = 2
"""Tokens that are fed one at a time, after a prefill of the tokens before them."""
ROUNDING = {torch.float32: 2**-20, torch.bfloat16: 2**-8}
"""By what share the output of every block is moved to see what rounding does to this model's log-probabilities. For
bfloat16 half a unit in the last place; for float32 sixteen times that, because sums of many terms are rounded often."""
SLACK = 2.0
"""Times that much is allowed. Right random models of 33 architectures, of 2 to 32 layers, differ by 0.1 to 1.4 times as
much; wrong ones by 3 times and more in bfloat16, by 20 times and more in float32."""


class RefusedModel(ValueError):
    """The model would be trained or sampled wrongly."""


@torch.no_grad()
def check_model(policy: Policy) -> None:
    """Compares a policy with its model's own eager forward pass, each segment alone.

    - Packed rows have the model's log-probabilities.
    - Changed last tokens of all segments change no log-probability of other segments or of earlier tokens.
    - A prefill and a few decoded tokens have the model's logits.

    All ranks of a sharded policy must call it. Weights, mode and the state of random generators stay as they are.

    Raises:
        RefusedModel: something differs, with the number and the model's layers.
    """
    with _still(policy), _reach_compared(policy):
        segments = _segments(policy)
        own = [policy.own_logits(segment) for segment in segments]
        allowed = SLACK * _noise(policy, segments[LONGEST], own[LONGEST])
        try:
            _check_row(policy, segments, torch.cat(own), allowed)
            _check_generation(policy, segments, own, allowed)
        except (RefusedModel, torch.OutOfMemoryError):
            raise
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
            raise RefusedModel(f"{describe(policy)} cannot run on packed rows: {error}") from error
    policy.is_checked = True


def describe(policy: Policy) -> str:
    """The model's class and its kinds of layers."""
    types = getattr(policy.lm.config.get_text_config(), "layer_types", None)
    parts = {type(part).__name__ for block in policy.blocks() for part in block.children()}
    kinds = sorted(set(types) if types else {name for name in parts if "Norm" not in name and "Dropout" not in name})
    return f"{type(policy.lm).__name__} (layers: {', '.join(kinds) or 'none that are named'})"


def _noise(policy: Policy, segment: Tensor, own_TV: Tensor) -> float:
    """Root mean square, in nats, by which rounding moves the model's own log-probabilities of a segment."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.get_float32_matmul_precision() == "highest" or policy.device.type == "cpu"
    unit = ROUNDING[torch.float32 if policy.dtype == torch.float32 and exact else torch.bfloat16]

    def move(module: nn.Module, given: Any, out: Any) -> Any:
        hidden, *rest = out if isinstance(out, tuple) else (out,)
        signs = torch.randint(0, 2, hidden.shape, generator=generator).to(hidden.device) * 2 - 1
        moved = hidden + hidden * (signs * unit).to(hidden.dtype)
        return (moved, *rest) if isinstance(out, tuple) else moved

    parts: list[nn.Module] = [*policy.blocks()] or [policy.lm.get_input_embeddings()]
    hooks = [part.register_forward_hook(move) for part in parts]
    try:
        moved_TV = policy.own_logits(segment)
    finally:
        for hook in hooks:
            hook.remove()
    return _rms(moved_TV.log_softmax(-1) - own_TV.log_softmax(-1)) + unit


def _check_row(policy: Policy, segments: list[Tensor], own_TV: Tensor, allowed: float) -> None:
    row, last = _row(segments), torch.tensor(LENGTHS).cumsum(0) - 1
    logprobs_T = policy(row)
    expected_T = own_TV.log_softmax(-1).gather(-1, row.labels[:, None])[:, 0]
    _require(policy, "packed log-probabilities differ from its own", _rms(logprobs_T - expected_T), allowed)
    changed = row.input_ids.clone()
    changed[last] = (changed[last] + 1) % _vocab_size(policy)
    moved_T = (policy(row._replace(input_ids=changed)) - logprobs_T).abs()
    moved_T[last] = 0
    what = "a changed last token moves log-probabilities of earlier tokens or of other segments"
    _require(policy, what, float(moved_T.max()), allowed)


def _check_generation(policy: Policy, segments: list[Tensor], own: list[Tensor], allowed: float) -> None:
    pairs = [(segment, logits) for segment, logits in zip(segments, own, strict=True) if len(segment) > NUM_DECODED]
    prompts = [segment[:-NUM_DECODED] for segment, _ in pairs]
    row, cache = _row(prompts), SlotCache(len(prompts), max(LENGTHS))
    stored = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)
    slots = torch.arange(len(prompts), device=policy.device).repeat_interleave(stored)
    everything = torch.arange(len(row.input_ids), device=policy.device)
    layout = Prefill(packed_layout(row, policy.engine()), cache, everything, slots, row.position_ids)
    found = [policy.next_logits(row.input_ids, row.position_ids, layout, everything)]
    expected = [logits[:-NUM_DECODED] for _, logits in pairs]
    for step in range(NUM_DECODED):
        visible = torch.arange(cache.capacity, device=policy.device) <= stored[:, None]
        tokens = torch.stack([segment[step - NUM_DECODED] for segment, _ in pairs])
        decode = Decode(cache, stored, (visible[:, None, None, :],))
        found.append(policy.next_logits(tokens, stored, decode, slots.unique()))
        expected += [logits[step - NUM_DECODED, None] for _, logits in pairs]
        stored = stored + 1
    apart_TV = torch.cat(found).log_softmax(-1) - torch.cat(expected).log_softmax(-1)
    _require(policy, "logits of generated tokens differ from its own", _rms(apart_TV), allowed)


def _require(policy: Policy, what: str, found: float, allowed: float) -> None:
    if not found <= allowed:  # NaN too
        raise RefusedModel(
            f"{describe(policy)}: {what} by {found:.2g} nats on a few short segments, where rounding explains "
            f"{allowed:.1g}. Training and generation would be wrong. Use a model of docs/models.md. check_model: false "
            "leaves this comparison out, and log and model card say so."
        )


def _rms(apart: Tensor) -> float:
    return float(apart.square().mean().sqrt())


def _segments(policy: Policy) -> list[Tensor]:
    """The same tokens on every rank, from a generator of their own."""
    ids = np.random.default_rng(0).integers(0, _vocab_size(policy), sum(LENGTHS))
    return list(torch.tensor(ids, device=policy.device).split(LENGTHS))


def _row(segments: list[Tensor]) -> PackedBatch:
    """A packed row in which every position has a label, the last ones too."""
    input_ids = torch.cat(segments)
    cu_seqlens = torch.tensor([0, *np.cumsum([len(segment) for segment in segments])], dtype=torch.int32)
    position_ids, max_seqlen = boundaries(cu_seqlens, len(input_ids))
    device = input_ids.device
    return PackedBatch(input_ids, input_ids.roll(-1), position_ids.to(device), cu_seqlens.to(device), max_seqlen)


def _vocab_size(policy: Policy) -> int:
    return min(policy.vocab_size, int(policy.lm.config.get_text_config().vocab_size))


@contextmanager
def _still(policy: Policy) -> Iterator[None]:
    """Inside, no dropout, no compiler, and no trace in the random generators.

    A model for a GPU may be loaded on the CPU first: then the attention engine is the one that CPUs have.
    """
    device, was_training, attention = policy.device, policy.training, policy.attention
    policy.eval()
    policy.attention = "auto" if device.type == "cpu" else attention
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.compiler.set_stance("force_eager"),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        policy.train(was_training)
        policy.attention = attention


@contextmanager
def _reach_compared(policy: Policy) -> Iterator[None]:
    """Refuses layers whose mask reaches less far back than they tell their attention: chunks, windows of masks alone.

    Segments of the probe are shorter than most of them, so they are compared as numbers: inside, a mask is one number.
    """
    attend: Any = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
    device, num_calls = policy.device, 0

    def mask(*_: Any, local_size: int | None = None, **__: Any) -> Tensor:
        return torch.full((1, 1, 1, 1), local_size or 0, device=device)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *given: Any, **named: Any
    ) -> Any:
        nonlocal num_calls
        num_calls += 1
        reach = 0 if attention_mask is None else int(attention_mask.flatten()[0])
        told = named.get("sliding_window") or 0
        if reach != told:
            raise RefusedModel(
                f"{describe(policy)} has a mask that reaches back {reach:,} tokens (0: all) and tells its attention "
                f"{told:,}. Packed rows know only what the attention is told: chunked attention cannot be packed."
            )
        return attend(module, query, key, value, None, *given, **named)

    AttentionInterface.register(ATTENTION_NAME, attention)
    AttentionMaskInterface.register(ATTENTION_NAME, mask)
    try:
        yield
    finally:
        AttentionInterface.register(ATTENTION_NAME, attend)
        AttentionMaskInterface.register(ATTENTION_NAME, no_mask)
    if num_calls == 0:
        raise RefusedModel(f"{describe(policy)} computes attention outside of transformers' AttentionInterface.")
