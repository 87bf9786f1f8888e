"""The exact fast path, the text given to math-verify, and the checks of references."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from pathlib import Path

import pytest

from w2sr.verify import exact
from w2sr.verify.mathematics import (
    MAX_ANSWER_CHARS,
    canonical,
    check_reference,
    for_math_verify,
    quick_grade,
)
from w2sr.verify.plain_numbers import plain_number

EQUAL = [
    ("18", "18"),
    ("$18", "18"),
    (r"\$18.00", "18"),
    ("073", "73"),
    ("1,450,000", "1450000"),
    (r"29,\!322,\!216", "29322216"),
    ("1{,}000", "1000"),
    ("-5", "−5"),
    ("+5", "5"),
    ("5.", "5"),
    (".5", "1/2"),
    (r"\frac{1}{2}", "0.50"),
    (r"\dfrac12", r"\frac{1}{2}"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    ("2/4", "1/2"),
    (r"2\frac{1}{2}", "2.5"),
    ("1.5e+03", "1500"),
    (r"90^\circ", "90"),
    ("90°", "90^{\\circ}"),
    ("12 hours", "12"),
    (r"10 \text{ cm}", "10"),
    ("3,000 feet", "3000"),
    ("10 miles per hour", "10"),
    (r"\text{Evelyn}", "evelyn"),
    ("(B)", r"\text{B}"),
    (r"\left(1, 2\right)", "(1,2)"),
    ("x + 1", "x+1"),
    ("50%", r"50\%"),
]
UNEQUAL = [
    ("26", "18"),
    ("-18", "18"),
    ("1.5", "15"),
    ("0.33", "1/3"),
    (r"\frac{13}{2}", "6"),
    ("1/2", "2/1"),
    ("12 hours", "13"),
    ("A", "B"),
    ("nonlinear", "linear"),
    ("pots", "stop"),  # math-verify multiplies the letters and calls them equal
    ("$$", "5"),
]
LEFT_TO_MATH_VERIFY = [
    ("0.333333", "1/3"),  # six digits may be enough
    ("5 million", "5"),
    ("5 dozen", "5"),
    ("5 cm", "5 inches"),
    ("1/0", "5"),
    ("1,234", "1, 234"),
    ("0,111", "111"),
    ("1, 000", "1000"),
    ("1/2x", "x/2"),
    ("x(y+1)", "xy+x"),
    ("27_8", "27"),
    ("1e3", "1000"),
    ("7" * 5_000, "5"),
    (r"\sin^2(x)+\cos^2(x)", "1"),
    ("٥", "5"),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_obviously_equal(answer: str, reference: str) -> None:
    decision = quick_grade(answer, reference)
    assert decision is not None and decision[0], decision


@pytest.mark.parametrize(("answer", "reference"), UNEQUAL)
def test_obviously_unequal(answer: str, reference: str) -> None:
    decision = quick_grade(answer, reference)
    assert decision is not None and not decision[0], decision


@pytest.mark.parametrize(("answer", "reference"), LEFT_TO_MATH_VERIFY)
def test_the_rest_is_left_to_math_verify(answer: str, reference: str) -> None:
    assert quick_grade(answer, reference) is None


def test_decimals_are_compared_to_the_tolerance_exactly() -> None:
    # 1/8 = 0.125; a difference of 2e-6 decides, one of 1e-6 could round away, none at all is equal.
    assert quick_grade("0.125002", "1/8") == (False, "0.125002 is not 1/8")
    assert quick_grade("0.125001", "1/8") is None
    assert quick_grade("0.125", "1/8") == (True, "equal numbers")
    # Between fractions no rounding is allowed: 1/1000000 and 1/1000001 differ by 1e-12.
    assert quick_grade("1/1000000", "1/1000001") == (False, "1/1000000 is not 1/1000001")


def test_an_overlong_answer_is_incorrect_without_being_graded() -> None:
    assert quick_grade("7" * (MAX_ANSWER_CHARS + 1), "7") == (
        False,
        "an answer of 10,001 characters is not graded (limit 10,000)",
    )
    assert quick_grade("x" * MAX_ANSWER_CHARS, "y") != quick_grade("x" * (MAX_ANSWER_CHARS + 1), "y")


def test_plain_number_reads_value_point_and_unit() -> None:
    assert plain_number(r"-\frac{1}{2}") == (Fraction(-1, 2), False, "")
    assert plain_number("3.50") == (Fraction(7, 2), True, "")
    assert plain_number("12 kg") == (Fraction(12), False, "kg")
    assert plain_number("x") is None
    assert plain_number("1/0") is None


def test_canonical_keeps_what_has_meaning() -> None:
    assert canonical(r"\leftarrow x") != canonical(r"arrow x")
    assert canonical("1 2") == "1 2"  # not twelve
    assert canonical("1, 000") == "1,000"
    assert canonical(r"\{1\}") == r"\{1\}"
    assert canonical("{5}") == "5"


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x**10", "x^{10}"),
        ("(x+1)**(2)", "(x+1)^{2}"),
        ("x**2*log(x)", r"x^{2}*\ln(x)"),
        (r"\log(x)", r"\log(x)"),
        ("atan(x)", r"\arctan(x)"),
        ("2pi", r"2\pi "),
        ("π", r"\pi"),
        ("$5", "5"),
        (r"1-\frac{1}{\mathrm{e}}", r"1-\frac{1}{e }"),
    ],
)
def test_plain_notation_is_spelled_as_latex(text: str, latex: str) -> None:
    assert for_math_verify(text) == latex


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("$$", "is empty"),
        (r"\text{}", "is empty"),
        ("nan", "missing value"),
        ("None", "missing value"),
        ("5\x00", "control characters"),
        (r"\frac{1}{2", "unbalanced braces"),
        ("7" * 10_001, "10,001 characters"),
    ],
)
def test_unusable_references_are_refused_with_a_reason(reference: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_reference(reference)


@pytest.mark.parametrize(
    "reference", ["5", "-1", r"\frac{1}{2}", r"\{1\}", "linear", "A", r"\text{(E)},", r"\text{None}", "a\nb"]
)
def test_usable_references_pass(reference: str) -> None:
    check_reference(reference)


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("(A).", "a", True),
        ("Yes,  Sir!", "yes sir", True),
        ("“No”", "no", True),
        ("don't", "dont", False),
        ("-5", "5", False),
        ("1.5", "15", False),
        (".5", "5", False),
        ("C++", "C", False),
        ("", "x", False),
    ],
)
def test_exact_equality_of_text(answer: str, reference: str, equal: bool) -> None:
    assert exact.grade(answer, reference)[0] is equal


def test_exact_refuses_an_empty_reference() -> None:
    with pytest.raises(ValueError, match="empty or only punctuation"):
        exact.check_reference(" ?! ")


def test_the_fast_path_agrees_with_an_independent_harness(shared_data: Path) -> None:
    """3,254 real pairs with the labels of another grader, which also takes 0.13 for 13, 3 for 300 and 64 for 64,1/4,
    and for which 7,-5 is not -5,7."""
    path = shared_data / "grader" / "qwen_math_eval_real_pairs.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    decided = [(row, decision) for row in rows if (decision := quick_grade(row["prediction"], row["gold"]))]
    differing = [row for row, (equal, _) in decided if equal != row["equal"]]
    assert len(decided) > 0.7 * len(rows)
    lists = [row for row in differing if "," in row["prediction"] + row["gold"]]
    assert len(differing) < 0.015 * len(decided), differing
    assert len([row for row in differing if not row["equal"] and row not in lists]) <= 5, differing
