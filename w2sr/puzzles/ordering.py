"""Orderings: who is taller than whom, told by clues with exactly one order.

The derivation in words builds the order from the shortest: at each place every person but one is ruled out by one clue.
A puzzle is kept only if that works, so its order is the only one; tests try all n! orders.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from w2sr.puzzles.knights import NAMES

MIN_ITEMS, MAX_ITEMS = 3, 9
_COUNTS = (
    "nobody",
    "exactly one person",
    *(f"exactly {n} people" for n in ("two", "three", "four", "five", "six", "seven", "eight")),
)


@dataclass(frozen=True, slots=True)
class Clue:
    """`less`: first is shorter than second; `between`: and second than third; `rank`: so many are shorter."""

    form: Literal["less", "between", "rank"]
    people: tuple[int, ...]
    rank: int = -1

    def holds(self, order: Sequence[int]) -> bool:
        """Whether it is true of an order from the shortest to the tallest."""
        places = [order.index(person) for person in self.people]
        return places[0] == self.rank if self.form == "rank" else places == sorted(places)

    def rules_out(self, person: int, placed: Sequence[int]) -> bool:
        """Whether this clue alone forbids that the person comes next after those who are placed."""
        if self.form == "rank":
            return (person == self.people[0]) != (len(placed) == self.rank)
        before = self.people[: self.people.index(person)] if person in self.people else ()
        return any(other not in placed for other in before)


class Ordering(NamedTuple):
    """A puzzle: names and clues about their heights."""

    names: tuple[str, ...]
    clues: tuple[Clue, ...]

    def text(self) -> str:
        """The puzzle in plain English."""
        sentences = [self.sentence(clue) for clue in self.clues]
        told = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
        names = f"{', '.join(self.names[:-1])} and {self.names[-1]}"
        return (
            f"{names} are all of different heights. {told} What is their order from the shortest to the tallest? Give "
            f"the answer in the form “{' < '.join(self.names)}”, the shortest first."
        )

    def sentence(self, clue: Clue) -> str:
        """The clue in words, as it stands inside of a sentence."""
        names = [self.names[person] for person in clue.people]
        if clue.form == "rank":
            return f"{_COUNTS[clue.rank]} {'is' if clue.rank < 2 else 'are'} shorter than {names[0]}"
        if clue.form == "between":
            return f"{names[1]} is taller than {names[0]} but shorter than {names[2]}"
        return f"{names[0]} is shorter than {names[1]}"

    def answer(self, order: Sequence[int]) -> str:
        """The reference answer: "Bob < Alice < Carol"."""
        return " < ".join(self.names[person] for person in order)


def draw(rng: random.Random, items: int) -> Ordering:
    """A puzzle with exactly one order and no clue too many."""
    names = tuple(rng.sample(NAMES, items))
    order = rng.sample(range(items), items)
    clues: list[Clue] = []
    while derive(Ordering(names, tuple(clues))) is None:
        clue = _clue(rng, order)
        clues += [clue] if clue not in clues else []
    for clue in rng.sample(clues, len(clues)):
        fewer = tuple(other for other in clues if other != clue)
        if derive(Ordering(names, fewer)) is not None:
            clues.remove(clue)
    return Ordering(names, tuple(clues))


def _clue(rng: random.Random, order: Sequence[int]) -> Clue:
    form = rng.choice(("less", "less", "between", "rank"))
    if form == "rank":
        place = rng.randrange(len(order))
        return Clue("rank", (order[place],), place)
    places = sorted(rng.sample(range(len(order)), 2 if form == "less" else 3))
    return Clue("less" if form == "less" else "between", tuple(order[place] for place in places))


class Derivation(NamedTuple):
    """The derivation in sentences, and the order from the shortest that it leads to."""

    sentences: list[str]
    order: tuple[int, ...]


def derive(puzzle: Ordering) -> Derivation | None:
    """Builds the order from the shortest, each time ruling out all but one by single clues; None where that fails."""
    placed: list[int] = []
    sentences: list[str] = []
    while len(placed) < len(puzzle.names):
        left = [person for person in range(len(puzzle.names)) if person not in placed]
        reasons = {p: next((c for c in puzzle.clues if c.rules_out(p, placed)), None) for p in left}
        free = [person for person, clue in reasons.items() if clue is None]
        if len(free) != 1:
            return None
        sentences.append(_step(puzzle, placed, free[0], {p: clue for p, clue in reasons.items() if clue}))
        placed.append(free[0])
    return Derivation(sentences, tuple(placed))


def _step(puzzle: Ordering, placed: Sequence[int], chosen: int, ruled_out: dict[int, Clue]) -> str:
    by_clue: dict[Clue, list[str]] = {}
    for person, clue in ruled_out.items():
        by_clue.setdefault(clue, []).append(puzzle.names[person])
    place = "is the shortest" if not placed else f"comes after {puzzle.names[placed[-1]]}"
    if not ruled_out:
        return f"Only {puzzle.names[chosen]} is left, who {place}."
    because = "; ".join(f"not {' or '.join(names)}, for {puzzle.sentence(clue)}" for clue, names in by_clue.items())
    return f"Who {place}? It is {because}. So {puzzle.names[chosen]} {place}."
