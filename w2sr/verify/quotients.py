r"""Exact arithmetic on quotients of polynomials, bounded in size, so that a hostile expression costs milliseconds.

A polynomial has rational coefficients and monomials over letters, `\pi`, and square roots of squarefree integers. Two
of them are equal only if they are the same mapping: letters and \pi are independent, and the roots of different
squarefree integers are linearly independent over the rationals. Polynomials without zero divisors make quotients
comparable by cross-multiplication, so that inequality is proven and not only equality.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

MAX_TERMS = 200
MAX_DEGREE = 100
MAX_BITS = 4_000
"""A coefficient has at most so many binary digits over, and as many under, the bar."""

MAX_RADICAND = 1_000_000
"""Roots of larger integers are not taken apart; trial division would take long."""

MAX_WORK = 5_000
"""So many products of terms are made for one comparison."""

Monomial = tuple[int, tuple[tuple[str, Fraction | int], ...]]
"""A squarefree radicand, and letters with their exponents in the order of the alphabet."""

Polynomial = dict[Monomial, Fraction]

_UNIT: Monomial = (1, ())


class TooLarge(Exception):
    """The expression passes a bound of this file, or divides by zero: it is left to the slow grader."""


class Quotient(NamedTuple):
    """One polynomial over another; the lower one is never zero."""

    over: Polynomial
    under: Polynomial

    @property
    def letters(self) -> set[str]:
        return {letter for part in self for _, powers in part for letter, _ in powers}

    def degree(self, letter: str) -> Fraction | int:
        """The highest exponent of the letter, over or under the bar."""
        return max(
            (exponent for part in self for _, powers in part for name, exponent in powers if name == letter), default=0
        )

    def rational(self) -> Fraction | None:
        """The value where it is a rational number that needs no further division of polynomials."""
        if set(self.over) <= {_UNIT} and set(self.under) == {_UNIT}:
            return self.over.get(_UNIT, Fraction(0)) / self.under[_UNIT]
        return None


def constant(value: Fraction | int) -> Quotient:
    """A rational number."""
    return Quotient(_polynomial({_UNIT: Fraction(value)}), {_UNIT: Fraction(1)})


def symbol(letter: str, exponent: Fraction | int = 1) -> Quotient:
    r"""A letter, or a constant such as \pi that stands for itself, perhaps to a power."""
    return Quotient(_polynomial({(1, ((letter, exponent),)): Fraction(1)}), {_UNIT: Fraction(1)})


class Arithmetic:
    """The operations, which together make at most `MAX_WORK` products of terms."""

    def __init__(self) -> None:
        self._work_left = MAX_WORK

    def add(self, first: Quotient, second: Quotient) -> Quotient:
        if first.under == second.under:
            return Quotient(self._sum(first.over, second.over), first.under)
        over = self._sum(self._product(first.over, second.under), self._product(second.over, first.under))
        return Quotient(over, self._product(first.under, second.under))

    def subtract(self, first: Quotient, second: Quotient) -> Quotient:
        return self.add(first, self.multiply(constant(-1), second))

    def multiply(self, first: Quotient, second: Quotient) -> Quotient:
        return Quotient(self._product(first.over, second.over), self._product(first.under, second.under))

    def divide(self, first: Quotient, second: Quotient) -> Quotient:
        if not second.over:
            raise TooLarge
        if set(second.over) == set(second.under) == {_UNIT}:  # keeps polynomials over a number without a denominator
            return self.multiply(first, constant(second.under[_UNIT] / second.over[_UNIT]))
        return self.multiply(first, Quotient(second.under, second.over))

    def power(self, base: Quotient, exponent: int) -> Quotient:
        if abs(exponent) > MAX_DEGREE:
            raise TooLarge
        if exponent < 0:
            return self.divide(constant(1), self.power(base, -exponent))
        if exponent == 0 and not base.over:
            raise TooLarge
        result = constant(1)
        for _ in range(exponent):
            result = self.multiply(result, base)
        return result

    def root(self, value: Quotient) -> Quotient:
        """The square root of a rational number that is not negative."""
        number = value.rational()
        if number is None or number < 0 or number.numerator * number.denominator > MAX_RADICAND:
            raise TooLarge
        # sqrt(p/q) = sqrt(p*q)/q
        outside, inside = _squarefree(number.numerator * number.denominator)
        return Quotient(_polynomial({(inside, ()): Fraction(outside, number.denominator)}), {_UNIT: Fraction(1)})

    def _sum(self, first: Polynomial, second: Polynomial) -> Polynomial:
        self._spend(len(first) + len(second))
        total = dict(first)
        for monomial, coefficient in second.items():
            total[monomial] = total.get(monomial, Fraction(0)) + coefficient
        return _polynomial(total)

    def _product(self, first: Polynomial, second: Polynomial) -> Polynomial:
        if first == {_UNIT: 1}:
            return second
        if second == {_UNIT: 1}:
            return first
        self._spend(len(first) * len(second))
        total: Polynomial = {}
        for left, one in first.items():
            for right, other in second.items():
                shared, monomial = _times(left, right)
                total[monomial] = total.get(monomial, Fraction(0)) + one * other * shared
        return _polynomial(total)

    def _spend(self, work: int) -> None:
        self._work_left -= work
        if self._work_left < 0:
            raise TooLarge


def _times(left: Monomial, right: Monomial) -> tuple[int, Monomial]:
    """The product of two monomials: what leaves the root, and the monomial. sqrt(6) * sqrt(10) = 2 * sqrt(15)."""
    shared = math.gcd(left[0], right[0])
    radicand = left[0] // shared * (right[0] // shared)
    if not left[1] or not right[1]:
        return shared, (radicand, left[1] or right[1])
    powers = dict(left[1])
    for letter, exponent in right[1]:
        powers[letter] = powers.get(letter, 0) + exponent
    return shared, (radicand, tuple(sorted(powers.items())))


def _polynomial(terms: Polynomial) -> Polynomial:
    """The terms that are not zero, if they are within the bounds."""
    kept = {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
    if len(kept) > MAX_TERMS:
        raise TooLarge
    for (radicand, powers), coefficient in kept.items():
        bits = max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length(), radicand.bit_length())
        if bits > MAX_BITS or sum(exponent for _, exponent in powers) > MAX_DEGREE:
            raise TooLarge
    return kept


def _squarefree(number: int) -> tuple[int, int]:
    """`outside` and `inside` with outside² * inside = number, inside squarefree (0 becomes 0 * 1)."""
    if number == 0:
        return 0, 1
    outside, inside, factor = 1, number, 2
    while factor * factor <= inside:
        if inside % (factor * factor) == 0:
            inside //= factor * factor
            outside *= factor
        else:
            factor += 1
    return outside, inside
