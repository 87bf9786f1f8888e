"""Importance weights against the mismatch of sampler and trainer.

A sampler with other kernels, another precision or stale weights draws tokens from π_sampler, while the loss takes them
for draws of π_old, the trainer's policy at the start of the round. Each token's loss is multiplied by w = π_old /
π_sampler, which has no gradient, and is bounded in one of two ways.

- `truncate`, min(w, C): truncated importance sampling (TIS: Yao et al., "Your Efficient RL Framework Secretly Brings
  You Off-Policy RL Training", 2025; there a token at a time, C = 2).
- `mask`, w inside [1/C, C] and else 0: what is that far off is not learned from. By tokens it is IcePop (arXiv
  2510.18855, there with [0.5, 5]); by sequences masked importance sampling (MIS: Liu et al., "When Speed Kills
  Stability", 2025, there with the upper bound alone).

The weight of a sequence is the *product* over its rollout's tokens, as in MIS: that is the importance weight of the
rollout, and it grows with length, so that a long rollout is limited sooner. The geometric mean, which does not, is a
measure of how far the two are apart, not a weight; it is not here. Denominators do not change when a token is masked:
they are known before the first backward, and are the same for every split of the step.

Legend: T packed tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from w2sr.losses.objective import Correction
from w2sr.losses.surrogates import segment_sums


def importance_weights(
    old_logprobs_T: Tensor, rollout_logprobs_T: Tensor, segments_T: Tensor, counted_T: Tensor, correction: Correction
) -> tuple[Tensor, Tensor]:
    """Factor of each token's loss, [T], and whether its limit changed it, bool [T]. No input has a gradient.

    Args:
        old_logprobs_T: of the sampled tokens, by the trainer's policy at the start of the round.
        rollout_logprobs_T: as sampled.
        segments_T: int64, the segment of each token.
        counted_T: bool, the loss tokens; a sequence's weight is the product over these.
        correction: kind, level and limit.

    >>> old, sampled = torch.tensor([-1.0, -1.0]), torch.tensor([-1.25, -3.0])
    >>> where = torch.tensor([0, 0]), torch.tensor([True, True])
    >>> [x.tolist() for x in importance_weights(old, sampled, *where, Correction("truncate"))]
    [[1.2840254306793213, 2.0], [False, True]]
    >>> [x.tolist() for x in importance_weights(old, sampled, *where, Correction("mask"))]
    [[1.2840254306793213, 0.0], [False, True]]
    """
    log_w_T = old_logprobs_T - rollout_logprobs_T
    if correction.kind == "none":
        return torch.ones_like(log_w_T), torch.zeros_like(counted_T)
    if correction.level == "sequence":
        log_w_T = segment_sums(log_w_T.masked_fill(~counted_T, 0.0), segments_T)
    bound = math.log(correction.limit)
    if correction.kind == "truncate":
        return log_w_T.clamp(max=bound).exp(), log_w_T > bound
    outside_T = log_w_T.abs() > bound
    return log_w_T.masked_fill(outside_T, -math.inf).exp(), outside_T
