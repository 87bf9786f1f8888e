r"""Answers that are no formulas: hexadecimal and scientific numbers, times, sentences, and sums with their result.

math-verify reads such text as mathematics: `0x1f` as 0 * x * 1 * f, `2:55` as a ratio, `1.5e-3` with Euler's number,
and a sentence as a product of its letters. A sentence therefore never equals a number, and the last part of `3 + 4 = 7`
counts; both are kept. Hexadecimal numbers and times are compared as what they are.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from w2sr.verify.plain_numbers import Number, compare_numbers, plain_number

_HEXADECIMAL = re.compile(r"[+-]?0[xX][0-9a-fA-F]{1,200}")
_SCIENTIFIC = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?[eE][+-]?[0-9]{1,3}")
_CLOCK = re.compile(
    r"(?:([0-9]{1,6}) days?,? ?)?([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}(?:\.[0-9]{1,9})?))?"
    r" ?(?:([AaPp])(?:\.? ?[Mm])?\.?)?"
)
_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,}")
_READ = re.compile(
    "percent(?:age)?|pct|inf|infty|infinity|sqrt|a?(?:sin|cos|tan|sec|csc|cot)h?|arc[a-z]+|log|exp|lcm|gcd|max|min|det|abs",
    re.IGNORECASE,
)
"""Words that math-verify reads as more than a product of letters."""

_NOT_A_CHAIN = re.compile(r"[;<>≈]|[!=]=")
_LAST_DIGIT = re.compile(r".*[0-9]", re.DOTALL)

SCIENTIFIC_DIFFERENCE = Fraction(1, 1_000_000)
"""Scientific numbers that differ by a larger share are different."""


class _Time(NamedTuple):
    """A time of day or a span; None and "" for parts that are not written."""

    days: int | None
    hours: int
    minutes: int
    seconds: Fraction | None
    half: str

    @property
    def form(self) -> tuple[bool, bool, bool]:
        return self.days is None, self.seconds is None, self.half == ""


def compare_plain_text(given: str, wanted: str) -> tuple[bool, str] | None:
    """Decides between two canonical texts with one sentence why, or None.

    >>> compare_plain_text("0x1F", "0x01f"), compare_plain_text("4:30 p.m", "4:30p"), compare_plain_text("3+4=7", "7")
    ((True, 'equal hexadecimal numbers'), (True, 'equal times'), (True, 'equal numbers'))
    """
    if _HEXADECIMAL.fullmatch(given) and _HEXADECIMAL.fullmatch(wanted):
        equal = int(given, 16) == int(wanted, 16)
        return equal, f"{'equal' if equal else 'different'} hexadecimal numbers"
    if _SCIENTIFIC.fullmatch(given) and _SCIENTIFIC.fullmatch(wanted):
        return _compare_scientific(Fraction(given), Fraction(wanted))
    number = plain_number(wanted)
    clock = _time(given)
    if clock is not None and number is not None and clock.half:
        return False, "a time is not a number"
    if clock is not None and (other := _time(wanted)) is not None:
        return _compare_times(clock, other)
    return None if number is None or number.value == 0 else _compare_with_number(given, number)


def _compare_scientific(given: Fraction, wanted: Fraction) -> tuple[bool, str] | None:
    if abs(given - wanted) > SCIENTIFIC_DIFFERENCE * max(abs(given), abs(wanted)):
        return False, "different numbers in scientific notation"
    return None


def _time(text: str) -> _Time | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds, half = match.groups()
    return _Time(
        None if days is None else int(days),
        int(hours),
        int(minutes),
        None if seconds is None else Fraction(seconds),
        (half or "").lower(),
    )


def _compare_times(given: _Time, wanted: _Time) -> tuple[bool, str] | None:
    if given.form != wanted.form:
        return None
    if given == wanted:
        return True, "equal times"
    is_ratio = given.form == (True, True, True)
    if is_ratio and given.hours * wanted.minutes == wanted.hours * given.minutes:
        return None  # 1:20 is 2:40 as a ratio
    return False, "different times"


def _compare_with_number(given: str, wanted: Number) -> tuple[bool, str] | None:
    """A sum with its result, or a sentence, beside a number that is not zero."""
    words = [match.group() for match in _WORD.finditer(given)]
    if "\\" in given or any(_READ.fullmatch(word) for word in words):
        return None
    if "=" in given and "," not in given:
        last = None if _NOT_A_CHAIN.search(given) else plain_number(given.rpartition("=")[2].strip())
        if last is not None:
            return compare_numbers(last, wanted)
        given = given.rpartition("=")[2]
    # Words after the last digit may be a unit, which math-verify removes.
    before = _LAST_DIGIT.match(given)
    if any(word != "and" for word in _WORD.findall(before.group() if before else given)):
        return False, "a sentence is not a number"
    return None
