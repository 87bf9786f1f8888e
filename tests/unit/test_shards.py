"""Shards and ranks: every problem in exactly one share, whatever the order of the file."""

from __future__ import annotations

import pytest

from w2sr.shards import Shard, parse_shard, shard_number, share
from w2sr.types import Problem

PROBLEMS = [Problem(f"toy/{number}", "toy", f"{number} + 1?", str(number + 1)) for number in range(500)]


def test_every_problem_is_in_one_share() -> None:
    shares = [share(PROBLEMS, Shard(n, 7), rank, 3) for n in range(1, 8) for rank in range(3)]
    assert sorted(problem for mine in shares for problem in mine) == sorted(PROBLEMS)
    assert all(15 <= len(mine) <= 35 for mine in shares), "500 problems / 21 = 24"


def test_a_share_does_not_depend_on_the_order_or_on_other_problems() -> None:
    mine = share(PROBLEMS, Shard(2, 7), 1, 3)
    assert share(PROBLEMS[::-1], Shard(2, 7), 1, 3) == mine
    fewer = share(PROBLEMS[:250], Shard(2, 7))
    assert set(fewer) == set(share(PROBLEMS, Shard(2, 7))) & set(PROBLEMS[:250]) and len(fewer) > 20


def test_ranks_of_a_shard_differ_by_at_most_one_problem() -> None:
    sizes = [len(share(PROBLEMS, Shard(4, 5), rank, 4)) for rank in range(4)]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == len(share(PROBLEMS, Shard(4, 5)))


def test_the_hash_is_the_same_for_ever() -> None:
    """Stores outlive versions: another hash would ask the wrong shards again."""
    assert [shard_number(f"toy/{number}", 16) for number in range(6)] == [13, 2, 12, 7, 2, 15]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/4", "a/b", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no share of the problems. Write NUMBER/COUNT .* --array=1-16"):
        parse_shard(text)
