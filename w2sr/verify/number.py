r"""Numbers with a tolerance: exact arithmetic on what was written, with percent signs and units.

An answer is right where |answer − reference| ≤ max(absolute, relative · |reference|). Thousands separators (commas,
spaces, `\,`), scientific notation, powers (`10^5`), fractions, mixed numbers (`2 1/2`, `2½`), currency signs and
"million" are read; "1.234,5" is not, because a comma is never a decimal point here. A percent sign divides by 100;
where only one side has it and the other is at least 1, it may also be read as a unit ("50%" meets "50", "0.5%" does
not meet "0.5"). A unit is text after the number: two units must be equal text, one alone is ignored, none is converted.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from w2sr.types import Tolerance
from w2sr.verify.markup import plain, unwrap

EXACT = Tolerance()

MAX_NUMBER_CHARS = 300
"""A longer answer is no number: arithmetic on it could take long."""

_UNSIGNED = (
    r"(?:[0-9]{1,3}(?:(?P<separator>[, ])[0-9]{3})(?:(?P=separator)[0-9]{3})*(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
)
_PLAIN = re.compile(
    rf"([+-]?) ?(?:{_UNSIGNED})(?:[eE](?P<e>[+-]?[0-9]{{1,3}})(?![0-9])| ?(?:×|x|\*) ?10\^(?P<ten>[+-]?[0-9]{{1,3}}))?"
)
_FRACTION = re.compile(r"([+-]?) ?(?:frac)? ?\(?([0-9]+)(?:\)? ?/ ?\(?|\)\()([0-9]+)\)?(?![0-9.])")
_MIXED = re.compile(r"([+-]?) ?([0-9]+) ([0-9]+)/([0-9]+)(?![0-9.])")
_POWER = re.compile(r"([+-]?) ?([0-9]{1,9}(?:\.[0-9]{1,9})?)\^([+-]?[0-9]{1,3})(?![0-9.^])")
_TEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s?([0-9]))")
_SUPERSCRIPT = re.compile(r"(?<=[0-9])⁻?[⁰¹²³⁴-⁹]+")
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|operatorname)(?![A-Za-z])")
_LEAD = re.compile(r"(?:[A-Za-z]\w* ?=|=|≈|~|about|approximately|approx\.?|roughly|around)\s*", re.IGNORECASE)
_PERCENT = re.compile(r" ?(?:%|percent|per cent)\.?", re.IGNORECASE)
_UNIT = re.compile(r"[A-Za-zµμ°ΩΩ²³]+(?:\^?-?[0-9])?(?:[ ./·*-]{1,2}[A-Za-zµμ°Ω²³]+(?:\^?-?[0-9])?){0,5}")
_NO_UNIT = re.compile(
    r"(?<![A-Za-z])(?:or|and|to|plus|minus|times|over|than|not|no|mod|sqrt|pi|e|i|x|y|n)(?![A-Za-z])", re.I
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


class Quantity(NamedTuple):
    """A number as it was written: 50 for "50%", its exact value, and the unit ("" without one)."""

    value: Fraction
    is_percent: bool
    unit: str


def read_quantity(text: str) -> Quantity | None:
    r"""The number that the text is, or None where it is anything else.

    >>> read_quantity(r"$1{,}234.50"), read_quantity("6.02 × 10^{23}").value == 602 * 10**21, read_quantity("3 or 4")
    (Quantity(value=Fraction(2469, 2), is_percent=False, unit=''), True, None)
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = _plain_text(text)
    number = _read_mixed(text) or _read_power(text) or _read_fraction(text) or _read_decimal(text)
    if number is None:
        return None
    value, rest = number
    if _PERCENT.fullmatch(rest):
        return Quantity(value, True, "")
    rest = " ".join(rest.strip(" .-–").split())
    scale, _, after = rest.partition(" ")
    if scale.casefold() in _SCALES:
        value, rest = value * _SCALES[scale.casefold()], after
    if rest and (not _UNIT.fullmatch(rest) or _NO_UNIT.search(rest)):
        return None
    return Quantity(value, False, rest.casefold())


def _plain_text(text: str) -> str:
    text = re.sub("^–(?=[0-9.])", "-", unwrap(plain(text)))
    text = text.replace(r"\times", "×").replace(r"\cdot", "×").replace(r"\approx", "≈").replace("**", "^")
    text = _TEX_FRACTION.sub(lambda match: f" {match[1] or match[3]}/{match[2] or match[4]}", text.replace("{,}", ","))
    text = _VULGAR.sub(lambda match: f" {Fraction(unicodedata.numeric(match[0])).limit_denominator(10)}", text)
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"\\[,;:! ]|~(?=[0-9])", " ", _WRAPPER.sub(" ", text).replace(r"\%", "%").replace(r"\$", ""))
    text = " ".join(re.sub(r"[{}$€£¥₹_`]", "", text).split()).rstrip(".,;")
    return text[found.end() :] if (found := _LEAD.match(text)) else text


def _read_mixed(text: str) -> tuple[Fraction, str] | None:
    match = _MIXED.match(text)
    if match is None or not 0 < int(match.group(3)) < int(match.group(4)):
        return None
    value = int(match.group(2)) + Fraction(int(match.group(3)), int(match.group(4)))
    return (-value if match.group(1) == "-" else value), text[match.end() :]


def _read_power(text: str) -> tuple[Fraction, str] | None:
    match = _POWER.match(text)
    if match is None or (Fraction(match.group(2)) == 0 and int(match.group(3)) <= 0):
        return None
    value = Fraction(match.group(2)) ** int(match.group(3))
    return (-value if match.group(1) == "-" else value), text[match.end() :]


def _read_fraction(text: str) -> tuple[Fraction, str] | None:
    match = _FRACTION.match(text)
    if match is None or int(match.group(3)) == 0:
        return None
    value = Fraction(int(match.group(2)), int(match.group(3)))
    return (-value if match.group(1) == "-" else value), text[match.end() :]


def _read_decimal(text: str) -> tuple[Fraction, str] | None:
    match = _PLAIN.match(text)
    if match is None:
        return None
    mantissa = re.match(r"[+-]? ?[0-9., ]+", match.group())
    assert mantissa is not None  # _PLAIN begins so
    value = Fraction(re.sub(r"[ ,]", "", mantissa.group()).rstrip("."))
    value *= Fraction(10) ** int(match["e"] or match["ten"] or 0)
    return value, text[match.end() :]


def grade(answer: str, reference_answer: str, tolerance: Tolerance = EXACT) -> tuple[bool, str]:
    """Whether the answer is within tolerance of the reference, and one sentence why.

    >>> grade("3.14", "3.14159", Tolerance(absolute=0.01)), grade("12 km", "12 m")
    ((True, 'within tolerance'), (False, "unit 'km' is not 'm'"))
    """
    given, wanted = read_quantity(answer), read_quantity(reference_answer)
    if given is None or wanted is None:
        return False, "the answer is no number" if given is None else "the reference is no number"
    if given.unit and wanted.unit and given.unit != wanted.unit:
        return False, f"unit {given.unit!r} is not {wanted.unit!r}"
    pairs = [(_value(given), _value(wanted))]
    bare = wanted if given.is_percent else given
    if given.is_percent != wanted.is_percent and abs(bare.value) >= 1:
        pairs.append((given.value, wanted.value))
    if any(first == second for first, second in pairs):
        return True, "equal numbers"
    if any(abs(first - second) <= _allowed(second, tolerance) for first, second in pairs):
        return True, "within tolerance"
    return False, f"{_shown(pairs[0][0])} is not {_shown(pairs[0][1])}"


def _value(quantity: Quantity) -> Fraction:
    return quantity.value / 100 if quantity.is_percent else quantity.value


def _allowed(reference: Fraction, tolerance: Tolerance) -> Fraction:
    """`repr` of a float, so that 0.1 means a tenth."""
    return max(Fraction(repr(tolerance.absolute)), Fraction(repr(tolerance.relative)) * abs(reference))


def _shown(value: Fraction) -> str:
    text = str(value) if value.denominator == 1 else f"{float(value):g}"
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_reference(reference_answer: str) -> None:
    """Raises ValueError where the reference is no number."""
    if read_quantity(reference_answer) is None:
        raise ValueError(f"the reference answer {reference_answer[:80]!r} is no number")
