"""Grading of mathematical answers: one spelling, exact rules, and math-verify for the rest."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import grading_pairs
import pytest
from adversarial_pairs import Hard, hard_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.verify import worker_main
from w2sr.verify.answers import read
from w2sr.verify.comparison import All, Either, Match, Pair, open_pairs, settle
from w2sr.verify.mathematics import MAX_ANSWER_CHARS, check_reference, grade
from w2sr.verify.plain_numbers import plain_number
from w2sr.verify.spelling import canonical


def equal(answer: str, reference: str) -> bool:
    """The verdict, with math-verify in this process."""
    decision, _ = grade(answer, reference)
    graded = {pair: worker_main.grade(*pair)[0] for pair in open_pairs(decision)}
    settled = settle(decision, graded)
    assert settled is not None
    return settled


@pytest.mark.parametrize("pair", hard_pairs(), ids=lambda pair: f"{pair.heading}: {pair.answer} | {pair.reference}")
def test_adversarial_pairs_in_both_orders(pair: Hard) -> None:
    assert equal(pair.answer, pair.reference) is pair.equal
    assert equal(pair.reference, pair.answer) is pair.equal


def test_the_adversarial_set_is_large_and_has_both_verdicts() -> None:
    pairs = hard_pairs()
    assert len(pairs) >= 195
    assert min(sum(pair.equal for pair in pairs), sum(not pair.equal for pair in pairs)) > 60


def test_generated_pairs_get_the_verdict_that_they_were_made_with() -> None:
    """200 of the 2,000 that benchmarks/verify_pairs.py grades."""
    pairs = grading_pairs.generated(200, seed=1)
    wrong = [pair for pair in pairs if equal(pair.answer, pair.reference) is not pair.equal]
    assert wrong == []
    assert len({pair.kind for pair in pairs}) == 8 and {pair.equal for pair in pairs} == {True, False}


def test_references_equal_their_own_respellings(shared_data: Path) -> None:
    """A sample; benchmarks/verify_pairs.py grades all of them."""
    chosen = random.Random(0).sample(grading_pairs.references(shared_data), 150)
    pairs = list(grading_pairs.respelled(chosen))
    assert len({pair.kind for pair in pairs}) >= 6
    assert [pair for pair in pairs if not equal(pair.answer, pair.reference)] == []
    assert [pair for pair in pairs if not equal(pair.reference, pair.answer)] == []


ATOMS = st.sampled_from(
    ["1", "2", "1/3", "0.5", "x", r"\pi", r"\sqrt{2}", "1,100", "100", r"50\%", "-3", r"\infty", "2i"]
)
FORMS = [
    "({},{})",
    "[{},{})",
    "{}, {}",
    r"\{{{}, {}\}}",
    "x={}, y={}",
    "x={}, x={}",
    r"{} \le x < {}",
    "{}+{}",
    r"\frac{{{}}}{{{}}}",
]


@st.composite
def answers(draw: st.DrawFn) -> str:
    first, second = draw(ATOMS), draw(ATOMS)
    form = draw(st.sampled_from([*FORMS, "{}", "{}", "x = {}", r"{}\text{{ cm}}", "$({})$", "{}_2", "{} = {}"]))
    return form.format(first, second)


@settings(max_examples=150, deadline=None)
@given(answers(), answers())
def test_equality_is_symmetric_and_reflexive(first: str, second: str) -> None:
    assert equal(first, second) is equal(second, first)
    assert equal(first, first)


def test_real_pairs_are_graded_alike_in_both_orders(shared_data: Path) -> None:
    """The exact rules only: what they leave open is one ordered pair for math-verify, which is asked both ways."""
    pairs = random.Random(2).sample(grading_pairs.graders(shared_data), 700)
    decisions = [(grade(pair.answer, pair.reference)[0], grade(pair.reference, pair.answer)[0]) for pair in pairs]
    assert [
        pair
        for pair, (one, other) in zip(pairs, decisions, strict=True)
        if set(open_pairs(one)) != set(open_pairs(other))
    ] == []
    decided = [(one, other) for one, other in decisions if isinstance(one, bool)]
    assert all(one is other for one, other in decided)
    assert len(decided) > 0.7 * len(pairs)


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (r"\leftarrow x", r"\leftarrow x"),
        ("1 2", "1 2"),  # not twelve
        ("1, 000", "1,000"),
        ("1,000", "1000"),
        (r"\{1\}", r"\{1\}"),
        ("{5}", "5"),
        ("x**10", "x^{10}"),
        ("(x+1)**(2)", "(x+1)^{2}"),
        ("x**2*log(x)", r"x^{2}*\ln(x)"),
        (r"\log(x)", r"\log(x)"),
        ("atan(x)", r"\arctan(x)"),
        ("2pi", r"2\pi"),
        ("$5", "5"),
        (r"1-\frac{1}{\mathrm{e}}", r"1-\frac{1}{e}"),
        (r"\begin{pmatrix}1\\ 2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)
def test_one_spelling(text: str, spelling: str) -> None:
    assert canonical(text) == spelling


def test_plain_number_reads_value_and_precision() -> None:
    assert plain_number(r"-\frac{1}{2}") == (Fraction(-1, 2), None, 0, 0)
    assert plain_number("3.50") == (Fraction(7, 2), 2, 3, 0)
    assert plain_number("x") is None
    assert plain_number("1/0") is None
    assert plain_number("9_{8}") is None  # no such digit


def test_rounding_needs_six_digits() -> None:
    # 1/7 = 0.1428571…: 0.142857 is it at six digits, 0.14286 at five; 1/8 is exactly 0.125.
    assert grade("0.125001", "1/8") == (False, "0.125001 is not 1/8")
    assert grade("0.125", "1/8") == (True, "equal numbers")
    assert grade("0.142857", "1/7") == (True, "equal after rounding")
    assert grade("0.14286", "1/7") == (False, "0.14286 is not 1/7")
    assert grade("1/1000000", "1/1000001") == (False, "1/1000000 is not 1/1000001")


def test_an_overlong_answer_is_incorrect_without_being_graded() -> None:
    reason = "an answer of 10,001 characters is not graded (limit 10,000)"
    assert grade("7" * (MAX_ANSWER_CHARS + 1), "7") == (False, reason)
    assert grade("x" * MAX_ANSWER_CHARS, "y")[1] != reason


@pytest.mark.parametrize(
    ("text", "form", "name"),
    [
        ("(1,2)", "()", ""),
        (r"2\le x<3", "[)", "x"),
        ("x=5", "value", "x"),
        ("x+y=7", "relation", ""),
        ("f(1)+f(2)=3+4=7", "value", ""),
        ("x+y=z=7", "relation", ""),
        ("1,2", "list", ""),
        (r"\{1,2\}", "set", ""),
        (r"(0,1)\cup(2,3)", "opaque", ""),
    ],
)
def test_forms(text: str, form: str, name: str) -> None:
    assert (read(text).form, read(text).name) == (form, name)


def test_open_decisions_are_settled_by_their_pairs() -> None:
    a, b = Pair("a", "a'"), Pair("b", "b'")
    assert settle(All((a, b)), {a: True}) is None
    assert settle(All((a, b)), {a: False}) is False
    assert settle(Either((a, b)), {a: True}) is True
    assert settle(Either((a, b)), {a: False, b: None}) is None
    # two answers that equal the same reference need two references, unless repetition does not count
    lines = ((True, False), (True, False))
    assert settle(Match(lines, once=True), {}) is False
    assert settle(Match(((a, True), (True, b)), once=True), {}) is True
    assert settle(Match(((True,), (True,)), once=False), {}) is True
    assert settle(Match(((a, False), (True, False)), once=True), {a: True}) is False


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
