"""Exact arithmetic of text that nobody vouches for: a bounded parser, never an interpreter.

Knows + - * / ^ ( ) and %, with `**`, ×, ÷ and − as other spellings; 2(3 + 4) multiplies. Values are exact fractions;
length, depth, exponents and digits are limited, so that no expression costs more than microseconds.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 200
"""A longer expression is refused."""
MAX_DEPTH = 20
"""So many brackets, signs and powers may be open at once."""
MAX_BITS = 512
"""A number, given or computed, with more bits in its numerator or denominator is refused."""
MAX_EXPONENT = 64

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(\*\*|[-+*/^()×÷−%]))")
_SPELLED = {"×": "*", "÷": "/", "−": "-", "**": "^"}


class NoArithmeticError(ValueError):
    """Why a text has no value here, in a few words."""


def evaluate(text: str) -> Fraction:
    """The exact value of an arithmetic expression. `^` binds to the right, and closer than a sign.

    Raises:
        NoArithmeticError: it is none, divides by zero, or is beyond the bounds.

    >>> evaluate("(1 + 2) * 3^2 / 4")
    Fraction(27, 4)
    """
    return _Parser(text).value()


class _Parser:
    """Recursive descent over sum → product → sign → power → atom. `^` binds to the right and closer than a sign."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARS:
            raise NoArithmeticError(f"longer than {MAX_CHARS} characters")
        self.tokens: list[str] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise NoArithmeticError("unreadable")
            number, sign = match.groups()
            self.tokens.append(number or _SPELLED.get(sign, sign))
            position = match.end()
        self.at = self.depth = 0

    def value(self) -> Fraction:
        total = self._sum()
        if self.at < len(self.tokens):
            raise NoArithmeticError("unreadable")
        return total

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self, *wanted: str) -> str | None:
        if self._next() not in wanted:
            return None
        self.at += 1
        return self.tokens[self.at - 1]

    def _sum(self) -> Fraction:
        total = self._product()
        while sign := self._take("+", "-"):
            other = self._product()
            total = _bounded(total + other if sign == "+" else total - other)
        return total

    def _product(self) -> Fraction:
        product = self._signed()
        while (sign := self._take("*", "/")) or self._next() == "(":
            other = self._signed()
            if sign == "/" and not other:
                raise NoArithmeticError("division by zero")
            product = _bounded(product / other if sign == "/" else product * other)
        return product

    def _signed(self) -> Fraction:
        if not self._take("-"):
            return self._power()
        self._enter()
        value = self._signed()
        self.depth -= 1
        return -value

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._take("^"):
            return base
        self._enter()
        exponent = self._signed()
        self.depth -= 1
        if exponent.denominator != 1:
            raise NoArithmeticError("power that is not whole")
        if abs(exponent) > MAX_EXPONENT:
            raise NoArithmeticError("number too large")
        if not base and exponent < 0:
            raise NoArithmeticError("division by zero")
        return _bounded(base ** int(exponent))

    def _atom(self) -> Fraction:
        if self._take("("):
            self._enter()
            value = self._sum()
            self.depth -= 1
            if not self._take(")"):
                raise NoArithmeticError("unreadable")
        elif self._next()[-1:].isdigit() or self._next()[-1:] == ".":
            value = _bounded(Fraction(self._next().rstrip(".")))
            self.at += 1
        else:
            raise NoArithmeticError("unreadable")
        while self._take("%"):
            value = _bounded(value / 100)
        return value

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoArithmeticError("nested too deeply")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NoArithmeticError("number too large")
    return value
