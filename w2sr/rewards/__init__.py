"""Rollout → number: what reinforcement learning makes more of. A reward is any callable of that kind."""

from w2sr.rewards.rules import Correct, Format, Length, Overlong, Repetition
from w2sr.rewards.score import Reward, Rewards, RewardTerm, score_groups

__all__ = [
    "Correct",
    "Format",
    "Length",
    "Overlong",
    "Repetition",
    "Reward",
    "RewardTerm",
    "Rewards",
    "score_groups",
]
