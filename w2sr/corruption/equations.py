r"""Numbers and written equations: `12 + 7 = 19`, `12*3=36`, `$12 × 3 = $36`, `<<48/2=24>>24`, `12 \times 3 = 36`.

A bounded parser: at most 8 operands of at most 12 digits, no parentheses, no names, nothing is evaluated but + - * /
on exact fractions. What it cannot read (`(3 + 4) * 2 = 14`, `3x + 1 = 7`, `2^3 + 1 = 9`) is no equation. Linear in the
length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from w2sr.verify.extraction import Span

MAX_DECIMALS = 2
"""A result that needs more is rounded, as people write it; one that was written with more keeps its number of them."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,4}|[0-9]{1,12})(?:\.[0-9]{1,6})?(?![0-9])(?![.,][0-9])"
_NUMBER = rf"(?:[-−]?(?:\\?\$ ?)?|\\?\$ ?[-−]){_DIGITS}(?: ?\\?%)?"
_OPERATOR = r" {0,2}(?:[-+*/×·÷−–]|\\times|\\cdot|\\div|(?<= )x(?= )) {0,2}"
_SIDE = rf"{_NUMBER}(?:{_OPERATOR}{_NUMBER}){{1,7}}"
_EQUALS = r" {0,2}= {0,2}"
_BEGIN = r"(?<![\w)\]}.^%])"
_END = r"(?![\w^(])(?! ?(?:[-+*/×·÷−–^]|\\times|\\cdot|\\div) ?[\\$0-9(])"
_EQUATION = re.compile(
    rf"(?:{_BEGIN}(?P<shown>{_SIDE}){_EQUALS}(?:\\?\$ ?)?)?"
    rf"<<(?P<noted>{_SIDE})=(?P<note>{_NUMBER})>>(?P<echo>{_NUMBER})?"
    rf"|{_BEGIN}(?P<side>{_SIDE}){_EQUALS}(?P<result>{_NUMBER}){_END}"
)
_FREE_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])[-−])?(?:\\?\$ ?)?(?<![A-Za-z_0-9.,])(?:(?<=\$)[-−])?{_DIGITS}(?: ?\\?%)?"
)
_OPERAND, _SIGN = re.compile(_NUMBER), re.compile(_OPERATOR)
_SENTENCE_END = re.compile(r"[.!?](?=\s)\s?|\n+")
_SIGNS = {"+": "+", "-": "-", "−": "-", "–": "-", "*": "*", "×": "*", "·": "*", "x": "*", "/": "/", "÷": "/"}
_SIGNS |= {"\\times": "*", "\\cdot": "*", "\\div": "/"}
_EQUALS_BEFORE = re.compile(r"= ?(?:\\?\$ ?)?$")
_LIST_MARK = re.compile(r"(?:^|\n)\s*$")
_STEP_WORD = re.compile(r"(?:Step|step|Question|Case|(?<!#)#)\s*$")


class Number(NamedTuple):
    """A number of the text: where it stands, how it is written, and its value (of `20%`: 1/5)."""

    start: int
    end: int
    text: str
    value: Fraction
    decimals: int

    @property
    def is_percent(self) -> bool:
        return self.text.endswith("%")


class Side(NamedTuple):
    """What stands left of the equals sign: numbers, and the signs `+ - * /` between them."""

    operands: tuple[Number, ...]
    signs: tuple[str, ...]

    @property
    def value(self) -> Fraction | None:
        return evaluate([number.value for number in self.operands], self.signs)


class Equation(NamedTuple):
    """One written equation. GSM8K's notes show a side and a result twice: `17 - 3 = <<17-3=14>>14`.

    `is_read` is False where something stands before a note's equals sign that could not be read (`17 eggs - 3 = <<`).
    """

    start: int
    end: int
    sides: tuple[Side, ...]
    results: tuple[Number, ...]
    is_read: bool = True

    @property
    def side(self) -> Side:
        """The side that is computed: that of the note where there is one."""
        return self.sides[-1]

    @property
    def result(self) -> Number:
        """The result with which the text goes on."""
        return self.results[-1]

    @property
    def holds(self) -> bool:
        """Whether the results are the side's value, rounded to the decimals that they are written with, if with any."""
        return all(equal_as_written(self.side.value, result) for result in self.results)


def equal_as_written(value: Fraction | None, result: Number) -> bool:
    """Whether a result states a value; a result with decimals may be rounded."""
    if value is None:
        return False
    slack = Fraction(1, 2 * 10**result.decimals) * (Fraction(1, 100) if result.is_percent else 1)
    return value == result.value or (result.decimals > 0 and abs(value - result.value) <= slack)


def evaluate(operands: Sequence[Fraction], signs: Sequence[str]) -> Fraction | None:
    """The value of `a + b * c / d`, products first; None where it divides by 0.

    >>> evaluate([Fraction(2), Fraction(3), Fraction(4)], ["+", "*"])
    Fraction(14, 1)
    """
    terms = [operands[0]]
    for sign, operand in zip(signs, operands[1:], strict=True):
        if sign == "*":
            terms[-1] *= operand
        elif sign == "/":
            if operand == 0:
                return None
            terms[-1] /= operand
        else:
            terms.append(operand if sign == "+" else -operand)
    return sum(terms, Fraction(0))


def find_equations(text: str) -> list[Equation]:
    """The equations of a text, in order.

    >>> [(str(e.side.value), e.result.text, e.holds) for e in find_equations("so 12 + 7 = 19, 19*2=$39")]
    [('19', '19', True), ('38', '$39', False)]
    """
    found = []
    for match in _EQUATION.finditer(text):
        if _goes_on_to_the_left(text, match.start()):
            continue
        names = ("side",) if match["side"] else ("shown", "noted") if match["shown"] else ("noted",)
        sides = tuple(_side(text, *match.span(name)) for name in names)
        spans = [match.span(name) for name in ("result", "note", "echo") if match[name]]
        is_read = names != ("noted",) or not _EQUALS_BEFORE.search(text[max(0, match.start() - 6) : match.start()])
        found.append(Equation(*match.span(), sides, tuple(_number(text, *span) for span in spans), is_read))
    return found


def _goes_on_to_the_left(text: str, start: int) -> bool:
    """Whether an operator stands before the equation, so that only a part of its side was read: `x + 3 + 4 = 9`."""
    before = text[max(0, start - 8) : start].rstrip(" ")
    return before.endswith(("+", "-", "*", "/", "×", "·", "÷", "−", "–", "^", "\\times", "\\cdot", "\\div", "%"))


def _side(text: str, start: int, end: int) -> Side:
    operands: list[Number] = []
    signs: list[str] = []
    position = start
    while True:
        operand = _OPERAND.match(text, position, end)
        assert operand is not None, text[start:end]
        operands.append(_number(text, *operand.span()))
        sign = _SIGN.match(text, operand.end(), end)
        if sign is None:
            return Side(tuple(operands), tuple(signs))
        signs.append(_SIGNS[sign.group().strip()])
        position = sign.end()


def _number(text: str, start: int, end: int) -> Number:
    written = text[start:end]
    digits = re.sub(r"[^0-9.]", "", written)
    value = Fraction(digits) / (100 if written.endswith("%") else 1)
    negative = "-" in written or "−" in written
    return Number(start, end, written, -value if negative else value, len(digits.partition(".")[2]))


def find_numbers(text: str) -> list[Number]:
    """Every number of a text that is no part of a word, of a list's mark (`2.` at a line's start) or of `Step 2`."""
    numbers = []
    for match in _FREE_NUMBER.finditer(text):
        start, end = match.span()
        before = text[max(0, start - 12) : start]
        is_mark = text[end : end + 1] in (".", ")") and _LIST_MARK.search(before) and start > 0
        if not is_mark and not _STEP_WORD.search(before):
            numbers.append(_number(text, start, end))
    return numbers


def written_like(model: Number, value: Fraction) -> tuple[str, Fraction]:
    """A value in the style of another number (currency, thousands commas, percent, decimals), and what that states.

    >>> number = find_numbers("It costs $1,250.50 a day")[0]
    >>> written_like(number, Fraction(-1300))[0], written_like(number, Fraction(1, 3))
    ('-$1,300.00', ('$0.33', Fraction(33, 100)))
    """
    shown = value * 100 if model.is_percent else value
    decimals = max(model.decimals, MAX_DECIMALS)
    scaled = round(abs(shown) * 10**decimals)
    while decimals > model.decimals and scaled % 10 == 0:
        scaled, decimals = scaled // 10, decimals - 1
    whole, rest = divmod(scaled, 10**decimals)
    digits = f"{whole:,}" if "," in model.text else f"{whole}"
    if decimals:
        digits += f".{rest:0{decimals}d}"
    currency, percent = re.match(r"[-−]?(\\?\$ ?)?", model.text), re.search(r" ?\\?%$", model.text)
    assert currency is not None
    sign = "-" if value < 0 and scaled else ""
    text = sign + (currency[1] or "") + digits + (percent.group() if percent else "")
    stated = Fraction(scaled, 10**decimals) / (100 if percent else 1)
    return text, -stated if sign else stated


class Page:
    """A text with what was read in it: equations, the numbers outside of them, and where sentences end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.equations = find_equations(text)
        self._starts = [equation.start for equation in self.equations]
        self.numbers = find_numbers(text)
        self.loose_numbers = [number for number in self.numbers if not self._is_in_equation(number)]
        ends = [match.span() for match in _SENTENCE_END.finditer(text)]
        self._ends = [*(start for start, _ in ends), len(text)]
        self._nexts = [*(end for _, end in ends), len(text)]

    def _is_in_equation(self, number: Number) -> bool:
        at = bisect_right(self._starts, number.end - 1) - 1
        return at >= 0 and number.start < self.equations[at].end

    def rest(self, position: int) -> Span:
        """The characters from a position to the end of its sentence or line."""
        return position, self._ends[bisect_left(self._ends, position)]

    def sentence(self, equation: Equation) -> Span:
        """The sentence or line of an equation, with the space after it; what stands before a colon is not of it."""
        at = bisect_right(self._nexts, equation.start)
        start = self._nexts[at - 1] if at else 0
        colon = self.text.rfind(": ", start, equation.start)
        return (colon + 2 if colon >= 0 else start), self._nexts[bisect_left(self._ends, equation.end)]

    def equations_in(self, span: Span) -> list[Equation]:
        """The equations that begin in a span."""
        return self.equations[bisect_left(self._starts, span[0]) : bisect_left(self._starts, span[1])]
