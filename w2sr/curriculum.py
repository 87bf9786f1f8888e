"""Which problems are asked next: an endless order, what is known of each problem, and a band of pass rates.

A *pass* goes once through all problems, in an order that is a pure function of (seed, pass, problem id): neither the
order of the file nor the number of ranks changes it. What is asked also depends on what was recorded, so the state of a
stream is its place and its statistics, and a stream that loads it goes on as if it had never stopped.

Legend: N problems, G rollouts of a group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2sr import chance
from w2sr.types import Problem


@dataclass(frozen=True)
class Curriculum:
    """Problems that are too easy or too hard for the policy are asked less often. The defaults ask all alike.

    A group whose rollouts are all right or all wrong teaches nothing, and a problem's last pass rate says how likely
    that is. A problem that was never sampled is always asked.

    Attributes:
        low, high: a problem whose estimated pass rate is in [low, high] is asked in every pass; 0.01 and 0.99 tell the
            problems that were always wrong, or always right, from the others.
        keep_frac: any other problem is asked in a pass with this chance, at least 0.001: the policy changes, and only
            a problem that is asked can show it.
        decay: share of the old estimate in the new one when a problem is sampled again; 0 believes the last group.
    """

    low: float = 0.0
    high: float = 1.0
    keep_frac: float = 0.1
    decay: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1 or not 0.001 <= self.keep_frac <= 1 or not 0 <= self.decay < 1:
            raise ValueError(
                f"data.curriculum needs 0 <= low <= high <= 1, 0.001 <= keep_frac <= 1 and 0 <= decay < 1; it has "
                f"low={self.low}, high={self.high}, keep_frac={self.keep_frac}, decay={self.decay}."
            )

    def wants(self, pass_rate: float, drawn: float) -> bool:
        """Whether a problem is asked: `pass_rate` is NaN where it is unknown, `drawn` uniform in [0, 1).

        >>> band = Curriculum(low=0.1, high=0.9, keep_frac=0.25)
        >>> [band.wants(rate, drawn=0.3) for rate in (0.0, 0.5, 1.0, float("nan"))]
        [False, True, False, True]
        """
        outside = pass_rate < self.low or pass_rate > self.high
        return not outside or drawn < self.keep_frac


@dataclass(frozen=True)
class DynamicSampling:
    """Replaces dead groups by groups of other problems, until the round is full.

    Source: DAPO, arXiv 2503.14476, section 3.2. Not here: more groups than are missing are never sampled.

    Attributes:
        max_batches: so many times a round samples at most, the first time included.
    """

    max_batches: int = 10

    def __post_init__(self) -> None:
        if self.max_batches < 1:
            raise ValueError(f"model.dynamic_sampling.max_batches={self.max_batches} must be at least 1.")


def is_dead(rewards_G: np.ndarray) -> bool:
    """Whether all rewards of a group are equal, so that every advantage is 0.

    >>> is_dead(np.array([1.0, 1.0, 1.0])), is_dead(np.array([1.0, 0.0, 1.0]))
    (True, False)
    """
    return bool((rewards_G == rewards_G[0]).all())


class ProblemStream:
    """An endless order of problems, as indices into `problems`, and what is known of each.

    Args:
        problems: N of them, with different ids.
        seed: of the order.
        curriculum: which problems are asked less often.

    Attributes:
        num_sampled, num_correct: [N] int64, rollouts of the whole run so far.
        pass_rate: [N] float64, a decayed estimate; NaN where a problem was never sampled.
        last_round: [N] int64, when it was last sampled; -1 for never.
    """

    def __init__(self, problems: Sequence[Problem], seed: int, curriculum: Curriculum = Curriculum()) -> None:
        if not problems:
            raise ValueError("There is no problem to ask. Name some: data.problems='{NAME: {path: FILE}}'.")
        self.problem_ids = [problem.problem_id for problem in problems]
        self.strata = [problem.stratum for problem in problems]
        self.seed, self.curriculum = seed, curriculum
        self._place = {problem_id: index for index, problem_id in enumerate(self.problem_ids)}
        assert len(self._place) == len(problems), "problem ids are unique"
        num = len(problems)
        self.num_sampled, self.num_correct = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
        self.pass_rate, self.last_round = np.full(num, np.nan), np.full(num, -1, dtype=np.int64)
        self._begin_pass(0)

    def take(self, count: int) -> list[int]:
        """The next `count` problems. One can be there twice where a pass ends in between."""
        taken: list[int] = []
        while len(taken) < count:
            if self._next == len(self._order):
                self._begin_pass(self._pass + 1)
            index = int(self._order[self._next])
            self._next += 1
            drawn = chance.uniform("keep", self.seed, self._pass, self.problem_ids[index])
            if self.curriculum.wants(self.pass_rate[index], drawn):
                taken.append(index)
        return taken

    def num_wanted(self) -> int:
        """Problems that are asked in every pass: those in the band, and those that were never sampled."""
        return sum(self.curriculum.wants(rate, drawn=1.0) for rate in self.pass_rate)

    def record(self, problem_id: str, num_correct: int, num_samples: int, number: int) -> None:
        """Takes in that `num_correct` of `num_samples` rollouts of a problem were right in round `number`."""
        index, rate, decay = self._place[problem_id], num_correct / num_samples, self.curriculum.decay
        known = self.num_sampled[index] > 0
        self.pass_rate[index] = decay * self.pass_rate[index] + (1 - decay) * rate if known else rate
        self.num_sampled[index] += num_samples
        self.num_correct[index] += num_correct
        self.last_round[index] = number

    def metrics(self) -> dict[str, float]:
        """The number of the pass, the share of problems that was ever sampled, and of those the share in the band and
        the mean estimated pass rate, by stratum too."""
        known = self.num_sampled > 0
        rates = self.pass_rate[known]
        metrics = {"curriculum/pass": float(self._pass), "curriculum/known_frac": float(known.mean())}
        if len(rates):
            in_band = (rates >= self.curriculum.low) & (rates <= self.curriculum.high)
            metrics["curriculum/in_band_frac"] = float(in_band.mean())
        by_stratum = pass_rate_by_stratum(self.strata, self.pass_rate)
        return metrics | {f"curriculum/pass_rate/{stratum}".rstrip("/"): rate for stratum, rate in by_stratum.items()}

    def state_dict(self) -> dict[str, Any]:
        """Place and statistics as plain numbers, texts and lists."""
        return {
            "problems": _hash_of(self.problem_ids),
            "num_problems": len(self.problem_ids),
            "seed": self.seed,
            "pass": self._pass,
            "next": self._next,
            "num_sampled": self.num_sampled.tolist(),
            "num_correct": self.num_correct.tolist(),
            "pass_rate": self.pass_rate.tolist(),
            "last_round": self.last_round.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where that stream stood. The curriculum may be another one.

        Raises:
            ValueError: that stream had other problems, or another seed.
        """
        own = _hash_of(self.problem_ids)
        if state["problems"] != own:
            raise ValueError(
                f"The checkpoint is of a run on {state['num_problems']:,} problems (hash {state['problems']}); "
                f"data.problems now gives {len(self.problem_ids):,} (hash {own}): other ones, or another order. Pass "
                "rates and the place in the pass belong to the problems of that run: go on with those, or begin a new "
                "run from its exported student."
            )
        if state["seed"] != self.seed:
            raise ValueError(
                f"The checkpoint is of a run with data.seed={state['seed']}, and data.seed is {self.seed} now. The "
                f"rest of its pass would be another one: set data.seed={state['seed']}."
            )
        self._begin_pass(state["pass"])
        self._next = state["next"]
        self.num_sampled = np.array(state["num_sampled"], dtype=np.int64)
        self.num_correct = np.array(state["num_correct"], dtype=np.int64)
        self.pass_rate = np.array(state["pass_rate"], dtype=np.float64)
        self.last_round = np.array(state["last_round"], dtype=np.int64)

    def _begin_pass(self, number: int) -> None:
        self._pass, self._next = number, 0
        keys = [chance.uniform("order", self.seed, number, problem_id) for problem_id in self.problem_ids]
        self._order = sorted(range(len(keys)), key=lambda index: (keys[index], self.problem_ids[index]))


def pass_rate_by_stratum(strata: Sequence[str], pass_rate_N: np.ndarray) -> dict[str, float]:
    """stratum → mean pass rate of its problems, unknown ones (NaN) left out. "" is all of them together.

    >>> pass_rate_by_stratum(["easy", "easy", "hard"], np.array([1.0, 0.5, np.nan]))
    {'': 0.75, 'easy': 0.75}
    """
    known = ~np.isnan(pass_rate_N)
    members = {"": known} | {stratum: known & (np.array(strata) == stratum) for stratum in sorted(set(strata) - {""})}
    return {stratum: float(pass_rate_N[chosen].mean()) for stratum, chosen in members.items() if chosen.any()}


def _hash_of(problem_ids: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(problem_ids).encode(), digest_size=8).hexdigest()
