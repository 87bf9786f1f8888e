r"""Written arithmetic in a completion: equations are found and evaluated exactly, and never by an interpreter.

An equation is `side = side`, each side of numbers, + - * / × ÷ x, powers with small exponents, brackets, percent signs
and \frac; the left side must compute something, or be the result of a side that did: a chain 2 + 3 = 5 = 10 / 2 is two
equations. Units between a number and a sign ("3 cups * 5 = 15 cups") are left out, as they are when one checks the
numbers. What holds a variable, a mixed number, a remainder, or anything else that is not understood, is no equation
here and is not counted; nor is "40 % of 50 = 0.4 * 50", whose left side is words.

Values are exact fractions; a side that is one decimal number with d digits after the point (at most 12 are asked for)
is met by what rounds to it (10 / 3 = 3.33), and one percentage also by its number of hundredths (1 / 4 * 100 = 25 %).
Bounds: a text of MAX_CHARS, and for each side those of w2sr.arithmetic; what is beyond them is not evaluated. The time
is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

from w2sr.arithmetic import NoArithmeticError, evaluate

MAX_CHARS = 200_000
MAX_DIGITS = 12

_TRANSLATED = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_LATEX = (
    (re.compile(r"<<|>>"), ";"),  # GSM8K's notes for a calculator: <<48/2=24>>
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])|(?<=[0-9)]) ?[xX] ?(?=[0-9(])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"(?<=[0-9]) ?\\[dt]?frac"), "_"),  # a mixed number, or a product: not to be guessed
    (re.compile(r"\\[dt]?frac\{([^{}]{1,80})\}\{([^{}]{1,80})\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[,!;()\[\]]|[$€£]|\*\*(?=[^0-9(]|$)"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\n(?![a-z])"), "\n"),  # a line break inside of JSON
    (re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\\text\{[^{}]{0,40}\}"), ""),
    # a unit before a sign: "20 cups * 3 ="; one letter is a variable
    (re.compile(r"(?<=[0-9)%]) ?[A-Za-z]{2,20}(?:[ /-][A-Za-z]{2,20}){0,3}(?= ?[-+*/=])"), ""),
)
_RUN = re.compile(r"[0-9+\-*/^().%= ]+")
_BREAK = re.compile(r"\.(?=\s|$)|\n")
_DECIMAL = re.compile(r"-?[0-9]*\.([0-9]+) ?%?")
_PERCENTAGE = re.compile(r"-?[0-9.]+ ?%")
_BULLET = re.compile(r" *[-+*] +|[0-9]+[.)] +")
_BEGINS_A_TERM = re.compile(r"[_\\{<>]|(?:with )?(?:a )?(?:remainder|R ?[0-9])")


def equation_validity(text: str) -> float:
    """Share of the written equations that hold, in [0, 1]; NaN where there is none.

    >>> equation_validity("He has 3 + 4 = 7 pens and 7 * 2 = 15 caps; x + 1 = 3.")
    0.5
    """
    verdicts = [holds for _, holds in equations(text)]
    return sum(verdicts) / len(verdicts) if verdicts else float("nan")


def equations(text: str) -> Iterator[tuple[str, bool]]:
    """Each written equation as it was read, and whether it holds.

    >>> list(equations(r"$2 \\times 3 = 6 = 7$"))
    [('2 * 3 = 6', True), ('6 = 7', False)]
    """
    text = text[:MAX_CHARS].translate(_TRANSLATED)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    for line in _BREAK.split(text):
        for run in _RUN.finditer(line):
            if "=" in run.group():
                yield from _chain(_sides(line, run))


def _sides(line: str, run: re.Match[str]) -> list[str]:
    """The sides of a run of numbers and signs; a side that belongs to something with a letter is emptied."""
    sides = run.group().split("=")
    before, after = line[max(0, run.start() - 1) : run.start()], line[run.end() : run.end() + 16]
    if not before:
        sides[0] = _BULLET.sub("", sides[0], count=1) if _BULLET.match(sides[0]) else sides[0]
    is_joined = not sides[0].startswith(" ")
    # "x2 + 1 =", "a_ 2 =", and "x - 3 =", which is no minus sign as in "is -3 + 5 ="
    if before and (
        before in "_<>≈"
        or (is_joined and not before.isspace() and before not in ":;,!?\"'|&~")
        or sides[0].startswith(" - ")
    ):
        sides[0] = ""
    if _BEGINS_A_TERM.match(after) or (after[:1].isalnum() and not sides[-1].endswith(" ")):
        sides[-1] = ""
    return sides


def _chain(sides: list[str]) -> Iterator[tuple[str, bool]]:
    was_computed = False
    for left, right in pairwise(side.strip() for side in sides):
        was_computed = was_computed or any(sign in left[1:] for sign in "+-*/^%")
        a, b = _value(left), _value(right)
        if a is None or b is None:
            was_computed = False
        elif was_computed:
            yield f"{left} = {right}", _meets(a, b, left, right)


def _meets(a: Fraction, b: Fraction, left: str, right: str) -> bool:
    for scale in (1, 100) if _PERCENTAGE.fullmatch(right) else (1,):
        difference = abs(a - b * scale)
        for side, unit in ((left, 1), (right, scale)):
            digits = _DECIMAL.fullmatch(side)
            num_digits = min(len(digits[1]), MAX_DIGITS) + 2 * side.endswith("%") if digits else 0
            if difference <= (Fraction(unit, 2 * 10**num_digits) if digits else 0):
                return True
    return False


def _value(side: str) -> Fraction | None:
    if not side:
        return None
    try:
        return evaluate(side)
    except NoArithmeticError:
        return None
