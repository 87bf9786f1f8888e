"""The kinds of comparison beside mathematics, on pairs that the eye can judge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear_time import assert_linear

from w2sr.types import Tolerance
from w2sr.verify import Verifier, choice, extract, logic, number, parse_rules, yes_no


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("(B)", True),
        ("B.", True),
        ("b)", True),
        ("B) Bath", True),
        ("B: a bath", True),  # the letter decides
        (r"\textbf{(B)}", True),
        ("**B**", True),
        ("The correct option is B", True),
        ("bath", True),
        ("“Bath”.", True),
        ("C", False),
        ("C) Bath", False),
        ("the bath", False),
        ("A and B", False),
        ("A, B", False),
        ("Bathtub", False),
        ("", False),
    ],
)
def test_choice(answer: str, right: bool) -> None:
    assert choice.grade(answer, "B) Bath")[0] is right, choice.grade(answer, "B) Bath")


def test_a_text_needs_a_reference_with_text_and_a_lone_letter_is_a_letter() -> None:
    assert choice.grade("B", "(B)")[0]
    equal, reason = choice.grade("bath", "B")
    assert not equal and "names no text" in reason
    assert choice.grade("E. coli", "C) E. coli")[0]  # the whole option, though it begins like letter E
    assert not choice.grade("C", "A) C")[0]
    assert choice.grade("$78.20", "E) \\$78.20")[0]
    for bad in ("", "Bath", "5"):
        with pytest.raises(ValueError, match="is no option: write B"):
            choice.check_reference(bad)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Yes", "yes", True),
        ("yes.", "True", True),
        ("No, it is rare.", "no", True),
        (r"\text{false}", "No", True),
        ("Yes", "no", False),
        ("No one", "no", False),
        ("Not true", "yes", False),
        ("yes and no", "yes", False),
        ("perhaps", "no", False),
        ("yesterday", "yes", False),
        ("no-brainer", "no", False),
    ],
)
def test_yes_no(answer: str, reference: str, right: bool) -> None:
    assert yes_no.grade(answer, reference)[0] is right


def test_yes_no_wants_a_plain_reference() -> None:
    yes_no.check_reference("False")
    with pytest.raises(ValueError, match="'Yes, often' is none of yes, no, true, false"):
        yes_no.check_reference("Yes, often")


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("1,234,567.50", "1234567.5", True),
        ("1 234 567", "1,234,567", True),
        (r"1{,}234", "1234", True),
        ("12,34", "1234", False),
        ("1.234,5", "1234.5", False),
        ("−3", "-3", True),
        (r"-\dfrac{3}{4}", "-.75", True),
        ("6.02e23", r"6.02 \times 10^{23}", True),
        ("5 million", "5,000,000", True),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50", "50%", True),
        ("0.5%", "0.5", False),
        ("5%", "50", False),
        ("x = 5", "5", True),
        ("about $5", "5", True),
        ("5 km", "5", True),
        ("5km", "5 km", True),
        ("5 km", "5 m", False),
        ("5 x", "5", False),
        ("5 or 6", "5", False),
        ("5-6", "5", False),
        ("1/0", "1", False),
        ("10:30", "10", False),
        ("1e9999", "1", False),
        ("five", "5", False),
        ("9" * 301, "9", False),
    ],
)
def test_number(answer: str, reference: str, right: bool) -> None:
    assert number.grade(answer, reference)[0] is right, number.read_quantity(answer)


def test_tolerance_is_the_larger_of_absolute_and_relative_and_its_edge_is_inside() -> None:
    tenth = Tolerance(absolute=0.1)
    assert number.grade("0.3", "0.2", tenth)[0]  # 0.3 - 0.2 > 0.1 in binary floats
    assert not number.grade("0.3001", "0.2", tenth)[0]
    share = Tolerance(absolute=0.1, relative=0.01)
    assert number.grade("-198", "-200", share) == (True, "within tolerance")
    assert not number.grade("-197.9", "-200", share)[0]
    assert number.grade("9.9", "10", share)[0] and not number.grade("9.89", "10", share)[0]
    assert not number.grade("0.3", "0.2")[0]
    for wrong in ({"absolute": -1.0}, {"relative": 1.0}, {"absolute": float("nan")}):
        with pytest.raises(ValueError, match="tolerance needs absolute >= 0 and 0 <= relative < 1"):
            Tolerance(**wrong)
    with pytest.raises(ValueError, match="'about' is no number"):
        number.check_reference("about")


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_every_spelling_of_a_decimal_is_the_same_number(digits: int, places: int) -> None:
    sign, text = ("-", str(-digits)) if digits < 0 else ("", str(digits))
    text = text.rjust(places + 1, "0")
    whole, rest = text[: len(text) - places], text[len(text) - places :]
    plain = f"{sign}{whole}" + (f".{rest}" if places else "")
    grouped = f"{sign}{int(whole):,}" + (f".{rest}" if places else "")
    for spelling in (grouped, grouped.replace(",", r"\,"), f"${plain}$", f"{sign}{text}e-{places}"):
        assert number.grade(spelling, plain) == (True, "equal numbers"), spelling
    assert not number.grade(plain + "1" if places else plain + ".1", plain)[0]


KNIGHTS = "Alice is a knight, Bob is a knave, Carol is a knight"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Carol is a knight, Bob is a knave, and Alice is a knight.", True),
        ("Alice and Carol are knights, and Bob is a knave", True),
        ("So Alice: knight; Bob: knave; Carol: knight", True),
        ('{"Alice": "knight", "Bob": "knave", "Carol": "knight"}', True),
        (r"\text{Alice is a knight, Bob a knave, Carol a knight}", True),
        ("- Alice: Knight\n- Bob: Knave\n- Carol: Knight", True),
        ("Alice is a knight, Bob is a knave", False),
        (KNIGHTS + ", Dora is a knight", False),
        (KNIGHTS.replace("knave", "knight"), False),
        (KNIGHTS + ", Bob is a knight", False),
        ("knights: Alice, Carol; knaves: Bob", False),  # not a form that is read
        ("Alice, Bob, Carol", False),
        ("C < A < B", False),
        ("7", False),
        ("", False),
    ],
)
def test_assignments(answer: str, right: bool) -> None:
    assert logic.grade(answer, KNIGHTS)[0] is right, logic.read_structure(answer)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("C < A < B", True),
        ("c<a<b", True),
        ("$B > A > C$", True),
        (r"C \lt A \lt B", True),
        ("C > A > B", False),
        ("C < A", False),
        ("C < A > B", False),
        ("C < A < B < A", False),
        ("C, A, B", False),
        ("Ann is C", False),
    ],
)
def test_orderings(answer: str, right: bool) -> None:
    assert logic.grade(answer, "C < A < B")[0] is right


def test_a_reference_without_structure_is_refused() -> None:
    logic.check_reference(KNIGHTS)
    for bad in ("", "Alice", "A < B > C", "7"):
        with pytest.raises(ValueError, match="neither an assignment"):
            logic.check_reference(bad)


def test_the_verifier_knows_every_kind() -> None:
    pairs = {"choice": ("(C)", "C) x"), "yes_no": ("No.", "false"), "logic": ("B > A", "A < B"), "number": ("3.1", "3")}
    for kind, (answer, reference) in pairs.items():
        tolerance = Tolerance(absolute=0.2) if kind == "number" else Tolerance()
        with Verifier(["boxed"], kind, tolerance=tolerance) as verifier:  # type: ignore[arg-type]
            verdict = verifier.verify(rf"so \boxed{{{answer}}}", reference)
            assert (verdict.label, verdict.grader, verdict.grader_version) == ("correct", kind, "w2sr 2")
            assert verifier._pool._workers == []
            with pytest.raises(ValueError, match="reference answer"):
                verifier.check_reference("?")
    with pytest.raises(ValueError, match=r"kind 'math' has no tolerance, but Tolerance\(absolute=0.5"):
        Verifier(tolerance=Tolerance(0.5))


@pytest.mark.parametrize(
    ("rule", "completion", "answer"),
    [
        ("choice_letter", "The answer is (B), not A.", "B"),
        ("choice_letter", "the answer is A? No. **Answer:** Option C.", "C"),
        ("choice_letter", "**Answer**: vitamin C (D)", "D"),
        ("choice_letter", "Final answer: $B$", "B"),
        ("choice_letter", "the answer is a bank", None),
        ("choice_letter", "The answer is DNA", None),
        ("choice_letter", "(B)", None),
        ("yes_no", "No? So the answer is **yes**.", "yes"),
        ("yes_no", "Answer: No, since frost is rare", "No"),
        ("yes_no", "the answer is not known", None),
        ("yes_no", "the answer is no one", None),
        ("yes_no", "yes", None),
        ("yes_no", "<think>the answer is yes", None),
    ],
)
def test_rules_for_words_after_the_answer_is(rule: str, completion: str, answer: str | None) -> None:
    assert extract(completion, parse_rules([rule])).answer == answer


@pytest.mark.parametrize("module", [choice, yes_no, number, logic])
def test_hostile_answers_are_wrong_and_cheap(module: object) -> None:
    """Any text gives a verdict, in linear time."""
    reference = {"choice": "B) x", "yes_no": "no", "number": "7", "logic": "A < B"}[module.__name__.split(".")[-1]]  # type: ignore[attr-defined]
    rng = random.Random(3)
    signs = ["<", "is a ", "and ", ",", "1,000", " 1", "a", "{", "}", "\\", "-", "(", "e9", "\n", "=", ":", "\0", "é"]
    texts = [part * 3_000 for part in signs] + ["".join(rng.choices(signs, k=300)) for _ in range(200)]
    for text in texts:
        equal, reason = module.grade(text, reference)  # type: ignore[attr-defined]
        assert not equal and reason, text[:80]
    for part in signs:
        assert_linear(lambda text: module.grade(text, reference), part, 3_000)  # type: ignore[attr-defined]
