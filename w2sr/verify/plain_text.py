r"""Answers that are no formulas: words, option letters, hexadecimal numbers, times, sentences.

math-verify reads such text as mathematics: `0x1f` as 0 * x * 1 * f, `2:55` as a ratio, and a word or a sentence as the
product of its letters, so that "pots" is "stop". Here they are compared as what they are. All rules are symmetric.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from w2sr.verify.plain_numbers import plain_number

_PHRASE = re.compile(r"[A-Za-z]+(?:[ '-][A-Za-z]+)*")
_OPTION = re.compile(r"\(?([A-Za-z])[).]?")
_HEXADECIMAL = re.compile(r"[+-]?0[xX][0-9a-fA-F]{1,200}")
_CLOCK = re.compile(
    r"(?:([0-9]{1,6}) days?,? ?)?([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}(?:\.[0-9]{1,9})?))?"
    r" ?(?:([AaPp])(?:\.? ?[Mm])?\.*)?"
)
_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,}")
_READ = re.compile(
    "percent(?:age)?|pct|inf|infty|infinity|sqrt|a?(?:sin|cos|tan|sec|csc|cot)h?|arc[a-z]+|log|exp|lcm|gcd|max|min|det|abs",
    re.IGNORECASE,
)
"""Words that math-verify reads as more than a product of letters."""

_LAST_DIGIT = re.compile(r".*[0-9]", re.DOTALL)


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

    >>> compare_plain_text("0x1F", "0x01f"), compare_plain_text("4:30 p.m", "4:30p"), compare_plain_text("pots", "stop")
    ((True, 'equal hexadecimal numbers'), (True, 'equal times'), (False, 'different words'))
    """
    first, second = _OPTION.fullmatch(given), _OPTION.fullmatch(wanted)
    if first and second:
        equal = first[1].casefold() == second[1].casefold()
        return equal, "equal letter" if equal else "different letters"
    if _is_phrase(given) and _is_phrase(wanted):
        equal = given.casefold() == wanted.casefold()
        return equal, "equal words" if equal else "different words"
    if _HEXADECIMAL.fullmatch(given) and _HEXADECIMAL.fullmatch(wanted):
        equal = int(given, 16) == int(wanted, 16)
        return equal, f"{'equal' if equal else 'different'} hexadecimal numbers"
    given_time, wanted_time = _time(given), _time(wanted)
    if given_time is not None and wanted_time is not None:
        return _compare_times(given_time, wanted_time)
    for text, other, clock in ((given, wanted, given_time), (wanted, given, wanted_time)):
        if plain_number(other) is not None and ((clock is not None and clock.half) or is_sentence(text)):
            return False, "a time is not a number" if clock else "a sentence is not a number"
    return None


def _is_phrase(text: str) -> bool:
    """Whether the text is words, and not a product of a few letters."""
    return _PHRASE.fullmatch(text) is not None and any(len(word) > 3 for word in re.findall("[A-Za-z]+", text))


def is_sentence(text: str) -> bool:
    """Whether words stand before the last digit, so that they are no unit, or the text has words and no digit."""
    if "\\" in text or "=" in text:
        return False
    words = [match.group() for match in _WORD.finditer(text)]
    if any(_READ.fullmatch(word) for word in words):
        return False
    before = _LAST_DIGIT.match(text)
    return any(word != "and" for word in _WORD.findall(before.group() if before else text))


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
