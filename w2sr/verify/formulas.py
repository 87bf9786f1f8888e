r"""Formulas of LaTeX text as exact values: a bounded reader, linear in the text but for the arithmetic that it does.

Read are sums, products, quotients, powers, roots and functions over letters and `\pi`, alone or in tuples, intervals,
sets, matrices, percentages and equations. Whatever is not read in full, or means one thing to a person and another to
math-verify (`1/2x`, `x(y+1)`, `2\frac{1}{2}`, a trailing unit), raises Unread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from string import ascii_letters
from typing import NamedTuple

from w2sr.verify.numerics import Function, Functions
from w2sr.verify.quotients import Arithmetic, Quotient, constant, symbol

MAX_CHARS = 2_000
MAX_TOKENS = 800
MAX_DEPTH = 12
MAX_FUNCTIONS = 40

_TOKEN = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+|\\[A-Za-z]+|\\\\|\\[{}]|[A-Za-z]+|[-+*/^(){}\[\],=&%×]| +")
_AMBIGUOUS = re.compile(
    r"[0-9],[0-9]{3}(?![0-9])|,[0-9]{3},"  # thousands or two elements
    r"|[0-9][eE][-+]?[0-9]"  # scientific notation or Euler's number
    r"|\^\([^()]*[(]|sqrt ?\([^()]*[(]"  # math-verify ends these at the first parenthesis that closes
)
_SPLIT_WORD = re.compile("or|in|ln|lg|to|by|pi", re.IGNORECASE)
_TIMES = {"*", r"\cdot", r"\times", "×"}
SET = r"\{\}"
_UNIT_LETTERS = set("thclsgmdo")
_FUNCTIONS = {
    r"\sin", r"\cos", r"\tan", r"\ln", r"\exp", r"\arcsin", r"\arccos", r"\arctan", r"\sinh", r"\cosh", r"\tanh"
}  # fmt: skip
_BEGINS_FACTOR = _FUNCTIONS | {"(", "{", r"\pi", r"\sqrt", r"\frac"}
_OPEN, _CLOSE = {"(", "[", "{", r"\{"}, {")", "]", "}", r"\}"}
_MATRIX = re.compile(r"\\begin\{([pbB]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_NAME = re.compile(r"[A-Za-z](?:\([A-Za-z]\))?")


class Scalar(NamedTuple):
    """One expression. `exact` is False where a decimal stands in it, `percent` True where a percent sign ends it."""

    value: Quotient
    exact: bool
    percent: bool


class Listing(NamedTuple):
    r"""Several values: `brackets` is "()", "[)" … where order counts, r"\{\}" where not, "matrix R" for R rows."""

    brackets: str
    items: tuple[Value, ...]


class Equation(NamedTuple):
    """The first and the last part of `a = … = z`; `name` is the first where it is a letter or `f(x)`, else ""."""

    name: str
    last: Scalar | Listing


Value = Scalar | Listing | Equation


class Unread(Exception):
    """The text is outside of the grammar."""


class Reader:
    """Recursive descent over tokens. `exact` turns False at the first decimal of a scalar."""

    def __init__(self) -> None:
        self.arithmetic = Arithmetic()
        self.functions: Functions = {}
        self.tokens: list[str] = []
        self.position = self.end = self.depth = 0
        self.exact = True

    def value(self, text: str) -> Value:
        """The value of a whole text. Raises Unread or TooLarge."""
        if len(text) > MAX_CHARS or _AMBIGUOUS.search(text) or _may_end_in_unit(text):
            raise Unread
        self.depth = 0
        if "=" in text:
            first, *parts = text.split("=")
            name = first if _NAME.fullmatch(first) else ""
            read = [self._listing(_tokens(part)) for part in (parts if name else [first, *parts])]
            return Equation(name, read[-1])
        matrix = _MATRIX.fullmatch(text)
        return self._matrix(matrix.group(2)) if matrix else self._listing(_tokens(text))

    def _matrix(self, body: str) -> Listing:
        rows = [row.split("&") for row in body.split(r"\\") if row.strip()]
        if len({len(row) for row in rows}) != 1:
            raise Unread
        return Listing(f"matrix {len(rows)}", tuple(self._scalar(_tokens(cell)) for row in rows for cell in row))

    def _listing(self, tokens: list[str]) -> Scalar | Listing:
        """A scalar, or values between brackets or commas."""
        pieces = _split(tokens)
        if len(pieces) > 1:
            return Listing(SET, tuple(self._nested(piece) for piece in pieces))
        if tokens and tokens[0] in _OPEN and _closing(tokens, 0) == len(tokens) - 1:
            inner = _split(tokens[1:-1])
            brackets = tokens[0] + tokens[-1]
            if brackets == SET or (brackets == "{}" and len(inner) > 1):
                return Listing(SET, tuple(self._nested(piece) for piece in inner))
            if len(inner) > 1 and brackets in ("()", "[]", "[)", "(]"):
                return Listing(brackets, tuple(self._nested(piece) for piece in inner))
        return self._scalar(tokens)

    def _nested(self, tokens: list[str]) -> Scalar | Listing:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unread
        found = self._listing(tokens)
        self.depth -= 1
        return found

    def _scalar(self, tokens: list[str]) -> Scalar:
        percent = len(tokens) > 1 and tokens[-1] == "%"
        self.tokens, self.position, self.end, self.exact = tokens, 0, len(tokens) - percent, True
        value = self._sum()
        if self.position != self.end or (percent and not _is_number(tokens[:-1])):
            raise Unread
        return Scalar(value, self.exact, percent)

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
        while (operator := self._peek()) in _TIMES or operator in ("/", r"\div"):
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
            if letter.lower() != "e":
                raise Unread
            return self._function(r"\exp", exponent)
        if number.denominator == 1:
            return self.arithmetic.power(base, int(number))
        if number == Fraction(1, 2) and base.rational() is not None:
            return self.arithmetic.root(base)
        is_letter = len(letter) == 1 and letter.isalpha() and letter.lower() not in "ei"
        return symbol(letter.lower(), number) if is_letter and number > 0 else self._function(str(number), base)

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
            return symbol(token.lower())
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
        token = match.group()
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


def _closing(tokens: Sequence[str], begin: int) -> int:
    """The position at which the bracket at `begin` closes."""
    depth = 0
    for position in range(begin, len(tokens)):
        depth += (tokens[position] in _OPEN) - (tokens[position] in _CLOSE)
        if depth == 0:
            return position
    raise Unread


def _split(tokens: list[str]) -> list[list[str]]:
    """The tokens between the commas that stand outside of brackets."""
    pieces: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token in _OPEN) - (token in _CLOSE)
        if token == "," and depth == 0:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces


def _is_number(tokens: Sequence[str]) -> bool:
    digits = tokens[1:] if tokens[0] in ("-", "+") else tokens
    return len(digits) == 1 and digits[0][0] in ".0123456789"


def _may_end_in_unit(text: str) -> bool:
    """Whether math-verify may take the last word for a unit and remove it."""
    body = text.rstrip(" .")
    before = body.rstrip(ascii_letters)
    word = body[len(before) :]
    follows = before[-1:] in {" ", "}", "]"} or before[-1:].isdigit()
    return bool(word) and follows and (len(word) > 1 or word.lower() in _UNIT_LETTERS)
