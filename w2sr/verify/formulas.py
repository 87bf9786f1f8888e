r"""Formulas of LaTeX text as exact values: a bounded reader, linear in the text but for the arithmetic that it does.

Read are sums, products, quotients, powers, roots and functions over letters and `\pi`, in canonical text (spelling.py).
Whatever is not read in full, or has two readings (`1/2x`, `x(y+1)`, `2\frac{1}{2}`, a word), raises Unread.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from w2sr.verify.numerics import Function, Functions
from w2sr.verify.quotients import Arithmetic, Quotient, constant, symbol

MAX_CHARS = 2_000
MAX_TOKENS = 800
MAX_DEPTH = 12
MAX_FUNCTIONS = 40

_TOKEN = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+|\\[A-Za-z]+|[A-Za-z]+|[-+*/^(){}] ?| +")
_AMBIGUOUS = re.compile(r"[A-Za-z] [A-Za-z]{2}|\^\([^()]*[(]")  # a unit; where an exponent ends
_SPLIT_WORD = re.compile("or|in|ln|lg|to|by|pi", re.IGNORECASE)
_TIMES = {"*", r"\cdot"}
_FUNCTIONS = {
    r"\sin", r"\cos", r"\tan", r"\ln", r"\exp", r"\arcsin", r"\arccos", r"\arctan", r"\sinh", r"\cosh", r"\tanh"
}  # fmt: skip
_BEGINS_FACTOR = _FUNCTIONS | {"(", "{", r"\pi", r"\sqrt", r"\frac"}


class Scalar(NamedTuple):
    """One expression. `exact` is False where a decimal stands in it."""

    value: Quotient
    exact: bool


class Unread(Exception):
    """The text is outside of the grammar."""


class Reader:
    """Recursive descent over tokens. `exact` turns False at the first decimal. `fold` reads `X` as `x`."""

    def __init__(self, fold: bool = True, arithmetic: Arithmetic | None = None) -> None:
        self.arithmetic = arithmetic or Arithmetic()
        self.functions: Functions = {}
        self.fold = fold
        self.tokens: list[str] = []
        self.position = self.end = self.depth = 0
        self.exact = True

    def scalar(self, text: str) -> Scalar:
        """The value of a whole text. Raises Unread or TooLarge."""
        if len(text) > MAX_CHARS or _AMBIGUOUS.search(text):
            raise Unread
        self.tokens, self.position, self.depth, self.exact = _tokens(text), 0, 0, True
        self.end = len(self.tokens)
        value = self._sum()
        if self.position != self.end:
            raise Unread
        return Scalar(value, self.exact)

    def _letter(self, letter: str) -> str:
        return letter.lower() if self.fold else letter

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < self.end else ""

    def _sum(self) -> Quotient:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unread
        total = constant(0)
        sign = 1
        if self._peek() in ("-", "+"):
            sign = -1 if self._peek() == "-" else 1
            self.position += 1
        while True:
            term = self._term()
            total = self.arithmetic.add(total, term) if sign > 0 else self.arithmetic.subtract(total, term)
            if self._peek() not in ("-", "+"):
                break
            sign = -1 if self._peek() == "-" else 1
            self.position += 1
        self.depth -= 1
        return total

    def _term(self) -> Quotient:
        value, _ = self._juxtaposed()
        while (operator := self._peek()) in _TIMES or operator == "/":
            self.position += 1
            factor, num_factors = self._juxtaposed()
            if operator in _TIMES:
                value = self.arithmetic.multiply(value, factor)
            elif num_factors > 1:
                raise Unread  # 1/2x
            else:
                value = self.arithmetic.divide(value, factor)
        return value

    def _juxtaposed(self) -> tuple[Quotient, int]:
        """Powers that stand side by side: their product, and how many they are."""
        first = self._peek()
        value, count = self._power(), 1
        while (token := self._peek()) and (token[0].isalnum() or token in _BEGINS_FACTOR):
            if token[0].isdigit() or (first[0].isdigit() and count == 1 and token == r"\frac"):
                raise Unread  # x2, 2 3, 2\frac{1}{2}
            value = self.arithmetic.multiply(value, self._power())
            count += 1
        return value, count

    def _power(self) -> Quotient:
        letter = self._peek()
        base = self._atom()
        if self._peek() != "^":
            return base
        self.position += 1
        exponent = self._exponent()
        if self._peek() == "^":
            raise Unread
        number = exponent.rational()
        if number is None:
            if self._letter(letter) != "e":
                raise Unread
            return self._function(r"\exp", exponent)
        if number.denominator == 1:
            return self.arithmetic.power(base, int(number))
        if number == Fraction(1, 2) and base.rational() is not None:
            return self.arithmetic.root(base)
        is_letter = len(letter) == 1 and letter.isalpha() and letter.lower() not in "ei"
        return symbol(self._letter(letter), number) if is_letter and number > 0 else self._function(str(number), base)

    def _exponent(self) -> Quotient:
        token = self._peek()
        if token in ("{", "("):
            return self._group()
        if not token.isdigit() or len(token) > 3:
            raise Unread
        self.position += 1
        return constant(int(token))

    def _function(self, name: str, argument: Quotient) -> Quotient:
        """A function stands for itself, like a letter: equal arguments make it equal."""
        function = Function(name, argument)
        for key, known in self.functions.items():
            if known == function:
                return symbol(key)
        if len(self.functions) == MAX_FUNCTIONS:
            raise Unread
        key = f"#{len(self.functions)}"
        self.functions[key] = function
        return symbol(key)

    def _atom(self) -> Quotient:
        token = self._peek()
        if token in ("(", "{"):
            return self._group()
        self.position += 1
        if token[:1].isdigit() or token[:1] == ".":
            if len(token) > 300:
                raise Unread
            self.exact = self.exact and "." not in token.rstrip(".")
            return constant(Fraction(token.rstrip(".")))
        if token == r"\frac":
            over, under = self._braced(), self._braced()
            return self.arithmetic.divide(over, under)
        if token == r"\sqrt" or (token == "sqrt" and self._peek() == "("):
            return self._root(self._braced() if token == r"\sqrt" else self._group())
        if token in _FUNCTIONS:
            return self._applied(token)
        if token == r"\pi":
            return symbol(token)
        if len(token) == 1 and token.isalpha() and self._peek() != "(":
            return symbol(self._letter(token))
        raise Unread

    def _root(self, radicand: Quotient) -> Quotient:
        if radicand.rational() is not None:
            return self.arithmetic.root(radicand)
        letter = next(iter(radicand.letters)) if len(radicand.letters) == 1 else ""
        if letter.isalpha() and letter not in "ei" and radicand == symbol(letter):
            return symbol(letter, Fraction(1, 2))
        return self._function("1/2", radicand)

    def _applied(self, name: str) -> Quotient:
        r"""`\sin(…)` or `\sin^2(…)`; without parentheses it is not plain where the argument ends."""
        exponent = 1
        if self._peek() == "^":
            self.position += 1
            number = self._exponent().rational()
            if number is None or number.denominator != 1 or number < 2:
                raise Unread  # the inverse function
            exponent = int(number)
        if self._peek() not in ("(", "{"):
            raise Unread
        return self.arithmetic.power(self._function(name, self._group()), exponent)

    def _braced(self) -> Quotient:
        if self._peek() != "{":
            raise Unread
        return self._group()

    def _group(self) -> Quotient:
        closing = {"(": ")", "{": "}"}[self._peek()]
        self.position += 1
        value = self._sum()
        if self._peek() != closing:
            raise Unread
        self.position += 1
        return value


def _tokens(text: str) -> list[str]:
    """The tokens of a text, letters one by one. Raises Unread where a character or a word is not known."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or len(tokens) > MAX_TOKENS:
            raise Unread
        token = match.group().rstrip() or " "
        position = match.end()
        if token == "sqrt" or not token[0].isalpha():
            tokens += [] if token.isspace() else [token]
        elif len(token) > 2 or "d" in token.lower() or _SPLIT_WORD.fullmatch(token):
            raise Unread  # a word, or dx
        else:
            tokens += token
    if not tokens:
        raise Unread
    return tokens
