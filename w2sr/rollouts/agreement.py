"""Whether two engines wrote the same, and where they differ, whether the model itself was undecided.

Engines add numbers in another order, so logits differ in the last bits, and of two tokens that are almost equally
likely either may win. From there on two right completions have little in common. So a pair is judged at its first
difference, by the model's own log-probabilities of the two tokens that were chosen there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from w2sr.attention import packed_layout
from w2sr.packing import pack_row
from w2sr.policy import Policy
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment

TIE_TOLERANCE = 1e-3
"""Two tokens whose log-probabilities differ by less (in nats) are tied in float32: measured differences between engines
are near 1e-5."""


@dataclass(frozen=True)
class Agreement:
    """Two completions of one prompt.

    `kind` is `same` where all token ids are equal; `tie` where they part at two tokens that the model holds for almost
    equally likely; else `different`. `at` is the position of the first difference, and `gap` the difference of the two
    tokens' log-probabilities in nats, both None where there is none; `gap` is infinite where one ends before the other.
    """

    kind: Literal["same", "tie", "different"]
    at: int | None = None
    gap: float | None = None


def agreement(
    policy: Policy,
    prompt_ids: Sequence[int],
    one: Sequence[int],
    other: Sequence[int],
    tolerance: float = TIE_TOLERANCE,
) -> Agreement:
    """Compares two greedy completions of the same prompt, with `policy` (in eval mode) as the judge of ties."""
    if tuple(one) == tuple(other):
        return Agreement("same")
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if at is None:
        return Agreement("different", min(len(one), len(other)), float("inf"))
    logprobs_V = _next_logprobs(policy, [*prompt_ids, *one[:at]])
    gap = abs(float(logprobs_V[one[at]] - logprobs_V[other[at]]))
    return Agreement("tie" if gap <= tolerance else "different", at, gap)


@torch.no_grad()
def _next_logprobs(policy: Policy, ids: Sequence[int]) -> torch.Tensor:
    """The model's log-probabilities of the token after `ids`, float64 [V]."""
    row = pack_row([Segment("", np.array(ids), np.full(len(ids), IGNORE_INDEX))])
    device = policy.device
    row = PackedBatch(
        row.input_ids.to(device), row.labels, row.position_ids.to(device), row.cu_seqlens.to(device), row.max_seqlen
    )
    hidden = policy.hidden(row.input_ids, row.position_ids, packed_layout(row, policy.engine()))
    return policy.logits(hidden[-1:])[0].log_softmax(-1, dtype=torch.float64)
