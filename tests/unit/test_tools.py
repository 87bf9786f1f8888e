"""The calculator: what it computes, what it refuses, and where a call stands."""

from __future__ import annotations

import operator
import random
from fractions import Fraction

import pytest

from w2sr.arithmetic import MAX_CHARS
from w2sr.tools import Calculator, calculate

EQUATIONS = Calculator(open="", close=" = ", result="{}")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("23 + 8", "31"),
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("10 - 4 - 3", "3"),  # from the left
        ("2^3^2", "512"),  # from the right
        ("-2^2", "-4"),  # the power binds closer than the sign
        ("2^-2", "0.25"),
        ("2**5", "32"),
        ("7 × 6 ÷ 4", "10.5"),
        ("3 − 5", "-2"),
        ("--3", "3"),
        ("50%", "0.5"),
        ("200 * 15%", "30"),
        (".5 + 1.", "1.5"),
        ("1/3", "1/3"),
        ("-1/8", "-0.125"),
        ("1/6 + 1/6", "1/3"),
        ("0.1 + 0.2", "0.3"),  # exact, as floats are not
        ("007", "7"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "unreadable"),
        ("2 +", "unreadable"),
        ("(2", "unreadable"),
        ("2)", "unreadable"),
        ("2 3", "unreadable"),
        ("1,000 + 1", "unreadable"),
        ("x + 1", "unreadable"),
        ("__import__('os').system('true')", "unreadable"),
        ("٣ + 1", "unreadable"),  # a digit for Python's \d, and none of ours
        ("5 / (3 - 3)", "division by zero"),
        ("0^-1", "division by zero"),
        ("2^0.5", "power that is not whole"),
        ("2^65", "number too large"),
        ("9^64", "number too large"),
        ("9^9^9^9", "number too large"),
        ("1" * 41, "number too large"),
        ("1/" + "3" * 40 + "/7", "number too large"),
        ("(" * 25 + "1" + ")" * 25, "nested too deeply"),
        ("-" * 25 + "1", "nested too deeply"),
        ("1+" * 100 + "1", f"longer than {MAX_CHARS} characters"),
    ],
)
def test_refusals(expression: str, complaint: str) -> None:
    assert calculate(expression) == f"error: {complaint}"


def test_random_expressions_equal_exact_arithmetic() -> None:
    rng = random.Random(3)
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

    def grown(depth: int) -> tuple[str, Fraction]:
        if depth == 0 or rng.random() < 0.3:
            number = rng.randint(1, 30)
            return str(number), Fraction(number)
        sign = rng.choice(list(signs))
        (left, a), (right, b) = grown(depth - 1), grown(depth - 1)
        if sign == "/" and not b:
            sign = "+"
        return f"({left}) {sign} ({right})", signs[sign](a, b)

    for _ in range(300):
        text, value = grown(3)
        if len(text) <= MAX_CHARS:
            assert Fraction(calculate(text)) == value, text


@pytest.mark.parametrize(
    ("text", "inserted"),
    [
        ("She has <tool>23 + 8</tool>", "<result>31</result>"),
        ("<tool>1 / 0</tool>", "<result>error: division by zero</result>"),
        ("<tool>2</tool><result>2</result> <tool>2*3</tool>", "<result>6</result>"),
        ("<tool>2*3</tool> and", None),
        ("no call</tool>", None),
        ("<tool>2</tool> again </tool>", None),  # the call before has its answer
    ],
)
def test_calls_in_tags(text: str, inserted: str | None) -> None:
    assert Calculator().answer(text) == inserted


@pytest.mark.parametrize(
    ("text", "inserted"),
    [
        ("Tom has 23 + 8 = ", "31"),
        ("Mia has 23. 23 * 2 = ", "46"),  # the period ends a sentence
        ("it is (2 + 3) * 4 = ", "20"),
        ("x = ", None),
        ("So 31 = ", None),  # a number alone is no question
        ("3 + x 4 - 2 = ", "2"),
        ("2 / 0 = ", None),  # an equation cannot say what is wrong: it is left to the model
        ("Tom has 23 + 8 =", None),  # another spelling
    ],
)
def test_calls_in_equations(text: str, inserted: str | None) -> None:
    assert EQUATIONS.answer(text) == inserted


@pytest.mark.parametrize("settings", [{"close": ""}, {"result": "none"}, {"result": "{}{}"}, {"max_calls": 0}])
def test_a_calculator_that_cannot_work_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a calculator needs a closing text"):
        Calculator(**settings)  # type: ignore[arg-type]
