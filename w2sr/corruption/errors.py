"""One text with one kind of systematic error, from which its chain of equations goes on consistently.

The text is walked once, from its begin to its end. An erring equation is given a wrong result. From there on a later
use of the old number is replaced by the new one, and an equation with a replaced operand is computed again, until the
final answer. A mistake that the text had before stays as it is, by so much beside the right result as it was.

kind              what is wrong                                                                  where
wrong_operator    * is computed as +, and / as -                                                 every equation with one
off_by_one        a result is 1 too great or too small                                           one equation
swapped_operands  a - b is written and computed as b - a, a / b as b / a                         one equation
dropped_step      a step is left out with its sentence; what it started from is used as result   one equation
wrong_unit        hours become minutes, dollars cents, $ becomes €, ... from there on            one mention

Of equations that may err, one is picked from which the chain goes on consistently, if one of MAX_WALKS does.

Where a number cannot be followed, the text says so: `consistent` is False where an old number has two meanings (it is
in the problem too, or was in the text before), where it is used in something that is no written equation, or where the
error did not reach the final answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal, NamedTuple

from w2sr.corruption.equations import (
    Equation,
    Number,
    Page,
    equal_as_written,
    evaluate,
    find_numbers,
    written_like,
)
from w2sr.verify.extraction import Span

Kind = Literal["wrong_operator", "off_by_one", "swapped_operands", "dropped_step", "wrong_unit"]
Role = Literal["error", "carried"]
"""What a change is: the error itself, or what follows from it."""
Pick = Callable[[int], int]
"""Chooses: n → one of 0 ... n - 1."""

MAX_WALKS = 8
"""So many places are tried for one from which the chain goes on consistently."""

WRONG_SIGNS = {"*": "+", "/": "-"}
_ONE_AND_MANY = tuple(
    tuple(names.split("/"))
    for names in (
        "dollar/dollars cent/cents second/seconds minute/minutes hour/hours day/days week/weeks month/months "
        "year/years inch/inches foot/feet mile/miles centimeter/centimeters meter/meters kilometer/kilometers "
        "ounce/ounces pound/pounds gram/grams kilogram/kilograms liter/liters gallon/gallons"
    ).split()
)
_MISTAKEN = (
    "dollar:cent cent:dollar second:minute minute:hour hour:minute day:week week:day month:year year:month inch:foot "
    "foot:inch mile:kilometer centimeter:meter meter:centimeter kilometer:meter ounce:pound pound:ounce gram:kilogram "
    "kilogram:gram liter:gallon gallon:liter"
)
_NAMES = {names[0]: names for names in _ONE_AND_MANY}
UNITS = {
    right: wrong
    for pair in _MISTAKEN.split()
    for right, wrong in zip(*(_NAMES[unit] for unit in pair.split(":")), strict=True)
}
"""Unit → the one that it is taken for, in singular and plural."""
_UNIT_AFTER = re.compile(r"[ -]?([a-z]+)\b")
_COMPUTES_ON = re.compile(r"\s?(?:[*/×·÷+^]|\\times|\\cdot|\\div|[-−–] ?[\\$0-9(])")


class Edit(NamedTuple):
    """What is put in place of characters of the old text."""

    start: int
    end: int
    after: str
    role: Role


class Change(NamedTuple):
    """A change as the ground truth has it: the characters of the *new* text, and what they were before."""

    span: Span
    before: str
    after: str
    role: Role


class Corrupted(NamedTuple):
    """The new text, what was changed, and whether the chain goes on from the error to the answer; see above."""

    text: str
    changes: tuple[Change, ...]
    consistent: bool


class Error(NamedTuple):
    """How an equation errs: signs computed as others, what is added, operands swapped, or its sentence dropped."""

    signs: Mapping[str, str] = {}
    add: int = 0
    swap: bool = False
    drop: Span | None = None


def corrupt_text(
    text: str, kind: Kind, pick: Pick, *, problem: str = "", answer: Span | None = None, whole_to: int | None = None
) -> Corrupted | None:
    """The text with an error of a kind, or None where there is nothing that could err in that way.

    Args:
        text: what a teacher wrote.
        kind: see the top of the file.
        pick: chooses where the error is, and which of two.
        problem: its numbers are given, so they cannot be results.
        answer: characters of the final answer, where it is known.
        whole_to: every new number must be whole, from 0 to this; None: any number will do.

    >>> corrupt_text("Tom has 3 + 4 = 7. Zoe has 7 * 2 = 14. So 14.", "off_by_one", lambda n: 0).text
    'Tom has 3 + 4 = 8. Zoe has 8 * 2 = 16. So 16.'
    """
    page = Page(text)
    if kind == "wrong_unit":
        walks = [(_unit_edits(page, pick), True)]
    else:
        given = {number.value for number in find_numbers(problem)}
        ways = _ways(kind, page, given, pick, answer)
        walks = [_Chain(page, errors, given, answer).walk() for errors in ways[:MAX_WALKS]]
    walks = [walk for walk in walks if any(edit.after != text[edit.start : edit.end] for edit in walk[0])]
    if whole_to is not None:
        walks = [walk for walk in walks if all(_is_whole(edit.after, whole_to) for edit in walk[0])]
    return _applied(text, *max(walks, key=lambda walk: walk[1])) if walks else None


def _is_whole(written: str, most: int) -> bool:
    return all(number.value in range(most + 1) for number in find_numbers(written))


def _applied(text: str, edits: list[Edit], consistent: bool) -> Corrupted:
    pieces: list[str] = []
    changes: list[Change] = []
    position = length = 0
    for start, end, after, role in sorted(edits):
        pieces += [text[position:start], after]
        length += start - position
        changes.append(Change((length, length + len(after)), text[start:end], after, role))
        position, length = end, length + len(after)
    return Corrupted("".join(pieces) + text[position:], tuple(changes), consistent)


def _ways(kind: Kind, page: Page, given: set[Fraction], pick: Pick, answer: Span | None) -> list[dict[int, Error]]:
    """Ways to err, the one that was picked first: which equations do, by where they begin, and how."""
    right = [equation for equation in page.equations if equation.holds]
    if kind == "wrong_operator":
        return [{e.start: Error(signs=WRONG_SIGNS) for e in right if WRONG_SIGNS.keys() & e.side.signs}]
    first: dict[Fraction, int] = {}
    for number in page.numbers:
        first.setdefault(number.value, number.start)
    fit: list[tuple[int, Error]] = []
    for equation in right:
        value = equation.result.value
        if value in given or first[value] < equation.results[0].start:
            continue  # the number has a meaning already, and later uses could not be told apart
        if kind == "off_by_one":
            fit.append((equation.start, Error(add=1)))
        elif kind == "swapped_operands" and _can_swap(equation):
            fit.append((equation.start, Error(swap=True)))
        elif kind == "dropped_step" and (span := _droppable(page, equation, answer)):
            fit.append((equation.start, Error(drop=span)))
    if not fit:
        return []
    first_one, add = pick(len(fit)), (1, -1)[pick(2)]
    fit = fit[first_one:] + fit[:first_one]
    return [{start: error._replace(add=add) if error.add else error} for start, error in fit]


def _can_swap(equation: Equation) -> bool:
    if not equation.is_read:
        return False
    for side in equation.sides:
        if len(side.operands) != 2 or side.signs[0] not in "-/" or side.operands[0].value == side.operands[1].value:
            return False
        if side.signs[0] == "/" and not abs(side.operands[1].value / (side.operands[0].value or 1000)) >= Fraction(
            1, 100
        ):
            return False
    return True


def _droppable(page: Page, equation: Equation, answer: Span | None) -> Span | None:
    """The sentence or line of an equation, where it can be left out: it has no other, no answer, no structure."""
    start, end = page.sentence(equation)
    if len(page.equations_in((start, end))) > 1 or re.search(r'["{}\\]', page.text[start:end]):
        return None
    return None if answer is not None and answer[0] < end and answer[1] > start else (start, end)


class _Chain:
    """One walk over numbers and equations of a text in their order. `moved`: old number → what it is now."""

    def __init__(self, page: Page, errors: dict[int, Error], given: set[Fraction], answer: Span | None) -> None:
        self.page, self.errors, self.answer = page, errors, answer
        self.seen = set(given)
        self.moved: dict[Fraction, Fraction] = {}
        self.edits: list[Edit] = []
        self.consistent = True

    def walk(self) -> tuple[list[Edit], bool]:
        gone = next((error.drop for error in self.errors.values() if error.drop), (0, 0))
        items: list[Number | Equation] = [*self.page.loose_numbers, *self.page.equations]
        for item in sorted(items, key=lambda item: item.start):
            error = self.errors.get(item.start) if isinstance(item, Equation) else None
            if isinstance(item, Equation) and error is not None and error.drop:
                self._drop(item, error.drop)
            elif gone[0] <= item.start < gone[1]:
                continue
            elif isinstance(item, Equation):
                self._equation(item, error)
            else:
                self._mention(item)
        reached = self.answer is None or not self.moved or any(self._is_answer(edit) for edit in self.edits)
        return self.edits, self.consistent and reached

    def _is_answer(self, edit: Edit) -> bool:
        return self.answer is not None and edit.start < self.answer[1] and edit.end > self.answer[0]

    def _mention(self, number: Number) -> None:
        if number.value not in self.moved:
            self.seen.add(number.value)
            return
        self._write(number, self.moved[number.value], "carried")
        start, end = self.page.rest(number.end)
        parsed = self.page.equations_in((start, end))
        if "=" in self.page.text[start : parsed[0].start if parsed else end] or _COMPUTES_ON.match(
            self.page.text, start
        ):
            self.consistent = False  # something is computed from it in a way that is not read here

    def _equation(self, equation: Equation, error: Error | None) -> None:
        old = [number.value for number in equation.side.operands]
        for side in equation.sides:
            operands = side.operands[::-1] if error is not None and error.swap else side.operands
            for place, number in zip(side.operands, operands, strict=True):
                value = self.moved.get(number.value, number.value)
                if value != place.value:
                    self._write(place, value, "error" if error is not None and error.swap else "carried")
        new = [self.moved.get(value, value) for value in old]
        self.seen.update(value for value in old if value not in self.moved)
        result = equation.result.value
        if error is None and new == old:
            if self.moved.pop(result, None) is not None:
                self.consistent = False  # the number is given anew: from here on it may be this one
            self.seen.add(result)
            return
        computed = self._computed(equation, old, new, error)
        if computed is None or equal_as_written(computed, equation.result):
            self.consistent &= computed is not None
            self.moved.pop(result, None)
            if error is not None and new != old:  # an error all the same, although its result is the old one by chance
                self.edits += [Edit(number.start, number.end, number.text, "error") for number in equation.results]
            return
        role: Role = "carried" if error is None else "error"
        for number in equation.results:  # which may differ among themselves, by a mistake of the text
            stated = self._write(number, computed + number.value - result, role)
        self._move(result, stated)

    def _computed(
        self, equation: Equation, old: list[Fraction], new: list[Fraction], error: Error | None
    ) -> Fraction | None:
        """The new result: by the error's own rule, or right but for the mistake that the text made there before."""
        signs = equation.side.signs
        if error is None:
            right, changed = evaluate(old, signs), evaluate(new, signs)
            if right is None or changed is None or equal_as_written(right, equation.result):
                return changed
            return changed + equation.result.value - right
        wrong = evaluate(new[::-1] if error.swap else new, [error.signs.get(sign, sign) for sign in signs])
        return None if wrong is None else wrong + error.add

    def _drop(self, equation: Equation, span: Span) -> None:
        """Leaves the sentence out and goes on with the number that the step started from."""
        self.edits.append(Edit(*span, "", "error"))
        results = {e.result.value for e in self.page.equations_in((0, equation.start))}
        operands = [number.value for number in equation.side.operands]
        start = next((value for value in operands if value in results), operands[0])
        self._move(equation.result.value, start)

    def _move(self, old: Fraction, new: Fraction) -> None:
        if old in self.seen:
            self.consistent = False  # the number has another meaning too, so its uses cannot be told apart
            self.moved.pop(old, None)
        else:
            self.moved[old] = new

    def _write(self, number: Number, value: Fraction, role: Role) -> Fraction:
        text, stated = written_like(number, value)
        if text != number.text:
            self.edits.append(Edit(number.start, number.end, text, role))
        return stated


def _unit_edits(page: Page, pick: Pick) -> list[Edit]:
    """Another unit after one number, and wherever the unit is named from there on."""
    results = [number for equation in page.equations for number in equation.results]
    sites = _unit_sites(page.text, results) or _unit_sites(page.text, page.numbers)
    if not sites:
        return []
    unit, start = sites[pick(len(sites))]
    if unit == "$":
        pattern, wrong = re.compile(r"\$(?= ?[-−]?[0-9.]|<<)"), {"$": "€"}
    else:
        one_and_many = next(names for names in _ONE_AND_MANY if unit in names)
        pattern, wrong = re.compile(rf"\b(?:{'|'.join(one_and_many)})\b"), UNITS
    return [
        Edit(*match.span(), wrong[match.group()], "error" if match.start() == start else "carried")
        for match in pattern.finditer(page.text, start)
    ]


def _unit_sites(text: str, numbers: list[Number]) -> list[tuple[str, int]]:
    """(unit, where it stands) of numbers with a unit that can be taken for another."""
    sites = []
    is_money = not re.search(r"\$(?! ?[-−]?[0-9.]|<<)", text)  # else it begins or ends a formula
    for number in numbers:
        word = _UNIT_AFTER.match(text, number.end)
        if word is not None and word[1] in UNITS:
            sites.append((word[1], word.start(1)))
        elif "$" in number.text and is_money and "\\$" not in number.text:
            sites.append(("$", number.start + number.text.index("$")))
    return sites
