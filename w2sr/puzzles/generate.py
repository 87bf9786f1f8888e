"""Many different puzzles from one seed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from w2sr import chance
from w2sr.puzzles import knights, ordering
from w2sr.rows import derived_id
from w2sr.types import Problem

PuzzleKind = Literal["knights", "ordering"]

_MAX_REPEATS = 1_000
"""After so many puzzles in a row that were there before, there are probably no others."""


class Puzzle(NamedTuple):
    r"""A problem whose reference answer `kind: logic` grades, and a solution in words that ends in \boxed{answer}."""

    problem: Problem
    solution: str


def generate_puzzles(
    kind: PuzzleKind, *, num: int, size: int, seed: int, without: Collection[str] = ()
) -> list[Puzzle]:
    """`num` different puzzles with `size` people each; the first ones do not depend on `num`.

    Args:
        kind: `knights` (who is a knight, who a knave) or `ordering` (from the shortest to the tallest).
        without: problem ids that must not occur, for splits without overlap. An id is a hash of the puzzle's text.

    Raises:
        ValueError: a size outside of what is generated, or more puzzles than there are.
    """
    low, high = (
        (knights.MIN_PEOPLE, knights.MAX_PEOPLE) if kind == "knights" else (ordering.MIN_ITEMS, ordering.MAX_ITEMS)
    )
    if not low <= size <= high or num < 1:
        raise ValueError(
            f"{kind} has {low} to {high} people and at least one puzzle; it was asked for {size} and {num}."
        )
    made: dict[str, Puzzle] = {}
    repeats = 0
    for puzzle in _stream(kind, size, seed):
        known = puzzle.problem.problem_id in made or puzzle.problem.problem_id in without
        repeats = repeats + 1 if known else 0
        if repeats > _MAX_REPEATS:
            raise ValueError(
                f"There are hardly more than {len(made):,} such puzzles with {size} people; {num:,} were asked for."
            )
        if not known:
            made[puzzle.problem.problem_id] = puzzle
        if len(made) == num:
            return list(made.values())
    raise AssertionError("the stream has no end")


def _stream(kind: PuzzleKind, size: int, seed: int) -> Iterator[Puzzle]:
    rng = chance.generator("puzzles", f"{kind}/{size}/{seed}")
    while True:
        yield _knights(knights.draw(rng, size)) if kind == "knights" else _ordering(ordering.draw(rng, size))


def _knights(puzzle: knights.Knights) -> Puzzle:
    (world,) = puzzle.solutions()
    derivation = knights.derive(puzzle)
    assert derivation.known == dict(enumerate(world))
    stratum = f"people={len(world)} suppositions={derivation.num_suppositions}"
    return _puzzle("knights", puzzle.text(), puzzle.answer(derivation.known), stratum, derivation.sentences)


def _ordering(puzzle: ordering.Ordering) -> Puzzle:
    derivation = ordering.derive(puzzle)
    assert derivation is not None
    stratum = f"people={len(puzzle.names)} clues={len(puzzle.clues)}"
    return _puzzle("ordering", puzzle.text(), puzzle.answer(derivation.order), stratum, derivation.sentences)


def _puzzle(source: str, text: str, answer: str, stratum: str, sentences: list[str]) -> Puzzle:
    solution = " ".join([*sentences, rf"The answer is \boxed{{{answer}}}."])
    return Puzzle(Problem(derived_id(source, text), source, text, answer, stratum), solution)
