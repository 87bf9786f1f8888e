"""Advantages in numbers, and exact zeros where a group has nothing to tell."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from w2sr.advantages import AdvantageRule, group_advantages

RULES = [AdvantageRule(*pair) for pair in product(("mean", "leave_one_out"), ("group_std", "batch_std", "none"))]


def advantages(rewards: list[list[float]], *rule: Any) -> list[list[float]]:
    return group_advantages(np.array(rewards), AdvantageRule(*rule)).tolist()


def test_the_baselines_in_numbers() -> None:
    """Mean 0.25: 0.75 and −0.25. Without itself the right one is compared with 0, the wrong ones with 1/3."""
    rewards = [[1.0, 0.0, 0.0, 0.0]]
    assert advantages(rewards, "mean", "none") == [[0.75, -0.25, -0.25, -0.25]]
    assert advantages(rewards, "leave_one_out", "none")[0] == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_the_scales_in_numbers() -> None:
    """Group 1 has squares 0.75² + 3·0.25² = 0.75 over 3: std 0.5. All eight rewards have mean 3/8: squares
    3·(5/8)² + 5·(3/8)² = 1.875 over 7."""
    rewards = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    assert advantages(rewards, "mean", "group_std", 0.0)[0] == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert advantages(rewards, "mean", "group_std", 0.25)[0] == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    batch = math.sqrt(1.875 / 7)
    assert advantages(rewards, "mean", "batch_std", 0.0)[0] == pytest.approx([0.75 / batch, *[-0.25 / batch] * 3])
    assert advantages(rewards, "mean", "batch_std", 0.0)[1] == pytest.approx([-0.5 / batch, 0.5 / batch] * 2)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.baseline}-{rule.scale}")
def test_all_against_a_loop(rule: AdvantageRule) -> None:
    rewards_NG = np.random.default_rng(4).choice([0.0, 0.1, 1.0], (6, 5))
    everything = list(rewards_NG.ravel())
    for group, found in zip(rewards_NG, group_advantages(rewards_NG, rule), strict=True):
        over = {"group_std": list(group), "batch_std": everything}.get(rule.scale)
        scale = 1.0 if over is None else np.sqrt(sum((r - np.mean(over)) ** 2 for r in over) / (len(over) - 1)) + 1e-4
        for place, reward in enumerate(group):
            others = [r for other, r in enumerate(group) if other != place or rule.baseline == "mean"]
            assert found[place] == pytest.approx((reward - sum(others) / len(others)) / scale)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("reward", [0.1, 1.0, -0.7, 0.0])
@pytest.mark.parametrize("rule", [*RULES, AdvantageRule(epsilon=0.0), AdvantageRule(scale="batch_std", epsilon=0.0)])
def test_equal_rewards_are_exact_zeros(rule: AdvantageRule, reward: float, dtype: Any) -> None:
    """The mean of three times 0.1 is 0.10000000000000002, and the deviation is no better."""
    alone = group_advantages(np.full((2, 3), reward, dtype=dtype), rule)
    beside_another = group_advantages(np.array([[reward] * 3, [0.0, 1.0, 2.0]], dtype=dtype), rule)
    for group in (*alone, beside_another[0]):
        assert group.tolist() == [0, 0, 0] and not np.signbit(group).any()
    assert beside_another[1].any() and beside_another.dtype == np.float64


def test_two_groups_of_different_equal_rewards_are_zeros_too() -> None:
    assert not group_advantages(np.array([[0.1] * 3, [0.7] * 3]), AdvantageRule(scale="batch_std")).any()


def test_no_groups_have_no_advantages() -> None:
    assert group_advantages(np.empty((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.baseline}-{rule.scale}")
def test_a_group_of_one_is_refused(rule: AdvantageRule) -> None:
    rule.check(2)
    with pytest.raises(ValueError, match=f"group_size=1; .*baseline={rule.baseline}, advantage.scale={rule.scale}"):
        rule.check(1)


def test_rewards_that_are_no_numbers_are_our_mistake() -> None:
    with pytest.raises(AssertionError):
        group_advantages(np.array([[math.nan, 1.0]]))


@pytest.mark.parametrize("epsilon", [-1e-4, math.nan, math.inf])
def test_an_epsilon_that_is_no_small_number_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"advantage\.epsilon="):
        AdvantageRule(epsilon=epsilon)
