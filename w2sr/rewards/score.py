"""Groups of rollouts to their rewards: a weighted sum whose parts are kept apart.

Legend: N groups, G rollouts of a group.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from w2sr.types import Rollout, RolloutGroup

Reward = Callable[[Rollout], float]
"""A pure function of one rollout. Higher is better; where all rewards of a group are equal, it teaches nothing."""

SHOWN_CHARS = 60
"""So much of a completion stands in a message."""


@dataclass(frozen=True)
class RewardTerm:
    """One term of the reward of a rollout: `weight` times what `reward` says.

    Attributes:
        reward: a class with its arguments (`class_path: w2sr.rewards.Correct`, `init_args: {...}`), or the import path
            of a function that takes a `Rollout` and returns a number.
        weight: its factor in the sum; 0 only watches it.
    """

    reward: Callable[[Rollout], float]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight={self.weight} of a reward is no finite number. Set it to one, such as 1.0.")


@dataclass(frozen=True, eq=False)
class Rewards:
    """The rewards of N groups, all [N, G] float64.

    Attributes:
        total: Σ weight · part, the reward that advantages are made of.
        parts: name → what that reward alone says, without its weight.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]

    @staticmethod
    def concat(pieces: Sequence[Rewards]) -> Rewards:
        """The rewards of all groups of the pieces, one after another. There is at least one, with equal names."""
        names = pieces[0].parts
        assert all(piece.parts.keys() == names.keys() for piece in pieces), "pieces come from the same terms"
        return Rewards(
            np.concatenate([piece.total for piece in pieces]),
            {name: np.concatenate([piece.parts[name] for piece in pieces]) for name in names},
        )


def score_groups(groups: Sequence[RolloutGroup], terms: Mapping[str, RewardTerm]) -> Rewards:
    """What every rollout of the groups earns.

    Args:
        groups: N groups of equally many rollouts.
        terms: name → term, at least one.

    Raises:
        ValueError: there is no term; a reward raises, returns no number, or one that is not finite. The message names
            the reward, the rollout and the beginning of its completion.
    """
    if not terms:
        raise ValueError(
            "model.rewards has no term, so no rollout is better than another. Name one: "
            "--model.rewards='{correct: {reward: {class_path: w2sr.rewards.Correct}}}', or leave the key out."
        )
    sizes = {len(group.rollouts) for group in groups}
    assert len(sizes) == 1, f"groups are of one size, not {sorted(sizes)}"
    parts = {
        name: np.array([[_ask(name, term.reward, rollout) for rollout in group.rollouts] for group in groups])
        for name, term in terms.items()
    }
    total_NG = np.zeros((len(groups), *sizes))
    for name, term in terms.items():
        total_NG += term.weight * parts[name]
    return Rewards(total_NG, parts)


def _ask(name: str, reward: Reward, rollout: Rollout) -> float:
    try:
        value = reward(rollout)
    except Exception as error:
        raise ValueError(
            f"{_where(name, rollout)} It raised {type(error).__name__}: {error}. Correct that function; "
            "W2SR_TRACEBACK=1 shows the line."
        ) from error
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{_where(name, rollout)} It returned {value!r:.60} ({type(value).__name__}), no float.")
    if not math.isfinite(value):
        raise ValueError(
            f"{_where(name, rollout)} It returned {float(value)}, which would make every weight of the policy NaN. "
            "Return a finite number."
        )
    return float(value)


def _where(name: str, rollout: Rollout) -> str:
    completion = rollout.completion
    begin = completion.text[:SHOWN_CHARS] + ("…" if len(completion.text) > SHOWN_CHARS else "")
    return (
        f"The reward model.rewards.{name} failed on sample {completion.sample_index} of problem "
        f"'{completion.problem_id}', whose completion begins {begin!r}."
    )
