"""The kinds of comparison beside mathematics, on pairs that the eye can judge."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from answer_markup import MARKUPS
from hypothesis import given
from hypothesis import strategies as st
from linear_time import assert_linear

from w2sr.types import Tolerance
from w2sr.verify import Verifier, choice, exact, logic, number, yes_no


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
        (r"\boxed{\text{(B)}}", True),
        (r"\mathbf{B}", True),
        ("（Ｂ）。", True),
        ("「Ｂ」", True),
        ("Ｂ：ｂａｔｈ", True),
        ("B、Bath", True),
        ('"B"', True),
        ("\u200bB", True),
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
        ("_ _ Q _", "_  _ Q _", True),
        ("_ _ Q _", "Q _ _ _", False),
        ("_Q_", "Q", False),
        ('[["a"],["b"]]', '[["a"], ["b"]]', True),
        ("[['a'], ['b']]", '[["a"],["b"]]', True),
        ('[["a"],["b"]]', '[["a", "b"]]', False),
        ('{"a": 1, "b": [2.0]}', '{"b":[2],"a":1}', True),
        ('{"a": 1}', '{"a": "1"}', False),
        ("[true]", "[1]", False),
        ("[1, 2]", "1, 2", False),
        ("[" * 5_000, "[" * 4_999, False),
        ("C*", "C", False),
        ("C++", "C", False),
        ("$5", "5", False),
        ("5!", "5", False),
        ("-5", "5", False),
        ("−5", "-5", True),
        ("x²", "x2", False),
        ("½", "1/2", False),
        ("__init__", "init", False),
        ("a,b", "a, b", True),
        ("apple, pear", "apple pear", True),
        ("a, b c", "a b, c", False),
        ("f(x,y)", "f( x, y )", True),
        ("f(x y)", "f(x, y)", False),
        ("] ] >", "]]>", True),
        ("] ]", "] >", False),
        ("1,234", "1234", False),
        ("May 1, 2021", "may 1 2021", True),
        ("05/01/2021", "05/10/2021", False),
        ("**Paris**.", "paris", True),
        (r"\text{Paris}", "Paris", True),
        ("“Don’t”", "don't", True),
        (r"snake\_case", "snake_case", True),
        ("ＯＫ。", "ok", True),
        ("a\u200bb", "ab", True),
        ("(A)", "A", True),
        ("(a, b)", "a, b", False),
        ("```python\nprint(1)\n```", "print(1)", True),
    ],
)
def test_exact(answer: str, reference: str, right: bool) -> None:
    assert exact.grade(answer, reference)[0] is right, (exact.normalize(answer), exact.normalize(reference))
    assert exact.grade(reference, answer)[0] is right, "equality has no order"


@given(*[st.lists(st.sampled_from(["_", "q", "*", "#", "]", ">", "(", "$"]), min_size=3, max_size=4)] * 2)
def test_boards_and_brackets_are_equal_only_if_every_sign_is(one: list[str], other: list[str]) -> None:
    assert exact.grade(" ".join(one), " ".join(other))[0] is (one == other)


VALUES = st.recursive(st.sampled_from(["a", "b", "1", 1, 2, True, None]), lambda inner: st.lists(inner, max_size=2))


@given(*[st.lists(VALUES, min_size=1, max_size=2)] * 2)
def test_json_is_equal_only_if_its_values_are(one: list[Any], other: list[Any]) -> None:
    wide, narrow = json.dumps(one, indent=2), json.dumps(other, separators=(",", ":"))
    assert exact.grade(wide, narrow)[0] is (repr(one) == repr(other))


@pytest.mark.parametrize("markup", MARKUPS)
@pytest.mark.parametrize(
    ("module", "answer", "reference"),
    [
        (exact, "_ _ Q _", "_ _ Q _"),
        (exact, "New York", "new york"),
        (choice, "B", "B) Bath"),
        (choice, "Bath", "B) Bath"),
        (yes_no, "No", "false"),
        (number, "-1,234.5", "-1234.5"),
        (logic, "C < A < B", "B > A > C"),
    ],
)
def test_markup_round_an_answer_or_a_reference_changes_no_verdict(
    markup: str, module: Any, answer: str, reference: str
) -> None:
    assert module.grade(markup.format(answer), reference)[0], markup
    assert module.grade(answer, markup.format(reference))[0], markup
    assert not module.grade(markup.format("none"), reference)[0]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Yes", "yes", True),
        ("yes.", "True", True),
        ("No, it is rare.", "no", True),
        (r"\text{false}", "No", True),
        (r"$\boxed{\mathbf{Yes}}$", "yes", True),
        ("ＹＥＳ。", "yes", True),
        ("「no」", "No", True),
        ("Yes!", "yes", True),
        ("N\u200bo，it is rare", "no", True),
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
        ("10^5", "100000", True),
        ("10^{-2}", "0.01", True),
        ("10**5", "100000", True),
        ("10**5", "105", False),
        ("10⁵", "100000", True),
        ("-2^2", "-4", True),
        ("2 x 105", "200000", False),
        ("2.5 × 10⁻³", "0.0025", True),
        ("2 1/2 cups", "2.5", True),
        (r"2\frac{1}{2}", "2.5", True),
        (r"2\frac{1}{2}", "10.5", False),
        (r"\frac12", "0.5", True),
        ("-2½", "-2.5", True),
        ("2 3/2", "3.5", False),
        ("1⁄2", "0.5", True),
        ("–5", "-5", True),
        ("€18", "18 €", True),
        ("５。", "5", True),
        ("٣", "3", True),
        ("**5** apples.", "5", True),
        (r"\boxed{5}", "5", True),
        ("0^-1", "0", False),
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
            assert (verdict.label, verdict.grader, verdict.grader_version) == ("correct", kind, "w2sr 3")
            assert verifier._pool._workers == []
            with pytest.raises(ValueError, match="reference answer"):
                verifier.check_reference("?")
    with pytest.raises(ValueError, match=r"kind 'math' has no tolerance, but Tolerance\(absolute=0.5"):
        Verifier(tolerance=Tolerance(0.5))


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
