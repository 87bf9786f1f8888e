r"""Plain numbers: integers, decimals, fractions and mixed numbers, with or without a unit, compared exactly."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_NUMBER_CHARS = 300
"""A longer digit string is no plain number; Python itself refuses to parse more than 4,300 digits."""

DECIMAL_TOLERANCE = Fraction(2, 1_000_000)
"""Decimals that differ by less may still round to the same six digits, by which math-verify calls them equal."""

_UNSIGNED = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_DECIMAL = re.compile(rf"([+-]?)({_UNSIGNED})")
_SCIENTIFIC = re.compile(r"[+-]?[0-9]\.[0-9]+[eE][+-]?[0-9]{1,3}")
_RATIO = re.compile(rf"([+-]?)(?:({_UNSIGNED})/({_UNSIGNED})|\\frac\{{(-?{_UNSIGNED})\}}\{{({_UNSIGNED})\}})")
_MIXED = re.compile(r"([0-9]+)\\frac\{([0-9]+)\}\{([0-9]+)\}")

_WITH_UNIT = re.compile(rf"([+-]?{_UNSIGNED}) ?([A-Za-z]{{2,}}(?:[ ./-][A-Za-z]+){{0,5}}\.?(?:\^\{{?[23]\}}?)?)")
_SHORT_UNITS = {
    "cm",
    "mm",
    "km",
    "dm",
    "kg",
    "mg",
    "ml",
    "mL",
    "ft",
    "in",
    "lb",
    "oz",
    "hr",
    "yd",
    "mi",
    "sq",
    "of",
    "a",
}
NO_UNIT = re.compile(
    "hundred|thousand|[mbtr]+illion|dozens?|score|gross|half|halves|thirds?|quarters?|tenths?|percent|percentage|pct|"
    "plus|minus|times|over|mod|sin|cos|tan|log|exp|sqrt|factorial|squared|cubed|choose|root|inf|infty|infinity|and|or|"
    "remainder|base|than|less|more|not|no",
    re.IGNORECASE,
)


class Number(NamedTuple):
    """A plain number: its exact value, whether it was written with a decimal point, and its unit ("" without one)."""

    value: Fraction
    is_decimal: bool
    unit: str = ""


def plain_number(text: str) -> Number | None:
    r"""Reads canonical text as a plain number, or None where it is none.

    >>> plain_number(r"-\frac{1}{2}").value, plain_number("073").value, plain_number("12 hours").unit
    (Fraction(-1, 2), Fraction(73, 1), 'hours')
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    if _DECIMAL.fullmatch(text) or _SCIENTIFIC.fullmatch(text):
        return Number(Fraction(text.rstrip(".")), "." in text.rstrip("."))
    if (ratio := _RATIO.fullmatch(text)) is not None:
        return _ratio(*ratio.groups(default=""))
    if (mixed := _MIXED.fullmatch(text)) is not None:
        whole, over, under = (int(part) for part in mixed.groups())
        return Number(whole + Fraction(over, under), False) if 0 < over < under else None
    if (measure := _WITH_UNIT.fullmatch(text)) is not None and _is_unit(measure.group(2)):
        number = measure.group(1).rstrip(".")
        return Number(Fraction(number), "." in number, measure.group(2))
    return None


def _ratio(sign: str, over: str, under: str, tex_over: str, tex_under: str) -> Number | None:
    numerator, denominator = (over or tex_over).rstrip("."), (under or tex_under).rstrip(".")
    if Fraction(denominator) == 0:
        return None
    value = Fraction(numerator) / Fraction(denominator)
    return Number(-value if sign == "-" else value, "." in numerator + denominator)


def _is_unit(words: str) -> bool:
    """Whether the words after a number can be a unit or a counted thing, not a scale ("million") and not algebra."""
    parts = re.findall(r"[A-Za-z]+", words)
    first_is_word = len(parts[0]) >= 3 or parts[0] in _SHORT_UNITS
    return first_is_word and not any(NO_UNIT.fullmatch(part) for part in parts)


def compare_numbers(given: Number, wanted: Number) -> tuple[bool, str] | None:
    """Whether two numbers are equal and why; None where rounding or their units leave it open."""
    if given.unit and wanted.unit and given.unit != wanted.unit:
        return None
    if given.value == wanted.value:
        return True, "equal numbers"
    exact = not given.is_decimal and not wanted.is_decimal
    if exact or abs(given.value - wanted.value) >= DECIMAL_TOLERANCE:
        return False, f"{_shown(given)} is not {_shown(wanted)}"
    return None


def _shown(number: Number) -> str:
    text = str(float(number.value)) if number.is_decimal else str(number.value)
    return text if len(text) <= 40 else text[:37] + "..."
