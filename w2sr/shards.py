"""Shares of a set of problems: which shard a problem belongs to follows from its id alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from w2sr import chance
from w2sr.types import Problem


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `number` (from 1) of `count`. Spelled `3/16`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, problem_id: str) -> bool:
        return shard_number(problem_id, self.count) == self.number


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """Reads `3/16`.

    >>> parse_shard("3/16")
    Shard(number=3, count=16)

    Raises:
        ValueError: it is spelled otherwise, or there is no such shard.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(
            f"data.shard={text!r} is no share of the problems. Write NUMBER/COUNT with 1 <= NUMBER <= COUNT, such as "
            "3/16 for the third of sixteen; a SLURM array of them is --array=1-16."
        )
    return Shard(int(match[1]), int(match[2]))


def shard_number(problem_id: str, count: int) -> int:
    """The shard of `count`, from 1, that a problem belongs to: a hash of its id, whatever else is asked."""
    return _hash(problem_id) % count + 1


def share(problems: Sequence[Problem], shard: Shard, rank: int = 0, world_size: int = 1) -> list[Problem]:
    """The problems of one rank of one shard. Ranks' shares differ by at most one problem; file order is no matter."""
    mine = [problem for problem in problems if shard.holds(problem.problem_id)]
    return sorted(mine, key=lambda problem: _hash(problem.problem_id))[rank::world_size]


def _hash(problem_id: str) -> int:
    return chance.integer("shard", problem_id)
