r"""Grading of mathematical answers: what exact rules prove, and the pairs that are left to math-verify.

Answer and reference are given one spelling (spelling.py), then compared in this order: equal text; words, times and
hexadecimal numbers (plain_text.py); by their form (answers.py, comparison.py), down to pairs of values, which are plain
numbers (plain_numbers.py) or formulas (algebra.py). A pair that none of them proves equal or different goes to
math-verify in a worker process, spelled as here. Every rule is symmetric. docs/results/verify.md lists where the
rules differ from math-verify.
"""

from __future__ import annotations

import re
from functools import lru_cache

from w2sr.verify.answers import VALUE, Answer, read
from w2sr.verify.comparison import Decision, compare, open_pair
from w2sr.verify.plain_numbers import compare_numbers, plain_number
from w2sr.verify.plain_text import compare_plain_text
from w2sr.verify.spelling import canonical

MAX_ANSWER_CHARS = 10_000
"""A longer answer is incorrect without being graded; a longer reference cannot be used."""

_MISSING = {"nan", "NaN", "null", "None", "<NA>"}  # what a table writes for a value that was lost

_LONG_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,}")
MIN_PROSE_WORDS = 3

_canonical_reference = lru_cache(maxsize=4096)(canonical)


@lru_cache(maxsize=4096)
def _read_reference(text: str) -> Answer:
    return read(text)


def grade(answer: str, reference_answer: str) -> tuple[Decision, str]:
    r"""The decision and one sentence why; the decision holds pairs for math-verify where it is open.

    >>> grade("$1,026.00", "1026"), grade(r"\frac{13}{2}", "6"), grade("|x|", "x")[0]
    ((True, 'equal numbers'), (False, '13/2 is not 6'), Pair(first='x', second='|x|'))
    """
    if (length := max(len(answer), len(reference_answer))) > MAX_ANSWER_CHARS:
        return False, f"an answer of {length:,} characters is not graded (limit {MAX_ANSWER_CHARS:,})"
    given, wanted = canonical(answer), _canonical_reference(reference_answer)
    if not given or not wanted:
        return False, "nothing is left of the answer without its markup"
    if given == wanted:
        return True, "equal text"
    decided = compare_plain_text(without_text(given), without_text(wanted))
    if decided is not None and (decided[0] or not (_is_prose(answer) or _is_prose(reference_answer))):
        return decided
    first, second = read(given), _read_reference(wanted)
    decision = compare(first, second)
    if decision is False and (_is_prose(answer) or _is_prose(reference_answer)):
        return open_pair(_for_search(answer), _for_search(reference_answer)), "open"
    return decision, _reason(first, second, decision)


def _is_prose(text: str) -> bool:
    """Whether the text is sentences with formulas in them, in which math-verify may find the answer."""
    bare = re.sub(r"\\[A-Za-z]+|\\text\{[^{}]*\}", " ", text)
    return ("\\" in text or "$" in text) and len(_LONG_WORD.findall(bare)) >= MIN_PROSE_WORDS


def _for_search(text: str) -> str:
    """The text with its boxes, but without signs that would end the box which the worker puts around it."""
    return re.sub(r"\s+", " ", text.replace("$", "")).strip()


def _reason(given: Answer, wanted: Answer, decision: Decision) -> str:
    if not isinstance(decision, bool):
        return "open"
    if given.form != wanted.form:
        return f"{'equal' if decision else 'different'}: {given.form} and {wanted.form}"
    first, second = plain_number(given.text), plain_number(wanted.text)
    if given.form == VALUE and first is not None and second is not None:
        equal, reason = compare_numbers(first, second)
        return reason if equal == decision else f"{'equal' if decision else 'different'} by percent signs or units"
    return f"{'equal' if decision else 'different'} by algebra"


def without_text(text: str) -> str:
    r"""Canonical text without `\text{…}` round its phrases."""
    return re.sub(r"\\text\{([^{}]*)\}", r" \1", text) if r"\text" in text else text


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
