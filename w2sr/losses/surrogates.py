"""What a token adds to the loss of the policy: clipped ratios times advantages.

Legend: T packed tokens. ρ = π_θ / π_old, A advantage, sg stops the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 4.9e8: far beyond every clip, and finite in float32 also when it is summed, so that 0 · ρ is 0."""


def ratio(log_ratio_T: Tensor) -> Tensor:
    """exp of a difference of log-probabilities, [T]; beyond exp(±20) it stays at that value, with a zero gradient.

    >>> ratio(torch.tensor([0.0, 1000.0])).isfinite().tolist()
    [True, True]
    """
    return log_ratio_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_loss(
    log_ratio_T: Tensor, advantages_T: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """−min(ρ·A, clip(ρ, 1 − clip_low, 1 + clip_high)·A) of each token, [T].

    Sources: PPO, arXiv 1707.06347; GRPO, 2402.03300; clip_high > clip_low is DAPO's clip-higher, 2503.14476. The
    gradient is zero where A > 0 and ρ is above the clip, or A < 0 and ρ below it; on the other side nothing is clipped,
    so that a bad token that became likelier is still pushed down. `dual_clip` c bounds that push:
    −max(min(…), c·A) where A < 0 (Ye et al., 1912.09729).

    >>> log_ratios, advantages = torch.tensor([0.5, 1.0, 1.5, 5.0]).log(), torch.tensor([-1.0, -1.0, 1.0, -1.0])
    >>> [round(x, 4) for x in clipped_loss(log_ratios, advantages, 0.2, 0.28, dual_clip=3.0).tolist()]
    [0.8, 1.0, -1.28, 3.0]
    """
    ratio_T = ratio(log_ratio_T)
    kept_T = ratio_T if dual_clip is None else ratio_T.clamp(max=dual_clip)
    # for A > 0 the clip is below c, so the bound changes nothing there
    return -torch.minimum(kept_T * advantages_T, ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantages_T)


def cispo_loss(
    logprobs_T: Tensor, log_ratio_T: Tensor, advantages_T: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """−sg[clip(ρ, 1 − clip_low, 1 + clip_high)]·A·log π_θ of each token, [T]. Source: MiniMax-M1, arXiv 2506.13585.

    No token loses its gradient: the clip bounds how much it counts.

    >>> cispo_loss(torch.tensor([-2.0]), torch.tensor([9.0]), torch.tensor([1.0]), 1.0, 4.0).item()
    10.0
    """
    return -ratio(log_ratio_T.detach()).clamp(1 - clip_low, 1 + clip_high) * advantages_T * logprobs_T


def sequence_log_ratio(log_ratio_T: Tensor, segments_T: Tensor, counted_T: Tensor) -> Tensor:
    """GSPO's log ratio at each token, [T]: the mean of log ρ over the loss tokens of its segment.

    The value is one for a whole rollout. The gradient is the token's own, as in GSPO-token: s·π / sg(π) with s the
    sequence's ratio under sg. Summed over a rollout whose tokens weigh alike, it is the gradient of s, because
    ∇s = s·(1/|o|)·Σ_t ∇log π_t; and a token that a correction leaves out has none. Source: arXiv 2507.18071, §4.

    Args:
        log_ratio_T: log ρ of each token.
        segments_T: int64, the segment of each token.
        counted_T: bool, the loss tokens.

    >>> segments, counted = torch.tensor([0, 0, 0, 1]), torch.tensor([False, True, True, True])
    >>> sequence_log_ratio(torch.tensor([9.0, 1.0, 3.0, 5.0]), segments, counted).tolist()
    [2.0, 2.0, 2.0, 5.0]
    """
    total_T = segment_sums(log_ratio_T.detach() * counted_T, segments_T)
    number_T = segment_sums(counted_T.to(log_ratio_T.dtype), segments_T)
    # x - sg(x) is 0 with the gradient of x
    return total_T / number_T.clamp(min=1) + (log_ratio_T - log_ratio_T.detach())


def segment_sums(values_T: Tensor, segments_T: Tensor) -> Tensor:
    """The sum over each token's segment, at each token, [T].

    >>> segment_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1])).tolist()
    [3.0, 3.0, 4.0]
    """
    # a row has at most as many segments as tokens; asking how many would make a GPU wait
    return torch.zeros_like(values_T).index_add(0, segments_T, values_T)[segments_T]
