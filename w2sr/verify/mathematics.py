r"""Grading of mathematical answers: an exact fast path that needs no sympy, and what math-verify is given otherwise.

The fast path decides what is obvious: equal text after normalisation; two plain numbers (integers, decimals,
fractions, mixed numbers, with thousands commas, currency signs or a unit) by exact arithmetic; two option letters; two
words. Everything else returns None and goes to math-verify in a worker process.

Where the fast path decides, it follows math-verify's conventions (a decimal equals a fraction that rounds to it at six
digits; units are ignored), except where math-verify reads text as a product of variables: "5 dollars" is 5 here,
"pots" is not "stop", and `11\,111` is 11111. Percent signs are left to math-verify unless the texts are equal.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_ANSWER_CHARS = 10_000
"""A longer answer is incorrect without being graded; a longer reference cannot be used."""

MAX_NUMBER_CHARS = 300
"""A longer digit string is no plain number; Python itself refuses to parse more than 4,300 digits."""

DECIMAL_TOLERANCE = Fraction(2, 1_000_000)
"""Decimals that differ by less may still round to the same six digits, by which math-verify calls them equal."""

_SYMBOLS = str.maketrans(
    {"−": "-", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "·": r"\cdot "}
)
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr)(?![A-Za-z])|\\!|\\?\$")
_SPACES = re.compile(r"\s+")
_DEGREE = re.compile(r" ?(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree(?![A-Za-z]))")
_BLANK = re.compile(r"\\[,;: ]|~|\\q?quad(?![A-Za-z])")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])")
_SHORT_FRAC = re.compile(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])(?![0-9])")
_THOUSANDS = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?:(?:,|\{,\}|,?\\!,?|\\,)[0-9]{3})+(?![0-9])")
_MISSING = {"nan", "NaN", "null", "None", "<NA>"}  # what a table writes for a value that was lost

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
_NO_UNIT = re.compile(
    "hundred|thousand|[mbtr]+illion|dozens?|score|gross|half|halves|thirds?|quarters?|tenths?|percent|percentage|pct|"
    "plus|minus|times|over|mod|sin|cos|tan|log|exp|sqrt|factorial|squared|cubed|choose|root|inf|infty|infinity|and|or|"
    "remainder|base|than|less|more|not|no",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]{4,}(?:[ -][A-Za-z]+)*")
_OPTION = re.compile(r"\(?([A-Za-z])[).]?")


class Number(NamedTuple):
    """A plain number: its exact value, whether it was written with a decimal point, and its unit ("" without one)."""

    value: Fraction
    is_decimal: bool
    unit: str = ""


def canonical(text: str) -> str:
    r"""One spelling for texts that differ only in typography. Linear time.

    >>> canonical(r" $\left( \dfrac12 ,\ 1{,}000 \text{ cm} \right)$. ")
    '(\\frac{1}{2},1000 cm)'
    """
    text = _join_thousands(_SPACES.sub(" ", text.translate(_SYMBOLS)))
    text = _WRAPPER.sub(r" \1 ", _DROPPED.sub("", text))
    text = _DEGREE.sub("", text).replace(r"\%", "%")
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _LOOSE_SPACE.sub("", _SPACES.sub(" ", _BLANK.sub(" ", text))).strip()
    text = _SHORT_FRAC.sub(r"\\frac{\1}{\2}", text)
    whole = re.fullmatch(r"\{([^{}]*)\}", text)
    return (whole.group(1) if whole else text).rstrip(".,;").strip()


def _join_thousands(text: str) -> str:
    return _THOUSANDS.sub(lambda match: re.sub(r"[^0-9]", "", match.group()), text)


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
    return first_is_word and not any(_NO_UNIT.fullmatch(part) for part in parts)


def quick_grade(answer: str, reference_answer: str) -> tuple[bool, str] | None:
    r"""Decides the obvious cases with one sentence why; None sends the pair to math-verify.

    >>> quick_grade("$1,026.00", "1026"), quick_grade(r"\frac{13}{2}", "6"), quick_grade("x+1", "1+x")
    ((True, 'equal numbers'), (False, '13/2 is not 6'), None)
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return False, f"an answer of {len(answer):,} characters is not graded (limit {MAX_ANSWER_CHARS:,})"
    given, wanted = canonical(answer), canonical(reference_answer)
    if not given:
        return False, "nothing is left of the answer without its markup"
    if given == wanted:
        return True, "equal text"
    given_number, wanted_number = plain_number(given), plain_number(wanted)
    if given_number is not None and wanted_number is not None:
        return _compare_numbers(given_number, wanted_number)
    return _compare_words(given, wanted)


def _compare_numbers(given: Number, wanted: Number) -> tuple[bool, str] | None:
    if given.unit and wanted.unit and given.unit != wanted.unit:
        return None
    if given.value == wanted.value:
        return True, "equal numbers"
    exact = not given.is_decimal and not wanted.is_decimal
    if exact or abs(given.value - wanted.value) >= DECIMAL_TOLERANCE:
        return False, f"{_shown(given)} is not {_shown(wanted)}"
    return None


def _compare_words(given: str, wanted: str) -> tuple[bool, str] | None:
    given_option, wanted_option = _OPTION.fullmatch(given), _OPTION.fullmatch(wanted)
    if given_option and wanted_option:
        equal = given_option.group(1).casefold() == wanted_option.group(1).casefold()
        return equal, "equal letter" if equal else "different letters"
    if _WORD.fullmatch(given) and _WORD.fullmatch(wanted):
        equal = given.casefold() == wanted.casefold()
        return equal, "equal words" if equal else "different words"
    return None


def _shown(number: Number) -> str:
    text = str(float(number.value)) if number.is_decimal else str(number.value)
    return text if len(text) <= 40 else text[:37] + "..."


def for_math_verify(text: str) -> str:
    r"""The LaTeX that math-verify is given for an answer or a reference: plain-text notation is spelled as LaTeX.

    Text with the power operator `**` is Python, where `log` is the natural logarithm.

    >>> for_math_verify("2*x**10 + log(x) - 3pi")
    '2*x^{10} + \\ln(x) - 3\\pi '
    """
    is_python = "**" in text
    text = _SPACES.sub(" ", re.sub(r"\\?\$", "", text.translate(_SYMBOLS))).strip().rstrip(".,;")
    text = _join_thousands(text)
    text = re.sub(r"\\mathrm\{([A-Za-z])\}", r"\1 ", _DEGREE.sub("", text))
    text = re.sub(r"\*\*\s*(?:\(([^()]*)\)|(-?[0-9A-Za-z]+))", lambda m: f"^{{{m.group(1) or m.group(2)}}}", text)
    text = re.sub(r"(?<![A-Za-z\\])a(sin|cos|tan)(?=\s*\()", r"\\arc\1", text)
    text = re.sub(r"(?<![A-Za-z\\])(sin|cos|tan|log|ln|exp)(?=\s*\()", r"\\\1", text)
    text = text.replace(r"\log", r"\ln") if is_python else text
    return re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)


def check_reference(reference_answer: str) -> None:
    """Raises ValueError, saying why, where no answer could ever be graded against the reference.

    Any other reference can at least be met by an answer of equal text, so that sympy need not read it here: this
    costs microseconds.
    """
    if len(reference_answer) > MAX_ANSWER_CHARS:
        raise ValueError(f"the reference answer has {len(reference_answer):,} characters (limit {MAX_ANSWER_CHARS:,})")
    if reference_answer.strip() in _MISSING:
        raise ValueError(f"the reference answer {reference_answer!r} stands for a missing value")
    if not canonical(reference_answer):
        raise ValueError(f"the reference answer {reference_answer!r} is empty")
    if any(ord(character) < 32 and not character.isspace() for character in reference_answer):
        raise ValueError(f"the reference answer {reference_answer[:80]!r} holds control characters")
    braces = re.sub(r"\\.", "", reference_answer, flags=re.DOTALL)
    if braces.count("{") != braces.count("}"):
        raise ValueError(f"the reference answer {reference_answer[:80]!r} has unbalanced braces")
