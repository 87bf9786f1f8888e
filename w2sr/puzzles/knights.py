"""Knights and knaves: knights say only what is true, knaves only what is false; who is what?

A puzzle has one statement a person and exactly one solution, which is found by trying all 2^n worlds. The derivation in
words is another way to it: what a single statement allows, together with what is known so far, settles some persons;
where no statement settles anything, one person is supposed to be a knight, then a knave, and each case is followed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

NAMES = ("Alice", "Bob", "Carol", "David", "Erin", "Frank", "Grace", "Henry", "Irene", "Jack", "Karen", "Leo")
MIN_PEOPLE, MAX_PEOPLE = 2, 8

World = tuple[bool, ...]
"""For each person whether he is a knight."""
Known = Mapping[int, bool]
"""Likewise for the persons about whom it is known, or supposed."""


Form = Literal["is", "and", "or", "if", "same"]


@dataclass(frozen=True, slots=True)
class Claim:
    """That a person is a knight (or a knave)."""

    person: int
    is_knight: bool


@dataclass(frozen=True, slots=True)
class Statement:
    """What somebody says: a claim alone, or two joined. `same`: two persons are of one kind; `if`: first → second."""

    form: Form
    first: Claim
    second: Claim | None = None

    @property
    def people(self) -> tuple[int, ...]:
        return (self.first.person,) if self.second is None else (self.first.person, self.second.person)

    def holds(self, world: Mapping[int, bool] | World) -> bool:
        """Whether it is true in a world that says of all its people what they are."""
        first = world[self.first.person] == self.first.is_knight
        if self.second is None:
            return first
        second = world[self.second.person] == self.second.is_knight
        if self.form == "and":
            return first and second
        if self.form == "or":
            return first or second
        return not first or second if self.form == "if" else first == second


class Knights(NamedTuple):
    """A puzzle: names, and what each person says."""

    names: tuple[str, ...]
    statements: tuple[Statement, ...]

    def solutions(self) -> list[World]:
        """Every world in which knights speak the truth and knaves do not: all 2^n are tried."""
        worlds = itertools.product((True, False), repeat=len(self.names))
        return [w for w in worlds if all(w[i] == said.holds(w) for i, said in enumerate(self.statements))]

    def text(self) -> str:
        """The puzzle in plain English."""
        said = " ".join(f"{self.names[i]} says: “{self.quote(i)}.”" for i in range(len(self.names)))
        return (
            "On an island every inhabitant is either a knight, who says only what is true, or a knave, who says only "
            f"what is false. You meet {_listed(self.names)}. {said} Who is a knight and who is a knave? Give the "
            f"answer in the form “{self.names[0]} is a knight, {self.names[1]} is a knave”, with everybody named."
        )

    def quote(self, speaker: int) -> str:
        """What the person says, in words, without the full stop."""
        said = self.statements[speaker]
        first = self._claim(said.first, speaker)
        if said.second is None:
            return _capital(first)
        second = self._claim(said.second, speaker)
        if said.form == "same":
            people = [self._subject(person, speaker) for person in said.people]
            return _capital(f"{people[0]} and {people[1]} are of the same kind")
        joined = {"and": f"{first} and {second}", "or": f"{first} or {second}", "if": f"if {first}, then {second}"}
        return _capital(joined[said.form])

    def _subject(self, person: int, speaker: int) -> str:
        return "I" if person == speaker else self.names[person]

    def _claim(self, claim: Claim, speaker: int) -> str:
        verb = "am" if claim.person == speaker else "is"
        return f"{self._subject(claim.person, speaker)} {verb} a {kind(claim.is_knight)}"

    def answer(self, world: Known) -> str:
        """The reference answer: "Alice is a knight, Bob is a knave"."""
        return ", ".join(f"{name} is a {kind(world[i])}" for i, name in enumerate(self.names))


def kind(is_knight: bool) -> str:
    return "knight" if is_knight else "knave"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def draw(rng: random.Random, people: int) -> Knights:
    """A puzzle with exactly one solution: statements that fit a drawn world, until no other world fits them."""
    while True:
        world = tuple(rng.random() < 0.5 for _ in range(people))
        names = tuple(rng.sample(NAMES, people))
        puzzle = Knights(names, tuple(_statement(rng, speaker, world) for speaker in range(people)))
        if puzzle.solutions() == [world]:
            return puzzle


def _statement(rng: random.Random, speaker: int, world: World) -> Statement:
    """A statement that this person can make in this world. Nobody speaks of himself alone."""
    while True:
        form = rng.choice(get_args(Form))
        others = [person for person in range(len(world)) if person != speaker]
        if form == "is":
            said = Statement("is", Claim(rng.choice(others), rng.random() < 0.5))
        else:
            first, second = rng.sample(range(len(world)), 2)
            same = form == "same"
            said = Statement(
                form,
                Claim(first, same or rng.random() < 0.5),
                Claim(second, same or rng.random() < 0.5),
            )
        if said.holds(world) == world[speaker]:
            return said


class Derivation(NamedTuple):
    """The derivation in sentences, what it leads to (None for a contradiction), and how many suppositions it makes."""

    sentences: list[str]
    known: Known | None
    num_suppositions: int


def derive(puzzle: Knights, known: Known | None = None) -> Derivation:
    """Follows single statements as far as they lead, then supposes. Ends with the solution, or a contradiction.

    >>> said = (Statement("and", Claim(0, False), Claim(1, True)), Statement("is", Claim(0, True)))
    >>> derive(Knights(("Ann", "Ben"), said)).sentences
    ['Ann says “I am a knave and Ben is a knight”; this can only be said if Ann is a knave and Ben is a knave.']
    """
    known = dict(known or {})
    sentences: list[str] = []
    while True:
        for speaker in range(len(puzzle.names)):
            fitting = _fitting(puzzle, speaker, known)
            if not fitting:
                sentences.append(_contradiction(puzzle, speaker, known))
                return Derivation(sentences, None, 0)
            new = {p: fitting[0][p] for p in fitting[0] if p not in known and len({world[p] for world in fitting}) == 1}
            if new:
                sentences.append(_consequence(puzzle, speaker, known, new))
                known.update(new)
                break
        else:
            break
    if len(known) == len(puzzle.names):
        return Derivation(sentences, known, 0)
    return _suppose(puzzle, known, sentences)


def _suppose(puzzle: Knights, known: Known, sentences: list[str]) -> Derivation:
    """Both cases of the first person about whom nothing is known. At most one of them can hold in the end."""
    person = next(p for p in range(len(puzzle.names)) if p not in known)
    name, solved, count = puzzle.names[person], None, 1
    for is_knight in (True, False):
        case = derive(puzzle, {**known, person: is_knight})
        count += case.num_suppositions
        opening = f"Suppose {name} is a {kind(is_knight)}."
        closing = (
            f"So {name} is not a {kind(is_knight)}."
            if case.known is None
            else "Everybody's statement fits in this case."
        )
        sentences = [*sentences, opening, *case.sentences, closing]
        solved = case.known or solved
    return Derivation(sentences, solved, count)


def _fitting(puzzle: Knights, speaker: int, known: Known) -> list[dict[int, bool]]:
    """What speaker and the people of his statement can be, by this statement and what is known."""
    said = puzzle.statements[speaker]
    free = sorted({p for p in (speaker, *said.people) if p not in known})
    fixed = {p: known[p] for p in (speaker, *said.people) if p in known}
    worlds = [
        {**fixed, **dict(zip(free, kinds, strict=True))} for kinds in itertools.product((True, False), repeat=len(free))
    ]
    return [world for world in worlds if world[speaker] == said.holds(world)]


def _consequence(puzzle: Knights, speaker: int, known: Known, new: Known) -> str:
    name, quote = puzzle.names[speaker], puzzle.quote(speaker)
    found = _listed([f"{puzzle.names[p]} is a {kind(k)}" for p, k in sorted(new.items())])
    beside = _given(puzzle, speaker, known)
    if speaker in known:
        truth = "true" if known[speaker] else "false"
        return f"{name} is a {kind(known[speaker])}, so “{quote}” is {truth}{beside}: {found}."
    if all(person in known for person in puzzle.statements[speaker].people):
        truth = "true" if new[speaker] else "false"
        return f"{name} says “{quote}”, which is {truth}{beside}: {found}."
    return f"{name} says “{quote}”{beside}; this can only be said if {found}."


def _contradiction(puzzle: Knights, speaker: int, known: Known) -> str:
    name, quote = puzzle.names[speaker], puzzle.quote(speaker)
    truth = "true" if known[speaker] else "false"
    return (
        f"{name}, a {kind(known[speaker])}, says “{quote}”, which would have to be {truth} and is not"
        f"{_given(puzzle, speaker, known)}. That is a contradiction."
    )


def _given(puzzle: Knights, speaker: int, known: Known) -> str:
    """', given that Bob is a knave': what is known of the others in a statement."""
    others = [p for p in dict.fromkeys(puzzle.statements[speaker].people) if p in known and p != speaker]
    if not others:
        return ""
    return f", given that {_listed([f'{puzzle.names[p]} is a {kind(known[p])}' for p in others])}"
