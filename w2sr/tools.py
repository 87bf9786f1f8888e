"""A calculator that a model may call while it writes: where a call stands in the text, and what it gives.

The arithmetic is w2sr.arithmetic's: model text is never evaluated by Python.

    tags        <tool>23 + 8</tool><result>31</result>
    equations   23 + 8 = 31          (GSM8K's calculator, Cobbe et al., arXiv 2110.14168: it answers after the sign)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from w2sr.arithmetic import MAX_CHARS, NoArithmeticError, evaluate

MAX_DIGITS = 40
"""A result with more digits in its numerator or denominator is refused: no model reads it."""

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
        value = evaluate(expression)
    except NoArithmeticError as error:
        return f"error: {error}"
    too_large = max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS
    return "error: number too large" if too_large else _shown(value)


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
