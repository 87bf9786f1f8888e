"""Rewards of groups to advantages: how much better a rollout is than its siblings.

Legend: N problems (groups) of a round, G group size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class AdvantageRule:
    """How rewards become advantages: (reward − baseline) / (scale + ε).

    Attributes:
        baseline: `mean` of the group (GRPO, arXiv 2402.03300), or `leave_one_out`: the mean of the siblings alone
            (RLOO, 2402.14740), which is the other's advantage times G / (G − 1).
        scale: `group_std`, the standard deviation of the group's rewards (GRPO); `batch_std`, that of all rewards of
            the round, not centred by group (Lite-PPO, 2508.08221), which does not blow up groups that are almost all
            right or all wrong; `none` (Dr. GRPO, 2503.20783). Both deviations divide by the number less one, as TRL
            and verl do.
        epsilon: added to the standard deviation.
    """

    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["group_std", "batch_std", "none"] = "group_std"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(
                f"advantage.epsilon={self.epsilon}; it is added to a standard deviation, so a finite number >= 0."
            )

    def check(self, group_size: int) -> None:
        """Raises ValueError where groups of this size have no advantages."""
        if group_size < 2:
            raise ValueError(
                f"group_size={group_size}; an advantage compares a rollout with its siblings (advantage.baseline="
                f"{self.baseline}, advantage.scale={self.scale}), so a group needs at least 2. Set group_size=8, say."
            )


def group_advantages(rewards_NG: np.ndarray, rule: AdvantageRule = AdvantageRule()) -> np.ndarray:
    """The advantage of every rollout of the round, float64 [N, G]; exactly 0 throughout a group of equal rewards.

    Groups of a round are of one size. All of the round's rewards go in at once: `batch_std` is over all of them.

    >>> group_advantages(np.array([[1.0, 0.0], [0.1, 0.1]]), AdvantageRule(scale="none"))
    array([[ 0.5, -0.5],
           [ 0. ,  0. ]])
    >>> group_advantages(np.array([[1.0, 0.0, 0.0]]), AdvantageRule("leave_one_out", "none"))
    array([[ 1. , -0.5, -0.5]])
    """
    rewards_NG = np.asarray(rewards_NG, dtype=np.float64)
    assert rewards_NG.ndim == 2 and np.isfinite(rewards_NG).all(), "finite rewards [N, G]"
    num_groups, group_size = rewards_NG.shape
    rule.check(group_size)
    if num_groups == 0:
        return rewards_NG
    centred_NG = rewards_NG - rewards_NG.mean(axis=1, keepdims=True)
    if rule.baseline == "leave_one_out":
        centred_NG = centred_NG * (group_size / (group_size - 1))
    # the mean of three times 0.1 is not 0.1, and what is left would be divided by almost nothing
    equal_N1 = (rewards_NG == rewards_NG[:, :1]).all(axis=1, keepdims=True)
    return np.divide(centred_NG, _scale(rewards_NG, rule), out=np.zeros_like(rewards_NG), where=~equal_N1)


def _scale(rewards_NG: np.ndarray, rule: AdvantageRule) -> np.ndarray | float:
    if rule.scale == "none":
        return 1.0
    if rule.scale == "group_std":
        return np.asarray(rewards_NG.std(axis=1, ddof=1, keepdims=True) + rule.epsilon)
    return float(rewards_NG.std(ddof=1)) + rule.epsilon
