"""Systematic errors: what each kind does to texts that the eye can check, and what holds for every corrupted trace."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_time import assert_linear

from w2sr.chat import Chat
from w2sr.corruption import Corruption, Kind, corrupt_text, corrupt_traces, restored
from w2sr.corruption.equations import (
    Equation,
    equal_as_written,
    evaluate,
    find_equations,
    find_numbers,
    written_like,
)
from w2sr.miniature.tokenizer import build_tokenizer
from w2sr.traces import read_store, read_traces
from w2sr.types import Trace
from w2sr.verify import extract, parse_rules

KINDS: tuple[Kind, ...] = get_args(Kind)
MINIATURE_TRACES = Path(__file__).resolve().parents[2] / "w2sr" / "miniature" / "traces"
GSM8K = (
    "She has 16 - 3 = <<16-3=13>>13 eggs.\nAt $2 each she makes 13 * 2 = $<<13*2=26>>26 a day.\n"
    "In 3 hours that is 26/2=<<26/2=13.5>>13.5.\n#### 26"
)


# ---- reading


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("12 + 7 = 19", "12 + 7 = 19"),
        ("12*3=36", "12 * 3 = 36"),
        ("so $12 × 3 = $36.", "12 * 3 = 36"),
        (r"\(12 \times 3 = 36\)", "12 * 3 = 36"),
        (r"\$12 \cdot 3 = \$36", "12 * 3 = 36"),
        ("it is <<48/2=24>>24", "48 / 2 = 24"),
        ("$1,200.50 – 1 = 1,199.50", "2401/2 - 1 = 2399/2"),
        ("20% * 50 = 10", "1/5 * 50 = 10"),
        ("12 x 3 = 36", "12 * 3 = 36"),
        ("-5 + 3 = -2", "-5 + 3 = -2"),
        ("16-3-1=12", "16 - 3 - 1 = 12"),
        ("2 + 3 = 5, 5 + 1 = 6", "2 + 3 = 5; 5 + 1 = 6"),
        ("40 + 20 = 50 + 10 = 60", "50 + 10 = 60"),  # the first equals sign has an expression on its right
        ("x + 3 + 4 = 9", ""),
        ("(3 + 4) * 2 + 1 = 15", ""),
        ("3x + 1 = 7", ""),
        ("2^3 + 1 = 9", ""),
        ("3 + 4 = 7x", ""),
        ("3 + 4 = 7^2", ""),
        ("10 / 30 = 1/3", ""),
        ("4 = 4", ""),
        ("1 + 1 = 12345678901234567890", ""),
    ],
)
def test_equations_that_are_read_and_that_are_not(text: str, read: str) -> None:
    def shown(equation: object) -> str:
        side, words = equation.side, []  # type: ignore[attr-defined]
        for number, sign in zip(side.operands, [*side.signs, "="], strict=True):
            words += [str(number.value), sign]
        return " ".join([*words, str(equation.result.value)])  # type: ignore[attr-defined]

    assert "; ".join(map(shown, find_equations(text))) == read


def test_products_come_first_and_nothing_is_divided_by_0() -> None:
    numbers = [Fraction(n) for n in (2, 3, 4, 8)]
    assert evaluate(numbers, ["+", "*", "/"]) == Fraction(7, 2)  # 2 + 3 * 4 / 8
    assert evaluate(numbers, ["-", "-", "+"]) == 3
    assert evaluate([Fraction(1), Fraction(0)], ["/"]) is None


def test_a_rounded_result_holds_and_a_whole_one_must_be_exact() -> None:
    held = [e.holds for e in find_equations("10/3 = 3.33, 10/3 = 3.32, 7/2 = 3, 7/2 = 4, 7/2 = 3.5, 1/8 = 12.5%")]
    assert held == [True, False, False, False, True, True]


def test_numbers_are_not_list_marks_steps_or_parts_of_words() -> None:
    text = "Step 1: B12 has 3 cars.\n2. He buys -4, at $1,000.50 (20%) or .5, 7.\n"
    assert [number.text for number in find_numbers(text)] == ["3", "-4", "$1,000.50", "20%", "7"]


@pytest.mark.parametrize(
    ("model", "value", "written"),
    [
        ("36", Fraction(40), "40"),
        ("$36", Fraction(-40), "-$40"),
        ("1,200", Fraction(12345), "12,345"),
        ("6.0", Fraction(7), "7.0"),
        ("36", Fraction(1, 3), "0.33"),
        ("36", Fraction(1, 2), "0.5"),
        ("20%", Fraction(1, 4), "25%"),
        ("36", Fraction(-1, 1000), "0"),
        ("36.0", Fraction(-1799, 100), "-17.99"),
        ("36", Fraction(-17999, 1000), "-18"),
    ],
)
def test_numbers_are_written_in_the_style_of_the_old_one(model: str, value: Fraction, written: str) -> None:
    text, stated = written_like(find_numbers(model)[0], value)
    assert text == written and stated == find_numbers(text)[0].value


# ---- each kind

CHAIN = "Bob has 10. Ann has 10 / 2 = 5. Ivy has 5 * 3 = 15. Eli has 15 - 8 = 7. So Eli has \\boxed{7}."


def corrupted(text: str, kind: Kind, *picks: int, problem: str = "") -> tuple[str, bool]:
    left = list(picks)
    answer = extract(text, parse_rules(["boxed", "hash", "last_number"])).span
    made = corrupt_text(text, kind, lambda count: (left.pop(0) if left else 0) % count, problem=problem, answer=answer)
    assert made is not None
    assert all(made.text[slice(*change.span)] == change.after for change in made.changes)
    return made.text, made.consistent


def test_the_chain_goes_on_from_the_error() -> None:
    # 10 / 2 = 5 + 1, then 6 * 3 = 18, 18 - 8 = 10
    new = "Bob has 10. Ann has 10 / 2 = 6. Ivy has 6 * 3 = 18. Eli has 18 - 8 = 10. So Eli has \\boxed{10}."
    assert corrupted(CHAIN, "off_by_one") == (new, True)
    # the second equation, one less: 5 * 3 = 14, 14 - 8 = 6
    new = "Bob has 10. Ann has 10 / 2 = 5. Ivy has 5 * 3 = 14. Eli has 14 - 8 = 6. So Eli has \\boxed{6}."
    assert corrupted(CHAIN, "off_by_one", 1, 1) == (new, True)
    # 10 - 2 = 8, 8 + 3 = 11, and 11 - 8 = 3 rightly
    new = "Bob has 10. Ann has 10 / 2 = 8. Ivy has 8 * 3 = 11. Eli has 11 - 8 = 3. So Eli has \\boxed{3}."
    assert corrupted(CHAIN, "wrong_operator") == (new, True)
    new = "Bob has 10. Ann has 10 / 2 = 5. Ivy has 5 * 3 = 15. Eli has 8 - 15 = -7. So Eli has \\boxed{-7}."
    assert corrupted(CHAIN, "swapped_operands", 1) == (new, True)
    new = "Bob has 10. Ann has 10 / 2 = 5. Eli has 5 - 8 = -3. So Eli has \\boxed{-3}."
    assert corrupted(CHAIN, "dropped_step", 1) == (new, True)


def test_gsm8ks_notes_are_changed_on_both_sides_and_a_mistake_stays_as_large_as_it_was() -> None:
    # 26/2 was given as 13.5, half too much: 28/2 = 14 becomes 14.5
    new = (
        "She has 16 - 3 = <<16-3=14>>14 eggs.\nAt $2 each she makes 14 * 2 = $<<14*2=28>>28 a day.\n"
        "In 3 hours that is 28/2=<<28/2=14.5>>14.5.\n#### 28"
    )
    assert corrupted(GSM8K, "off_by_one") == (new, True)


def test_a_unit_is_wrong_from_its_place_on() -> None:
    text = "It takes 2 hours. That is 2 * 3 = 6 hours a day, an hour more. #### 6"
    new = "It takes 2 hours. That is 2 * 3 = 6 minutes a day, an minute more. #### 6"
    assert corrupted(text, "wrong_unit") == (new, True)
    assert corrupted("He pays 3 * $4 = $12 and $2.", "wrong_unit")[0] == "He pays 3 * $4 = €12 and €2."
    assert corrupt_text("It is $3 + 4 = 7$ of 9.", "wrong_unit", lambda count: 0) is None, "a formula's dollar signs"


def test_money_commas_and_latex_keep_their_form() -> None:
    assert corrupted(r"\(999 \times 2 = 1,998\) and \$1,998 + \$3 = \$2,001. So $2,001", "off_by_one", 0, 0) == (
        r"\(999 \times 2 = 1,999\) and \$1,999 + \$3 = \$2,002. So $2,002",
        True,
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("3 + 4 = 7. So (7 + 1) * 2 = 16. It is 16.", ""),  # computed from in a way that is not read
        ("3 + 4 = 7. 9 - 2 = 7. It is 7.", ""),  # the second 7 is another one
        ("3 + 4 = 7. So she has eight.\n#### 9", ""),  # the answer does not follow from it
    ],
)
def test_where_a_number_cannot_be_followed_the_truth_says_so(text: str, problem: str) -> None:
    assert corrupted(text, "off_by_one", problem=problem)[1] is False


def test_a_place_from_which_the_chain_goes_on_is_preferred() -> None:
    """The first result is in the problem already, so the second equation errs, whatever is picked."""
    text, problem = "3 + 4 = 7. 7 + 2 = 9. So 9.", "7 days"
    assert {corrupted(text, "off_by_one", pick, problem=problem)[0] for pick in (0, 1)} == {
        "3 + 4 = 7. 7 + 2 = 10. So 10."
    }
    # the first 6 is used in brackets; the other equation is one that can be followed
    text = "3 + 3 = 6. (6 + 1) = 7. 20 + 9 = 29. So 29."
    for pick in (0, 1):
        assert corrupted(text, "off_by_one", pick) == ("3 + 3 = 6. (6 + 1) = 7. 20 + 9 = 30. So 30.", True)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_corrupt(kind: Kind) -> None:
    for text in ("", "So it is \\boxed{7}.", "3 + 4 = 8"):
        assert corrupt_text(text, kind, lambda count: 0) is None


@pytest.mark.parametrize("unit", ["1+", "1 + 1 = 2. ", "$", "<<1+1=2>>2", "2 = ", " ", "3 hours ", "1,111", "7\n"])
def test_a_long_text_takes_linear_time(unit: str) -> None:
    def corrupt(text: str) -> None:
        for kind in KINDS:
            corrupt_text(text, kind, lambda count: count - 1)

    assert_linear(corrupt, unit, 2_500)


def test_new_numbers_can_be_held_to_what_a_tokenizer_knows(miniature: list[Trace]) -> None:
    chat = Chat(build_tokenizer())
    for kind in ("wrong_operator", "off_by_one", "swapped_operands", "dropped_step"):
        made, report = corrupt_traces(miniature, Corruption(kind, 1.0, whole_to=199))  # type: ignore[arg-type]
        chat.segments(made)  # an unknown number is refused
        changed = [
            change["after"] for new in made if new.corruption for change in json.loads(new.corruption)["changes"]
        ]
        assert all(text == "" or int(text) in range(200) for text in changed)
        _, free = corrupt_traces(miniature, Corruption(kind, 1.0))  # type: ignore[arg-type]
        assert report.num_corrupted < free.num_corrupted, "guard: some number was not to be had"
    with pytest.raises(ValueError, match="does not know"):
        chat.segments(corrupt_traces(miniature, Corruption("swapped_operands", 1.0))[0])


# ---- traces


@pytest.fixture(scope="module")
def miniature() -> list[Trace]:
    return read_store(MINIATURE_TRACES)[:240]


def share_of(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


@pytest.mark.parametrize("kind", KINDS)
def test_rate_0_changes_nothing(kind: Kind, miniature: list[Trace]) -> None:
    made, report = corrupt_traces(miniature, Corruption(kind, 0.0))
    assert made == miniature and (report.num_chosen, report.num_corrupted) == (0, 0)


def test_the_share_is_as_asked_and_smaller_rates_are_nested(miniature: list[Trace]) -> None:
    chosen = {}
    for rate in (0.1, 0.3, 1.0):
        made, report = corrupt_traces(miniature, Corruption("off_by_one", rate, seed=3))
        chosen[rate] = {new.trace_id: new for old, new in zip(miniature, made, strict=True) if new != old}
        assert len(chosen[rate]) == report.num_corrupted == report.num_chosen, "every one of them holds an equation"
        # 4 standard deviations of 240 draws
        assert abs(report.num_chosen - 240 * rate) <= 4 * (240 * rate * (1 - rate)) ** 0.5
    assert chosen[0.1].items() <= chosen[0.3].items() <= chosen[1.0].items() and len(chosen[1.0]) == 240
    # the hash itself: BLAKE2b of the use, the seed and the trace, as a share of its range
    by_hand = {t.trace_id for t in miniature if share_of(f"corrupted|3|{t.trace_id}") < 0.3}
    assert chosen[0.3].keys() == by_hand, "the low end of the range, in every version"
    other = {t.trace_id for t in corrupt_traces(miniature, Corruption("off_by_one", 0.3, seed=4))[0] if t.corruption}
    assert other != chosen[0.3].keys()


def errs_as_the_kind_says(equation: Equation, kind: Kind) -> bool:
    operands = [number.value for number in equation.side.operands]
    signs = [
        {"*": "+", "/": "-"}[sign] if kind == "wrong_operator" and sign in "*/" else sign
        for sign in equation.side.signs
    ]
    said = evaluate(operands, signs)
    assert said is not None
    sides = (said - 1, said + 1) if kind == "off_by_one" else (said,)  # what is written after a swap holds
    return any(equal_as_written(value, equation.result) for value in sides)


@pytest.mark.parametrize("kind", ["wrong_operator", "off_by_one", "swapped_operands", "dropped_step"])
def test_every_equation_but_the_erring_ones_is_as_right_as_it_was(kind: Kind, miniature: list[Trace]) -> None:
    made, report = corrupt_traces(miniature, Corruption(kind, 1.0))
    num_checked = num_erring = num_rounded = 0
    for old, new in zip(miniature, made, strict=True):
        if not new.corruption:
            continue
        truth = json.loads(new.corruption)
        assert restored(new) == old.completion and truth["kind"] == kind
        assert new.completion != old.completion and (new.verdict, new.answer, new.num_tokens) == ("", None, -1)
        errors = [change["span"] for change in truth["changes"] if change["role"] == "error"]
        right_before = [equation.holds for equation in find_equations(old.completion)]
        after = find_equations(new.completion)
        if kind == "dropped_step":
            assert len(after) == len(right_before) - 1
            num_erring += 1
            num_checked += len(after)
            continue
        assert len(after) == len(right_before)
        for before, equation in zip(right_before, after, strict=True):
            if any(equation.start <= start < equation.end for start, _ in errors):
                assert errs_as_the_kind_says(equation, kind), new.completion
                num_erring += 1
                continue
            num_checked += 1
            if equation.holds != before:
                # a swap makes quotients that are rounded: 1/3 = 0.33 holds, and 0.33 * 3 = 0.99 does not
                assert kind == "swapped_operands" and before and "." in new.completion, (old.completion, new.completion)
                num_rounded += 1
    assert report.num_corrupted > 200 and num_erring >= report.num_corrupted
    assert num_checked > 400 and num_rounded <= 0.05 * num_checked, num_rounded
    assert report.num_inconsistent < 0.2 * report.num_corrupted


def test_a_consistent_chain_ends_in_an_answer_that_its_equations_give(miniature: list[Trace]) -> None:
    """Of the miniature's traces the answer is the last equation's result, before and after."""
    num_checked = 0
    for kind in ("wrong_operator", "off_by_one", "swapped_operands"):
        for new in corrupt_traces(miniature, Corruption(kind, 1.0))[0]:  # type: ignore[arg-type]
            last = find_equations(restored(new))[-1].result.value
            answer = extract(restored(new), parse_rules(["boxed"])).answer
            if new.corruption and json.loads(new.corruption)["consistent"] and answer == str(last):
                now = extract(new.completion, parse_rules(["last_number"])).answer
                assert now == find_equations(new.completion)[-1].result.text, new.completion
                num_checked += 1
    assert num_checked > 350


def test_spans_without_loss_move_with_the_text() -> None:
    text = "Ann has 90 + 9 = 99. <tool>99</tool> So 99."
    spans = [[text.index("<tool>"), text.index(" So")], [8, 10], [17, 19]]
    trace = Trace("p", "s", "?", "99", "t", text, answer_rule="last_number", no_loss_spans=json.dumps(spans))
    made = [corrupt_traces([trace], Corruption("off_by_one", 1.0, seed))[0][0] for seed in range(9)]
    new = next(new for new in made if new.completion == text.replace("99", "100"))
    pieces = [new.completion[start:end] for start, end in json.loads(new.no_loss_spans)]
    assert pieces == ["<tool>100</tool>", "90", "100"]


def test_what_cannot_be_asked_is_refused(miniature: list[Trace]) -> None:
    with pytest.raises(ValueError, match=r"corruption.kind='typo' is unknown. Choose one of wrong_operator"):
        Corruption("typo", 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"corruption.rate=30.0 must be a share in \[0, 1\]"):
        Corruption("off_by_one", 30.0)
    made, _ = corrupt_traces(miniature, Corruption("off_by_one", 0.5))
    with pytest.raises(ValueError, match="is corrupted already"):
        corrupt_traces(made, Corruption("dropped_step", 0.5))


LINES = [
    "3 + 4 = 7. ",
    "7 * 2 = <<7*2=14>>14\n",
    "$14 - 1 = $13 ",
    "26/4=6.5, ",
    "13 hours, ",
    "(13 + 1) = 14. ",
    "= 5",
    "\\boxed{13}",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=7), st.sampled_from(KINDS), st.integers(0, 9))
def test_the_truth_gives_any_text_back(lines: list[str], kind: Kind, seed: int) -> None:
    trace = Trace("p", "s", "5 or 7?", "13", "t", "".join(lines), answer_rule="last_number")
    (new,), report = corrupt_traces([trace], Corruption(kind, 1.0, seed))
    assert restored(new) == trace.completion
    assert (report.num_corrupted == 1) == (new != trace) == (new.completion != trace.completion)


def test_real_traces_are_corrupted(shared_data: Path) -> None:
    columns = {"problem": "problem", "completion": "response", "reference_answer": "gold", "teacher": "model"}
    least = {
        "wrong_operator": 0.7,
        "off_by_one": 0.9,
        "swapped_operands": 0.35,
        "dropped_step": 0.9,
        "wrong_unit": 0.45,
    }
    read, _ = read_traces(shared_data / "traces/openai_gsm8k_example_model_solutions.jsonl.gz", columns)
    traces = [replace(trace, answer_rule="after:A:") for trace in read[::20]]
    for kind in KINDS:
        made, report = corrupt_traces(traces, Corruption(kind, 1.0))
        assert report.num_corrupted >= least[kind] * len(traces), report
        assert report.num_inconsistent <= 0.45 * report.num_corrupted, report
        assert [restored(new) for new in made] == [old.completion for old in traces]
