r"""Exact comparison of formulas by plain algebra: no sympy, no evaluation of text. Whatever is not decided is None.

Equality and inequality are both proven: equality of quotients by cross-multiplication, inequality by the same where
letters, roots of integers and \pi stand in them, else by a number that is far from zero (numerics.py). As in
math-verify, letters know no case; a side in which one letter stands in both cases (`R` and `r`) is read with case.
"""

from __future__ import annotations

import re
from fractions import Fraction

from w2sr.verify.formulas import Reader, Scalar, Unread
from w2sr.verify.numerics import constant_value, is_far
from w2sr.verify.plain_numbers import Number, plain_number, rounds_to
from w2sr.verify.quotients import Arithmetic, TooLarge

_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{1,2}(?![A-Za-z])")
_ALONE_I = re.compile(r"(?<!\w)i(?!\w)")


def compare(answer: str, reference: str, arithmetic: Arithmetic | None = None) -> bool | None:
    r"""Whether two canonical texts of one value each mean the same; None where algebra does not decide. Symmetric.

    `arithmetic` bounds the work of several comparisons together.

    >>> compare(r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"), compare(r"2\sqrt{3}", r"\sqrt{18}"), compare("f(x)", "2")
    (True, False, None)
    """
    if bool(_ALONE_I.search(answer)) != bool(_ALONE_I.search(reference)):
        return None  # `i` is imaginary in one and may be a letter in the other
    reader = Reader(not _has_both_cases(answer) and not _has_both_cases(reference), arithmetic)
    try:
        first, second = reader.scalar(answer), reader.scalar(reference)
        difference = reader.arithmetic.subtract(first.value, second.value)
        if not difference.over:
            return True
        rounded = _rounded(answer, second) if not first.exact else _rounded(reference, first)
        if rounded is not None:
            return rounded
        letters = difference.letters
        if difference.degree("i") > 1 or ("i" in letters and reader.functions):
            return None  # i may be imaginary
        exact = first.exact and second.exact
        return False if is_far(difference, first.value, second.value, reader.functions, exact) else None
    except (TooLarge, Unread):
        return None


def is_readable(text: str) -> bool:
    """Whether the text is one value of the grammar: a number or a formula."""
    try:
        Reader(fold=False).scalar(text)
    except (TooLarge, Unread):
        return False
    return True


def _has_both_cases(text: str) -> bool:
    letters = {letter for word in _LETTER.findall(text) for letter in word}
    return any(letter.swapcase() in letters for letter in letters)


def _rounded(text: str, other: Scalar) -> bool | None:
    """Whether the decimal that the text is can be the rounded value of an exact constant."""
    decimal = plain_number(text)
    if decimal is None or not decimal.is_decimal or not other.exact:
        return None
    value = constant_value(other.value)
    return None if value is None else rounds_to(Number(Fraction(value)), decimal)
