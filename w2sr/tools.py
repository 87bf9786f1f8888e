"""A calculator that a model may call while it writes: where a call stands in the text, and what it gives.

The arithmetic is a parser of our own: model text is never evaluated by Python. Numbers are exact fractions; length,
depth and digits are limited, so that no expression costs more than microseconds.

    tags        <tool>23 + 8</tool><result>31</result>
    equations   23 + 8 = 31          (GSM8K's calculator, Cobbe et al., arXiv 2110.14168: it answers after the sign)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 200
"""A longer expression is refused."""
MAX_DEPTH = 20
"""So many parentheses and signs may be open at once."""
MAX_DIGITS = 40
"""A number, given or computed, with more digits (of numerator or denominator) is refused."""
MAX_EXPONENT = 64

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(\*\*|[-+*/^()×÷−%]))")
_SPELLED = {"×": "*", "÷": "/", "−": "-", "**": "^"}
_TAIL = re.compile(r"(?:[0-9+\-*/^()×÷−% ]|\.(?=[0-9]))*\Z")  # a period before a space ends a sentence


@dataclass(frozen=True)
class Calculator:
    """How a model calls the calculator, and how the result is put into its text. Results carry no loss in training.

    Attributes:
        open: text before the expression; "" takes the arithmetic that stands right before `close`.
        close: text after it: generation stops there, and goes on behind the result.
        result: what is inserted; {} is the result, or `error: …` where there is none.
        max_calls: calls that are answered in one completion; the ones after it are left to the model.
    """

    open: str = "<tool>"
    close: str = "</tool>"
    result: str = "<result>{}</result>"
    max_calls: int = 32

    def __post_init__(self) -> None:
        if not self.close or self.result.count("{}") != 1 or self.max_calls < 1:
            raise ValueError(
                f"a calculator needs a closing text, one {{}} in its result and max_calls >= 1; it has "
                f"close={self.close!r}, result={self.result!r}, max_calls={self.max_calls}."
            )

    def answer(self, text: str) -> str | None:
        """What is to be inserted after a text that ends in a call; None where it ends in none.

        Without an opening text only an expression that can be computed is a call: "So a = " asks for nothing.

        >>> Calculator().answer("She has <tool>23 + 8</tool>")
        '<result>31</result>'
        >>> Calculator(open="", close=" = ", result="{}").answer("Tom has 23 + 8 = ")
        '31'
        """
        if not text.endswith(self.close):
            return None
        before = text[: -len(self.close)]
        if self.open:
            _, found, expression = before.rpartition(self.open)
            return self.result.format(calculate(expression)) if found and self.close not in expression else None
        match = _TAIL.search(before, max(0, len(before) - MAX_CHARS))
        assert match is not None  # the pattern matches the empty text
        expression = match.group().lstrip(". )%*/^×÷+").strip()
        if not re.search(r"[0-9)]\s*[-+*/^×÷−]", expression):
            return None
        value = calculate(expression)
        return None if value.startswith("error") else self.result.format(value)


def calculate(expression: str) -> str:
    """The value of an arithmetic expression as text: a whole number, a decimal that ends, or a fraction.

    Knows + - * / ^ ( ) and %, with `**`, ×, ÷ and − as other spellings. What it cannot compute gives `error: …`.

    >>> [calculate(text) for text in ("2 * (3 + 4)", "7 / 2", "1 / 3", "2 / 0", "9 ^ 9 ^ 9", "__import__('os')")]
    ['14', '3.5', '1/3', 'error: division by zero', 'error: number too large', 'error: unreadable']
    """
    try:
        return _shown(_Parser(expression).value())
    except _CalculatorError as error:
        return f"error: {error}"


class _CalculatorError(Exception):
    """What the model is told."""


class _Parser:
    """Recursive descent over sum → product → sign → power → atom. `^` binds to the right and closer than a sign."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARS:
            raise _CalculatorError(f"longer than {MAX_CHARS} characters")
        self.tokens: list[str] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise _CalculatorError("unreadable")
            number, sign = match.groups()
            self.tokens.append(number or _SPELLED.get(sign, sign))
            position = match.end()
        self.at = self.depth = 0

    def value(self) -> Fraction:
        total = self._sum()
        if self.at < len(self.tokens):
            raise _CalculatorError("unreadable")
        return total

    def _take(self, *wanted: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at] in wanted:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def _sum(self) -> Fraction:
        total = self._product()
        while sign := self._take("+", "-"):
            other = self._product()
            total = _bounded(total + other if sign == "+" else total - other)
        return total

    def _product(self) -> Fraction:
        product = self._signed()
        while sign := self._take("*", "/"):
            other = self._signed()
            if sign == "/" and not other:
                raise _CalculatorError("division by zero")
            product = _bounded(product * other if sign == "*" else product / other)
        return product

    def _signed(self) -> Fraction:
        sign = self._take("-", "+")
        if not sign:
            return self._power()
        self._enter()
        value = self._signed()
        self.depth -= 1
        return -value if sign == "-" else value

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._take("^"):
            return base
        self._enter()
        exponent = self._signed()
        self.depth -= 1
        if exponent.denominator != 1:
            raise _CalculatorError("power that is not whole")
        if abs(exponent) > MAX_EXPONENT:
            raise _CalculatorError("number too large")
        if not base and exponent < 0:
            raise _CalculatorError("division by zero")
        return _bounded(base ** int(exponent))

    def _atom(self) -> Fraction:
        if self._take("("):
            self._enter()
            value = self._sum()
            self.depth -= 1
            if not self._take(")"):
                raise _CalculatorError("unreadable")
        elif self.at < len(self.tokens) and self.tokens[self.at][-1] in "0123456789.":
            value = _bounded(Fraction(self.tokens[self.at].rstrip(".")))
            self.at += 1
        else:
            raise _CalculatorError("unreadable")
        while self._take("%"):
            value = _bounded(value / 100)
        return value

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _CalculatorError("nested too deeply")


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        raise _CalculatorError("number too large")
    return value


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    places, rest = 0, value.denominator
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
