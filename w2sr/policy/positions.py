"""Rotary embeddings that depend on the length of the row: dynamic NTK and longrope.

transformers computes them once for a whole row, from its largest position. Packed, one long segment would change the
frequencies of all others. Up to a limit they do not depend on the length at all.

Legend: T packed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from w2sr.attention import Decode, Layout, Packed, Prefill


@dataclass(frozen=True)
class LengthRule:
    """Up to which length a model's positions do not depend on it, and whether longer segments have their own.

    Attributes:
        rope_type: as in the model's config.json.
        limit: tokens of a segment.
        per_segment: longer segments of a packed row get the frequencies of their own length.
    """

    rope_type: str
    limit: int
    per_segment: bool

    def check(self, layout: Layout) -> None:
        """Raises ValueError where the layout has a longer segment whose positions would be wrong."""
        if isinstance(layout, Packed):
            longest = layout.max_seqlen
            if self.per_segment and not layout.shares_prompts:
                return
        else:
            longest = layout.cache.capacity if isinstance(layout, Decode | Prefill) else 0
        if longest > self.limit:
            raise ValueError(
                f"A segment of {longest:,} tokens: with rope_type={self.rope_type} this model's positions depend on "
                f"the length beyond {self.limit:,} tokens, also those of tokens before. Keep rows that share prompts, "
                "and prompts with their completions, within that"
                + ("." if self.per_segment else ", and traces too (data.max_tokens).")
            )


def length_rule(lm: PreTrainedModel) -> LengthRule | None:
    """The rule of a causal LM, or None where no position depends on a length. Longrope is made to work by segment."""
    config = lm.config.get_text_config()
    types = {kind for module in lm.modules() for kind in _rope_types(module)}
    if dynamic := sorted(kind for kind in types if "dynamic" in kind):
        return LengthRule(dynamic[0], int(config.max_position_embeddings), per_segment=False)
    if "longrope" not in types:
        return None
    limit = min(
        int(parameters["original_max_position_embeddings"])
        for parameters in (config.rope_parameters, *config.rope_parameters.values())
        if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope"
    )
    for module in lm.modules():
        if "longrope" in _rope_types(module):
            _by_segment(module, limit)
    return LengthRule("longrope", limit, per_segment=True)


def _rope_types(module: nn.Module) -> list[str]:
    """Of a rotary embedding, one or one for each kind of layer; none of another module."""
    types: Any = getattr(module, "rope_type", [])
    return [types] if isinstance(types, str) else list(types.values() if isinstance(types, dict) else types)


def _by_segment(rotary: nn.Module, limit: int) -> None:
    """Has a rotary embedding computed for segments within `limit` and for longer ones apart, and each token take its
    own. It switches by the largest position, so the short ones are computed without those of long segments."""
    whole_row: Any = rotary.forward

    def forward(x: Tensor, position_ids: Tensor, *given: Any, **named: Any) -> tuple[Tensor, ...]:
        long_1T = in_long_segments(position_ids[0], limit)[None]
        rows = [whole_row(x, position_ids, *given, **named)]
        if not long_1T.any() or long_1T.all():
            return rows[0]
        rows.append(whole_row(x, position_ids.masked_fill(long_1T, 0), *given, **named))
        return tuple(torch.where(long_1T[..., None], ours, short) for ours, short in zip(*rows, strict=True))

    rotary.forward = forward


def in_long_segments(position_ids_T: Tensor, limit: int) -> Tensor:
    """Which tokens of a packed row lie in segments of more than `limit` tokens, bool [T].

    >>> in_long_segments(torch.tensor([0, 1, 0, 1, 2, 0]), limit=2).tolist()
    [False, False, True, True, True, False]
    """
    segment_T = (position_ids_T == 0).cumsum(0)
    return (segment_T.bincount() > limit)[segment_T]
