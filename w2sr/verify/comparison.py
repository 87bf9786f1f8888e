r"""Comparison of two answers by their form, down to pairs of values; what is not decided here is left as open pairs.

Every rule is symmetric: it holds with the two sides exchanged.

- Lists without brackets ("5, 7", "x=5, x=7"): equal in any order, values as often on both sides. Where every element
  has a name of its own ("x=3, y=4"), elements of one name are compared, or the order counts where the other side has no
  names.
- Sets know neither order nor repetition. Tuples and intervals: the same brackets, elements in order. A list is equal to
  a tuple `(a,b)` with the same elements in order, to no interval and no other brackets of two.
- Variables that name values (`x = 5`, `y = 5`) must be the same where both sides have one.
- A percentage p% is equal to p/100, and to p.
- Units: see units.py. A relation (`x+y = 7`) is not a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from w2sr.verify import algebra
from w2sr.verify.answers import INTERVALS, LIST, OPAQUE, RELATION, SET, VALUE, Answer, is_variable
from w2sr.verify.plain_numbers import compare_numbers, plain_number
from w2sr.verify.plain_text import compare_plain_text
from w2sr.verify.quotients import Arithmetic
from w2sr.verify.units import units_differ

MAX_PAIRS = 144
"""Lists with more pairs of elements are compared as text by math-verify."""


class Pair(NamedTuple):
    """Two canonical texts whose equality is open. `open_pair` orders them: which is the answer does not matter."""

    first: str
    second: str


def open_pair(one: str, other: str) -> Pair:
    return Pair(min(one, other), max(one, other))


class All(NamedTuple):
    """Open until all parts are equal or one is different."""

    parts: tuple[Decision, ...]


class Either(NamedTuple):
    """Open until one part is equal or all are different."""

    parts: tuple[Decision, ...]


class Match(NamedTuple):
    """Elements against elements, one line an element of the answer: each needs a partner. `once` forbids sharing."""

    lines: tuple[tuple[Decision, ...], ...]
    once: bool


Decision = bool | Pair | All | Either | Match
"""True and False are decided; everything else holds open pairs."""


def compare(given: Answer, wanted: Answer) -> Decision:
    """Whether the two mean the same."""
    return _Comparison().compare(given, wanted)


class _Comparison:
    """One comparison, with one bound for the arithmetic of all its pairs."""

    def __init__(self) -> None:
        self.arithmetic = Arithmetic()

    def compare(self, given: Answer, wanted: Answer) -> Decision:
        if given.name != wanted.name and is_variable(given.name) and is_variable(wanted.name):
            return False
        forms = (given.form, wanted.form)
        if given.text == wanted.text and forms == (wanted.form, given.form):
            return not units_differ(given.unit, wanted.unit)
        if OPAQUE in forms:
            return open_pair(given.text, wanted.text)
        if RELATION in forms:
            return self._with_relation(given, wanted)
        if forms == (VALUE, VALUE):
            return self._values(given, wanted)
        if VALUE in forms:
            return self._value_with_group(given, wanted)
        return self._groups(given, wanted)

    def _with_relation(self, given: Answer, wanted: Answer) -> Decision:
        other = wanted if given.form == RELATION else given
        if other.form == VALUE and not other.name and algebra.is_readable(other.text):
            return False
        return open_pair(given.whole or given.text, wanted.whole or wanted.text)

    def _value_with_group(self, given: Answer, wanted: Answer) -> Decision:
        value, group = (given, wanted) if given.form == VALUE else (wanted, given)
        if group.form == SET and len(group.items) == 1:
            return self.compare(given, group.items[0]) if group is wanted else self.compare(group.items[0], wanted)
        return False if algebra.is_readable(value.text) else open_pair(given.text, wanted.text)

    def _groups(self, given: Answer, wanted: Answer) -> Decision:
        first, second = given.items, wanted.items
        forms = {given.form, wanted.form}
        if len(first) * len(second) > MAX_PAIRS:
            return open_pair(given.text, wanted.text)
        if forms == {SET} or forms == {SET, LIST}:
            return self._match(first, second, once=False)
        if SET in forms:
            return False
        if forms == {LIST}:
            return self._lists(first, second)
        if given.form != wanted.form:
            if LIST not in forms:
                return False if len(first) == 2 == len(second) else open_pair(given.text, wanted.text)
            group = given if wanted.form == LIST else wanted
            if group.from_relation or (group.form != "()" and len(group.items) == 2) or group.form not in INTERVALS[:2]:
                return False
        return self._in_order(first, second)

    def _lists(self, first: tuple[Answer, ...], second: tuple[Answer, ...]) -> Decision:
        has_values = any(item.form == VALUE for item in (*first, *second))
        if len(first) != len(second) and has_values:
            return False
        given_names, wanted_names = ({item.name: item for item in items if item.name} for items in (first, second))
        given_named, wanted_named = len(given_names) == len(first), len(wanted_names) == len(second)
        if given_named and wanted_named:
            if given_names.keys() != wanted_names.keys():
                return False
            return _all(self.compare(item, wanted_names[name]) for name, item in given_names.items())
        if (given_named and not wanted_names) or (wanted_named and not given_names):
            return self._in_order(first, second)
        return self._match(first, second, once=has_values)

    def _in_order(self, first: tuple[Answer, ...], second: tuple[Answer, ...]) -> Decision:
        if len(first) != len(second):
            return False
        return _all(self.compare(left, right) for left, right in zip(first, second, strict=True))

    def _match(self, first: tuple[Answer, ...], second: tuple[Answer, ...], once: bool) -> Decision:
        lines = tuple(tuple(self.compare(left, right) for right in second) for left in first)
        decision = Match(lines, once)
        settled = settle(decision, {})
        return decision if settled is None else settled

    def _values(self, given: Answer, wanted: Answer) -> Decision:
        if units_differ(given.unit, wanted.unit):
            return False
        decision = self._scalars(given.text, wanted.text)
        if given.percent == wanted.percent or decision is True:
            return decision
        percent, bare = (given, wanted) if given.percent else (wanted, given)
        share = rf"\frac{{{percent.text}}}{{100}}"
        as_share = self._scalars(share, bare.text) if given.percent else self._scalars(bare.text, share)
        if as_share is True or decision is False:
            return as_share
        return decision if as_share is False else Either((as_share, decision))

    def _scalars(self, given: str, wanted: str) -> bool | Pair:
        """Two values by text, as plain numbers, or by algebra."""
        if given == wanted:
            return True
        first, second = plain_number(given), plain_number(wanted)
        if first is not None and second is not None and bool(first.base) == bool(second.base):
            return compare_numbers(first, second)[0]
        if (first is not None and first.base) or (second is not None and second.base):
            return given.partition("_")[0] == wanted.partition("_")[0]  # the base may be left out: it is the question's
        text = compare_plain_text(given, wanted)
        decided = text[0] if text is not None else algebra.compare(given, wanted, self.arithmetic)
        return open_pair(given, wanted) if decided is None else decided


def _all(decisions: Iterator[Decision]) -> Decision:
    parts = tuple(decisions)
    if False in parts:
        return False
    left = tuple(part for part in parts if part is not True)
    return True if not left else left[0] if len(left) == 1 else All(left)


def open_pairs(decision: Decision) -> Iterator[Pair]:
    """The pairs that a decision waits for."""
    if isinstance(decision, Pair):
        yield decision
    elif isinstance(decision, All | Either):
        for part in decision.parts:
            yield from open_pairs(part)
    elif isinstance(decision, Match):
        for line in decision.lines:
            for part in line:
                yield from open_pairs(part)


def settle(decision: Decision, equal: Mapping[Pair, bool | None]) -> bool | None:
    """The decision, given what became of its pairs; None where it needs one that is missing or None."""
    if isinstance(decision, bool):
        return decision
    if isinstance(decision, Pair):
        return equal.get(decision)
    if isinstance(decision, Match):
        return _settle_match([[settle(part, equal) for part in line] for line in decision.lines], decision.once)
    wanted = isinstance(decision, Either)
    settled = {settle(part, equal) for part in decision.parts}
    return wanted if wanted in settled else None if None in settled else not wanted


def _settle_match(lines: list[list[bool | None]], once: bool) -> bool | None:
    columns = [list(column) for column in zip(*lines, strict=True)]
    if once and len(lines) != len(columns):
        return False
    if any(True not in line and None not in line for line in [*lines, *columns]):
        return False
    certain = [[part is True for part in line] for line in lines]
    possible = [[part is not False for part in line] for line in lines]
    if not once:
        return True if all(map(any, [*certain, *zip(*certain, strict=True)])) else None
    if _has_matching(certain):
        return True
    return None if _has_matching(possible) else False


def _has_matching(lines: list[list[bool]]) -> bool:
    """Whether every line has a column of its own (Kuhn's algorithm)."""
    owners: dict[int, int] = {}

    def place(line: int, seen: set[int]) -> bool:
        for column, fits in enumerate(lines[line]):
            if fits and column not in seen:
                seen.add(column)
                if column not in owners or place(owners[column], seen):
                    owners[column] = line
                    return True
        return False

    return all(place(line, set()) for line in range(len(lines)))
