r"""Exact comparison of formulas by plain algebra: no sympy, no evaluation of text. Whatever is not decided is None.

Equality and inequality are both proven: equality of quotients by cross-multiplication, inequality by the same where
only letters and roots of integers stand in them, else by a number that is far from zero (numerics.py). The conventions
are math-verify's: letters know no case, `x = 5` equals `5`, `50\%` equals both `0.5` and `50`, `\{1, 2\}` equals
`2, 1`, and decimals that may round to the same six digits are left to it.
"""

from __future__ import annotations

import re
from fractions import Fraction

from w2sr.verify.formulas import SET, Equation, Listing, Reader, Scalar, Unread, Value
from w2sr.verify.numerics import Functions, is_far
from w2sr.verify.quotients import Arithmetic, TooLarge, constant

MAX_PAIRS = 900
"""Sets with more pairs of elements are not compared here."""

_ALONE_I = re.compile(r"(?<!\w)i(?!\w)")


def compare(answer: str, reference: str) -> bool | None:
    r"""Whether two canonical LaTeX texts mean the same; None where algebra does not decide.

    >>> compare(r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"), compare(r"2\sqrt{3}", r"\sqrt{18}"), compare("f(x)", "2")
    (True, False, None)
    """
    if bool(_ALONE_I.search(answer)) != bool(_ALONE_I.search(reference)):
        return None  # math-verify reads `i` as imaginary in one and as a letter in the other
    reader = Reader()
    try:
        wanted = reader.value(reference)
        return _Comparison(reader.arithmetic, reader.functions).equal(reader.value(answer), wanted)
    except (TooLarge, Unread):
        return None


def _is_constant(value: Value) -> bool:
    return isinstance(value, Scalar) and value.value.letters <= {r"\pi"}


class _Comparison:
    """Comparison of values that one reader read: True and False are proven, None is open."""

    def __init__(self, arithmetic: Arithmetic, functions: Functions) -> None:
        self.arithmetic, self.functions = arithmetic, functions

    def equal(self, given: Value, wanted: Value) -> bool | None:
        if isinstance(given, Equation) and isinstance(wanted, Equation):
            if not given.name or given.name.lower() != wanted.name.lower():
                return None
            equal = self.equal(given.last, wanted.last)
            return equal if equal or (_is_constant(given.last) and _is_constant(wanted.last)) else None
        if isinstance(given, Equation):
            return self.equal(given.last, wanted)
        if isinstance(wanted, Equation):
            return self.equal(given, wanted.last) if wanted.name else None
        if isinstance(given, Scalar) and isinstance(wanted, Scalar):
            return self._equal_scalars(given, wanted)
        if isinstance(given, Listing) and isinstance(wanted, Listing):
            if given.brackets != wanted.brackets:
                return None
            return self._equal_sets(given, wanted) if given.brackets == SET else self._equal_in_order(given, wanted)
        listing = given if isinstance(given, Listing) else wanted
        assert isinstance(listing, Listing)
        if listing.brackets != SET:
            return False if listing.brackets == "()" else None
        # one number is not a set of two different ones
        return False if any(self.equal(listing.items[0], item) is False for item in listing.items[1:]) else None

    def _equal_in_order(self, given: Listing, wanted: Listing) -> bool | None:
        if len(given.items) != len(wanted.items):
            return False
        decisions = [self.equal(left, right) for left, right in zip(given.items, wanted.items, strict=True)]
        return False if False in decisions else None if None in decisions else True

    def _equal_sets(self, given: Listing, wanted: Listing) -> bool | None:
        if len(given.items) * len(wanted.items) > MAX_PAIRS:
            return None
        lines = [[self.equal(left, right) for right in wanted.items] for left in given.items]
        lines += map(list, zip(*lines, strict=True))
        if all(True in line for line in lines):
            return True
        return False if any(set(line) == {False} for line in lines) else None

    def _equal_scalars(self, given: Scalar, wanted: Scalar) -> bool | None:
        first, second = given.value, wanted.value
        if given.percent != wanted.percent and not (_is_whole(given) and _is_whole(wanted)):
            hundredth = constant(Fraction(1, 100))
            first = self.arithmetic.multiply(first, hundredth) if given.percent else first
            second = self.arithmetic.multiply(second, hundredth) if wanted.percent else second
        difference = self.arithmetic.subtract(first, second)
        if not difference.over:
            return True
        letters = difference.letters
        if difference.degree("i") > 1 or ("i" in letters and self.functions) or {"e", r"\pi"} <= letters:
            return None  # i may be imaginary; whether e and pi are independent is not known
        return False if is_far(difference, first, second, self.functions, given.exact and wanted.exact) else None


def _is_whole(scalar: Scalar) -> bool:
    number = scalar.value.rational()
    return scalar.exact and number is not None and number.denominator == 1
