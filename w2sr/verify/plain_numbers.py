r"""Plain numbers: integers, decimals, fractions, mixed and scientific numbers, numerals of another base.

Exact values are compared exactly. A decimal may be a rounded value: it equals what rounds to it, where it has at least
six significant digits (0.333333 and 1/3; not 0.3333 and 1/3). A relative difference of 1e-12 is the noise of floating
point (0.30000000000000004 and 0.3).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_NUMBER_CHARS = 300
"""A longer digit string is no plain number; Python itself refuses to parse more than 4,300 digits."""

MAX_EXPONENT = 1_000
MIN_ROUNDED_DIGITS = 6
"""A decimal with fewer significant digits is not taken for a rounded value."""

NOISE = Fraction(1, 10**12)
"""A larger relative difference is none of floating point."""

_UNSIGNED = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_DECIMAL = re.compile(
    rf"([+-]?)({_UNSIGNED})((?: ?\\cdot ?| ?\* ?)10(?:\^\{{(-?[0-9]{{1,4}})\}})?)?"
    r"( ?(?:thousand|million|billion|trillion))?"
)
_RATIO = re.compile(rf"([+-]?)(?:({_UNSIGNED})/({_UNSIGNED})|\\frac\{{(-?{_UNSIGNED})\}}\{{({_UNSIGNED})\}})")
_MIXED = re.compile(r"([+-]?)([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}")
_BASED = re.compile(r"([0-9A-Za-z]+)_\{([0-9]{1,2}|two|three|four|five|six|seven|eight|nine|ten)\}")
_WORD_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


class Number(NamedTuple):
    """A plain number: its exact value, and how a decimal was written.

    `places` are the digits behind its point (negative where an exponent moves it to the left), None for an exact
    value; `digits` the significant ones. `base` is 0 but for a numeral with one.
    """

    value: Fraction
    places: int | None = None
    digits: int = 0
    base: int = 0

    @property
    def is_decimal(self) -> bool:
        return self.places is not None


def plain_number(text: str) -> Number | None:
    r"""Reads canonical text as a plain number, or None where it is none.

    >>> plain_number(r"-\frac{1}{2}").value, plain_number(r"1.50\cdot 10^{3}"), plain_number("101_{2}").value
    (Fraction(-1, 2), Number(value=Fraction(1500, 1), places=-1, digits=3, base=0), Fraction(5, 1))
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    if (decimal := _DECIMAL.fullmatch(text)) is not None:
        return _decimal(decimal)
    if (ratio := _RATIO.fullmatch(text)) is not None:
        return _ratio(*ratio.groups(default=""))
    if (mixed := _MIXED.fullmatch(text)) is not None:
        whole, over, under = (int(part) for part in mixed.groups()[1:])
        sign = -1 if mixed[1] == "-" else 1
        return Number(sign * (whole + Fraction(over, under))) if 0 < over < under else None
    if (based := _BASED.fullmatch(text)) is not None:
        return _based(*based.groups())
    return None


def _decimal(match: re.Match[str]) -> Number | None:
    sign, written, power, exponent_text, scale = match.groups()
    whole, point, behind = written.partition(".")
    exponent = (int(exponent_text) if exponent_text else 1) if power else 0
    exponent += _SCALES[scale.strip()] if scale else 0
    if abs(exponent) > MAX_EXPONENT:
        return None
    value = Fraction(f"{sign}{whole or 0}{point and behind and '.' + behind}") * Fraction(10) ** exponent
    if not behind and exponent >= 0:
        return Number(value)
    return Number(value, len(behind) - exponent, len((whole + behind).lstrip("0")))


def _ratio(sign: str, over: str, under: str, tex_over: str, tex_under: str) -> Number | None:
    numerator, denominator = (over or tex_over).rstrip("."), (under or tex_under).rstrip(".")
    if Fraction(denominator) == 0:
        return None
    value = Fraction(numerator) / Fraction(denominator)
    return Number(-value if sign == "-" else value)


def _based(digits: str, base_text: str) -> Number | None:
    base = _WORD_BASES.index(base_text) + 2 if base_text in _WORD_BASES else int(base_text)
    if not 2 <= base <= 36:
        return None
    try:
        return Number(Fraction(int(digits, base)), base=base)
    except ValueError:  # a digit that the base does not have
        return None


def compare_numbers(given: Number, wanted: Number) -> tuple[bool, str]:
    """Whether two numbers are equal, and why. Symmetric.

    >>> compare_numbers(plain_number("0.333333"), plain_number("1/3"))
    (True, 'equal after rounding')
    """
    if given.value == wanted.value:
        return True, "equal numbers"
    if rounds_to(given, wanted) or rounds_to(wanted, given):
        return True, "equal after rounding"
    return False, f"{_shown(given)} is not {_shown(wanted)}"


def rounds_to(value: Number, decimal: Number) -> bool:
    """Whether the value, exact or with at least as many places, can have been rounded to the decimal."""
    if decimal.places is None or (value.places is not None and value.places < decimal.places):
        return False
    difference = abs(value.value - decimal.value)
    if difference <= NOISE * abs(decimal.value):
        return True
    return decimal.digits >= MIN_ROUNDED_DIGITS and 2 * difference <= Fraction(10) ** -decimal.places


def _shown(number: Number) -> str:
    if number.base:
        return f"{number.value} (base {number.base})"
    text = f"{float(number.value)}" if number.is_decimal and abs(number.value) < 10**300 else str(number.value)
    return text if len(text) <= 40 else text[:37] + "..."
