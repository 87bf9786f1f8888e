r"""Inequality of formulas by numbers, where exact arithmetic does not prove it.

A difference that exact arithmetic does not cancel may still be zero where functions stand in it (sin² + cos² = 1), or
be the rounding of a decimal. Here it is put into numbers, and only one that no rounding can explain counts as a proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

from w2sr.verify.quotients import Monomial, Quotient

ROUNDING = 1e-5
"""Beside decimals, differences of a smaller share of the values are left open."""

RELATIVE = 1e-9
"""A sum that is so small beside its terms may be the rounding of 53 bits."""

MARGIN = 1e-4
"""At a point where functions are evaluated, so large must a difference be beside the sum of its terms' sizes."""

MAX_ARGUMENT = 1e4
MIN_VALUE = 1e-2
"""Within these bounds a function's value has a relative error below 1e-8, and its 100th power one below MARGIN."""

_POINTS = (0.63, 1.37, -0.41)


class Function(NamedTuple):
    r"""A function as it stands in an expression: `\sin` or an exponent such as 3/2, and its argument."""

    name: str
    argument: Quotient


Functions = dict[str, Function]
"""The functions of an expression under the names that they have among its letters."""

_EVALUATED: dict[str, Callable[[float], float]] = {
    r"\sin": math.sin,
    r"\cos": math.cos,
    r"\tan": math.tan,
    r"\ln": math.log,
    r"\exp": math.exp,
    r"\arcsin": math.asin,
    r"\arccos": math.acos,
    r"\arctan": math.atan,
    r"\sinh": math.sinh,
    r"\cosh": math.cosh,
    r"\tanh": math.tanh,
}


def is_far(difference: Quotient, first: Quotient, second: Quotient, functions: Functions, exact: bool) -> bool:
    """Whether `difference`, which is first - second and not the zero of exact arithmetic, is certainly not zero.

    `exact` says that no decimal stands in either. The letters may be any real numbers; functions may be related.
    """
    try:
        if difference.letters & functions.keys():
            return any(_is_far_at(point, difference, functions) for point in _POINTS)
        if {"e", r"\pi"} <= difference.letters or not exact:
            return _is_far_polynomial(difference, first, second, exact)
    except (OverflowError, ValueError, ZeroDivisionError):
        return False
    return True  # roots of different integers, letters and one of e and \pi are independent over the rationals


def _is_far_polynomial(difference: Quotient, first: Quotient, second: Quotient, exact: bool) -> bool:
    """Whether the number before one of the products of letters is far from zero."""
    if any(letter not in _CONSTANTS for _, powers in difference.under for letter, _ in powers):
        return False
    numbers: dict[tuple[tuple[str, Fraction | int], ...], list[float]] = {}
    for (radicand, powers), coefficient in difference.over.items():
        constants = tuple(power for power in powers if power[0] in _CONSTANTS)
        letters = tuple(power for power in powers if power[0] not in _CONSTANTS)
        numbers.setdefault(letters, []).append(_term((radicand, constants), coefficient, _CONSTANTS))
    under = abs(sum(_term(*term, _CONSTANTS) for term in difference.under.items()))
    least = 0.0 if exact else ROUNDING * max(_size(value) for value in (first, second))
    return any(
        abs(sum(terms)) > RELATIVE * sum(map(abs, terms)) and abs(sum(terms)) / under > least
        for terms in numbers.values()
    )


def constant_value(value: Quotient) -> float | None:
    r"""The value of a quotient without letters but e and \pi; None where it has others or cancels too many digits."""
    if not value.letters <= _CONSTANTS.keys():
        return None
    try:
        over, under = ([_term(*term, _CONSTANTS) for term in part.items()] for part in value)
        if any(abs(sum(terms)) < 1e-2 * sum(map(abs, terms)) for terms in (over, under)):
            return None
        return sum(over) / sum(under)
    except (OverflowError, ValueError, ZeroDivisionError):
        return None


def _size(value: Quotient) -> float:
    """An upper bound of what stands before the letters."""
    ones = {letter: _CONSTANTS.get(letter, 1.0) for letter in value.letters}
    over, under = ([_term(monomial, number, ones) for monomial, number in part.items()] for part in value)
    return sum(map(abs, over)) / abs(sum(under))


_CONSTANTS = {r"\pi": math.pi, "e": math.e}


def _term(monomial: Monomial, coefficient: Fraction, values: Mapping[str, float]) -> float:
    radicand, powers = monomial
    value = float(coefficient) * math.sqrt(radicand)
    for letter, exponent in powers:
        value *= values[letter] ** float(exponent)
        if isinstance(value, complex):
            raise ValueError(f"a root of the negative {letter}")
    return value


def _is_far_at(point: float, difference: Quotient, functions: Functions) -> bool:
    """Whether the upper part of the difference is far from zero where the letters have values around `point`."""
    try:
        values = dict(_CONSTANTS)
        for function in functions.values():  # in the order of reading: arguments come before what they stand in
            values |= {letter: _letter(letter, point) for letter in function.argument.letters - values.keys()}
        values |= {letter: _letter(letter, point) for letter in difference.letters - functions.keys() - values.keys()}
        for key, function in functions.items():
            values[key] = _evaluate(function, values)
        terms = [_term(monomial, coefficient, values) for monomial, coefficient in difference.over.items()]
    except (OverflowError, ValueError, ZeroDivisionError):
        return False  # outside of a domain: another point may do
    return abs(sum(terms)) > MARGIN * sum(map(abs, terms))


def _letter(letter: str, point: float) -> float:
    return point * (1 + 0.0137 * (ord(letter[0]) - ord("a")))


def _evaluate(function: Function, values: Mapping[str, float]) -> float:
    parts = [
        [_term(monomial, coefficient, values) for monomial, coefficient in part.items()] for part in function.argument
    ]
    size = sum(map(abs, parts[0])) / abs(sum(parts[1]))
    if size > MAX_ARGUMENT or abs(sum(parts[1])) < MIN_VALUE * sum(map(abs, parts[1])):
        raise ValueError("the argument is not known exactly enough")
    argument = sum(parts[0]) / sum(parts[1])
    if function.name in _EVALUATED:
        value = _EVALUATED[function.name](argument)
    else:
        value = argument ** float(Fraction(function.name))
    if isinstance(value, complex) or abs(value) < MIN_VALUE:
        raise ValueError("the value is complex or not known exactly enough")
    return value
