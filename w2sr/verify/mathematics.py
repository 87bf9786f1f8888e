r"""Grading of mathematical answers: an exact fast path that needs no sympy, and what math-verify is given otherwise.

The fast path decides, in this order: equal text after normalisation; two plain numbers (plain_numbers.py); two option
letters or words; times, hexadecimal and scientific numbers, sentences (plain_text.py); formulas by plain algebra
(algebra.py). What none of them decides is None and goes to math-verify in a worker process.

Where the fast path decides, it follows math-verify's conventions (a decimal equals a fraction that rounds to it at six
digits; units are ignored), except where math-verify reads text as a product of variables: "5 dollars" is 5 here,
"pots" is not "stop", `0x10` is not `0x11`, and `11\,111` is 11111. docs/results/verify.md lists the differences.
"""

from __future__ import annotations

import re
from functools import lru_cache

from w2sr.verify import algebra
from w2sr.verify.plain_numbers import compare_numbers, plain_number
from w2sr.verify.plain_text import compare_plain_text

MAX_ANSWER_CHARS = 10_000
"""A longer answer is incorrect without being graded; a longer reference cannot be used."""

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

_WORD = re.compile(r"[A-Za-z]{4,}(?:[ -][A-Za-z]+)*")
_OPTION = re.compile(r"\(?([A-Za-z])[).]?")


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


_canonical_reference = lru_cache(maxsize=4096)(canonical)


def _join_thousands(text: str) -> str:
    return _THOUSANDS.sub(lambda match: re.sub(r"[^0-9]", "", match.group()), text)


def quick_grade(answer: str, reference_answer: str) -> tuple[bool, str] | None:
    r"""Decides the obvious cases with one sentence why; None sends the pair to math-verify.

    >>> quick_grade("$1,026.00", "1026"), quick_grade(r"\frac{13}{2}", "6"), quick_grade("|x|", "x")
    ((True, 'equal numbers'), (False, '13/2 is not 6'), None)
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return False, f"an answer of {len(answer):,} characters is not graded (limit {MAX_ANSWER_CHARS:,})"
    given, wanted = canonical(answer), _canonical_reference(reference_answer)
    if not given:
        return False, "nothing is left of the answer without its markup"
    if given == wanted:
        return True, "equal text"
    given_number, wanted_number = plain_number(given), plain_number(wanted)
    if given_number is not None and wanted_number is not None:
        decision = compare_numbers(given_number, wanted_number)
    else:
        decision = _compare_words(given, wanted)
    return decision or compare_plain_text(given, wanted) or _compare_by_algebra(answer, reference_answer)


def _compare_by_algebra(answer: str, reference_answer: str) -> tuple[bool, str] | None:
    equal = algebra.compare(canonical(for_math_verify(answer)), canonical(for_math_verify(reference_answer)))
    return None if equal is None else (equal, f"{'equal' if equal else 'different'} by algebra")


def _compare_words(given: str, wanted: str) -> tuple[bool, str] | None:
    given_option, wanted_option = _OPTION.fullmatch(given), _OPTION.fullmatch(wanted)
    if given_option and wanted_option:
        equal = given_option.group(1).casefold() == wanted_option.group(1).casefold()
        return equal, "equal letter" if equal else "different letters"
    if _WORD.fullmatch(given) and _WORD.fullmatch(wanted):
        equal = given.casefold() == wanted.casefold()
        return equal, "equal words" if equal else "different words"
    return None


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
