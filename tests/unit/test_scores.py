"""Scores: structure and arithmetic on texts the eye can check, difficulty, and values that are stored and believed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_time import assert_linear

from w2sr.arithmetic import MAX_DEPTH, evaluate
from w2sr.scores import (
    COLUMNS,
    Provenance,
    Score,
    compute_missing,
    difficulty_score,
    difficulty_scores,
    equation_validity,
    equations,
    score_of_column,
    scores_for,
    stored_values,
    structure_score,
    structure_scores,
)
from w2sr.traces import read_store, write_store
from w2sr.types import Trace

# --- arithmetic


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He buys 3 + 4 = 7 pens.", [("3 + 4 = 7", True)]),
        (
            "3 × 4 = 12 and 12 ÷ 5 = 2.4, but 7 − 9 = 2",
            [("3 * 4 = 12", True), ("12 / 5 = 2.4", True), ("7 - 9 = 2", False)],
        ),
        ("2 + 3 = 5 = 10 / 2 = 6", [("2 + 3 = 5", True), ("5 = 10 / 2", True), ("10 / 2 = 6", False)]),
        (r"\(10 \cdot 6 = 60\), \[\frac{3}{4} = 0.75\]", [("10 * 6 = 60", True), ("((3)/(4)) = 0.75", True)]),
        ("$1,000 * 3 = $3,000", [("1000 * 3 = 3000", True)]),
        ("3 cups/meal * 3 meals = 9 cups", [("3 * 3 = 9", True)]),
        ("<<48/2=24>>24", [("48/2 = 24", True)]),
        ("10 / 3 = 3.33, 10 / 3 = 3.34", [("10 / 3 = 3.33", True), ("10 / 3 = 3.34", False)]),
        ("10 / 3 = 3", [("10 / 3 = 3", False)]),
        ("1 / 4 * 100 = 25%. 25% * 8 = 2", [("1 / 4 * 100 = 25%", True), ("25% * 8 = 2", True)]),
        ("- 3 + 4 = 7\n2) 2(3 + 1) = 8", [("3 + 4 = 7", True), ("2(3 + 1) = 8", True)]),
        ("it is -3 + 5 = 2", [("-3 + 5 = 2", True)]),
        ("2^10 = 1024, 2 x 3 = 6", [("2^10 = 1024", True), ("2*3 = 6", True)]),
        # neither variables, nor words on the left, nor remainders, nor what is only said to be near
        ("x + 3 = 7, x - 3 = 4, 2x + 1 = 5, x2 + 1 = 3, 5 = 2 + x", []),
        ("40% of 50 = 0.4 * 50 cups", []),
        ("17 / 5 = 3 remainder 2", []),
        (r"5/4 = 1\frac{1}{4}; 3\frac{4}{5} = 19/5", []),
        ("22 / 7 ≈ 3", []),
        ("x = 5, 5 = 5", []),
        ("1 / 0 = 3, 5 / (2 - 2) = 1", []),
    ],
)
def test_written_equations(text: str, expected: list[tuple[str, bool]]) -> None:
    assert list(equations(text)) == expected


def test_validity_is_the_share_that_holds_and_nothing_without_an_equation() -> None:
    assert equation_validity("3 + 4 = 7, 3 * 4 = 11, 1 + 1 = 2, 2 - 1 = 1") == 0.75
    assert math.isnan(equation_validity("No number here."))


NUMBERS = st.integers(0, 99).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"),
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"{parts[0]}{parts[1]}{parts[2]}"),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS)
def test_values_equal_those_of_python_on_fractions(text: str) -> None:
    """The test's own text, every number a Fraction, evaluated by Python's grammar."""
    try:
        expected = eval(re.sub(r"\d+", lambda match: f"Fraction({int(match[0])})", text), {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="division by zero"):
            evaluate(text)
        return
    assert evaluate(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2^99",
        "2^(1/2)",
        "9" * 160,
        "16^16" + "*16^16" * 9,
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
        "(1",
        "1)",
        "1 2",
        "1 +",
        "+ 1",
        "",
        "__import__('os')",
    ],
)
def test_what_is_no_arithmetic_or_too_large_is_not_evaluated(text: str) -> None:
    with pytest.raises(ValueError):
        evaluate(text)
    assert list(equations(f"{text} = 3")) == []


@pytest.mark.parametrize(
    "block", ["1 ", "(", "=", "1+", "12 aa bb cc ", "step ", "\\frac{", "so. ", "1,000", "2^16", "wait "]
)
def test_hostile_texts_take_linear_time(block: str) -> None:
    def score(text: str) -> None:
        assert 0 <= structure_scores(text)["structure"] <= 1

    assert_linear(score, block, 12_500)


# --- structure and difficulty


def test_structure_is_the_weighted_mean_of_its_parts() -> None:
    """3 steps of 6, 2 connectives in 20 words (10 in 100, the ceiling is 4), 1 of 2 equations, no self-check."""
    text = "Tom has 3 pens, so he needs four. Therefore he buys 3 + 4 = 7 pens. And then 7 * 2 = 15"
    values = structure_scores(text)
    words = len("Tom has 3 pens so he needs four Therefore he buys 3 4 7 pens And then 7 2 15".split())
    assert (values["num_steps"], values["num_self_checks"], values["equation_validity"]) == (3, 0, 0.5)
    assert words == 20 and values["connectives"] == 100 * 3 / 20
    assert values["structure"] == pytest.approx(0.3 * 3 / 6 + 0.3 * 1 + 0.3 * 0.5 + 0.1 * 0)


def test_structure_without_an_equation_is_a_mean_of_the_other_parts() -> None:
    values = structure_scores(
        "Wait, let me check the whole thing. It is the same as before I think. Verify it once more."
    )
    assert math.isnan(values["equation_validity"])
    assert (values["num_steps"], values["num_self_checks"], values["connectives"]) == (3, 3, 0)
    assert values["structure"] == pytest.approx((0.3 * 3 / 6 + 0.1) / 0.7)
    assert structure_scores("")["structure"] == 0


def test_steps_are_marks_or_sentences() -> None:
    for text, steps in (
        ("Step 1: add them all. Now multiply the sum. Step 2: done", 2),
        ("First add them.\nThen multiply them!\n\nok\n2. It is 3.5 now", 3),
        ('{"reasoning": "She has three. He has four.\\nTogether they have 7.", "answer": "7"}', 3),
    ):
        assert structure_scores(text)["num_steps"] == steps, text


def trace(problem: int, sample: int = 0, verdict: Any = "correct", **changes: Any) -> Trace:
    completion = f"So {problem} + {sample} = {problem + sample} in this case."
    values: dict[str, Any] = {"teacher": "a", "completion": completion, "sample_index": sample, "verdict": verdict}
    return Trace(f"p{problem}", "toy", "q", "7", **{**values, **changes})


def test_difficulty_with_and_without_the_trace_itself() -> None:
    group = [trace(1, 0), trace(1, 1, "incorrect"), trace(1, 2, "no_answer"), trace(1, 3, "correct", teacher="b")]
    values = difficulty_scores(group)
    assert {one["difficulty"] for one in values} == {0.5}
    assert [one["difficulty_others"] for one in values] == [2 / 3, 1 / 3, 1 / 3, 2 / 3]
    (alone,) = difficulty_scores(group[:1])
    assert alone["difficulty"] == 0 and math.isnan(alone["difficulty_others"])
    with pytest.raises(ValueError, match="'p1@a#0' has no verdict, which difficulty needs"):
        difficulty_scores([trace(1, 0, "")])


# --- kept beside the traces


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", [trace(problem, sample) for problem in range(5) for sample in range(2)])
    return tmp_path / "store"


def counting(
    version: int = 1, chunk: int = 3, fail_at: int | None = None, **provenance: Any
) -> tuple[Score, list[str]]:
    """A score that notes what it computes, and dies before part number `fail_at`."""
    computed: list[str] = []

    def values(traces: Sequence[Trace]) -> list[dict[str, float]]:
        if fail_at is not None and len(computed) >= fail_at * chunk:
            raise KeyboardInterrupt
        computed.extend(trace.trace_id for trace in traces)
        return [{"length": float(len(trace.completion)), "none": math.nan} for trace in traces]

    kind = Provenance("counting", version, **provenance)
    return Score(kind, ("length", "none"), lambda trace: trace.completion, values, chunk), computed


def test_a_killed_command_goes_on_after_its_last_whole_part(store: Path) -> None:
    traces = read_store(store)
    dying, first = counting(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        list(compute_missing(store, dying, traces))
    whole, rest = counting()
    assert list(compute_missing(store, whole, traces)) == [(6, 10), (9, 10), (10, 10)]
    assert (len(first), len(rest)) == (6, 4) and not set(first) & set(rest)
    found = stored_values(store, whole, traces)
    assert {trace.trace_id: float(len(trace.completion)) for trace in traces} == {
        trace_id: values["length"] for trace_id, values in found.items()
    }
    assert all(math.isnan(values["none"]) for values in found.values())
    again, nothing = counting()
    assert list(compute_missing(store, again, traces)) == [(10, 10)] and not nothing
    assert not list((store / "scores").rglob("*.tmp"))


def test_the_sealed_store_is_untouched(store: Path) -> None:
    before = {path.name: path.read_bytes() for path in store.iterdir() if path.is_file()}
    traces = read_store(store)
    list(compute_missing(store, structure_score(), traces))
    assert {path.name: path.read_bytes() for path in store.iterdir() if path.is_file()} == before
    assert read_store(store) == traces


def test_a_score_of_another_version_student_or_text_is_not_read(store: Path) -> None:
    traces = read_store(store)
    list(compute_missing(store, counting()[0], traces))
    for other in (counting(version=2), counting(student_hash="abc"), counting(dtype="float32")):
        assert stored_values(store, other[0], traces) == {}
    changed = [replace(traces[0], completion="another text"), *traces[1:]]
    assert len(stored_values(store, counting()[0], changed)) == 9
    score, computed = counting()
    list(compute_missing(store, score, changed))
    assert computed == [traces[0].trace_id]
    assert stored_values(store, score, changed)[traces[0].trace_id]["length"] == 12


def test_difficulty_is_computed_again_when_a_problem_gets_more_traces(store: Path) -> None:
    traces = read_store(store)
    list(compute_missing(store, difficulty_score(traces), traces))
    more = [*traces, trace(3, 2, "incorrect")]
    there = stored_values(store, difficulty_score(more), more)
    assert len(there) == 8 and not [name for name in there if name.startswith("p3")]
    assert list(compute_missing(store, difficulty_score(more), more)) == [(8, 11), (11, 11)]
    assert stored_values(store, difficulty_score(more), more)["p3@a#0"]["difficulty"] == pytest.approx(1 / 3)


def test_a_changed_or_misplaced_part_is_refused(store: Path) -> None:
    traces = read_store(store)
    score, other = counting(chunk=99)[0], counting(version=2)[0]
    list(compute_missing(store, score, traces))
    (part,) = (store / "scores" / "counting-v1").iterdir()
    misplaced = store / "scores" / "counting-v2"
    misplaced.mkdir()
    (misplaced / part.name).write_bytes(part.read_bytes())
    with pytest.raises(ValueError, match=r"holds scores of .*'version': 1.* and its folder is that of .*'version': 2"):
        stored_values(store, other, traces)
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"was changed or cut after it was written. Delete it and run `score` again"):
        stored_values(store, score, traces)


def test_scores_for_a_selection_are_read_or_computed_and_say_which(store: Path) -> None:
    traces = read_store(store)
    elsewhere = trace(9, 0, "incorrect")
    list(compute_missing(store, structure_score(), traces))

    def table_of(*columns: str) -> tuple[dict[str, dict[str, float]], list[str]]:
        return scores_for([*traces, elsewhere], [store], columns, student="s", hash_of=lambda: "h")

    table, lines = table_of("num_steps", "structure", "difficulty")
    assert lines == [
        "difficulty: read for 0 traces, computed for 11",
        "structure: read for 10 traces, computed for 1",
    ]
    assert set(table) == {"num_steps", "structure", "difficulty"} and len(table["structure"]) == 11
    assert table["difficulty"][elsewhere.trace_id] == 1 and table["num_steps"]["p1@a#0"] == 1
    with pytest.raises(
        ValueError, match=r"11 of 11 traces have no likelihood by the student s(.|\n)*score .*store --sc"
    ):
        table_of("likelihood")
    with pytest.raises(ValueError, match=r"There is no score 'structur'. Did you mean 'structure'\?"):
        table_of("structur")
    assert [score_of_column(column) for columns in COLUMNS.values() for column in columns] == [
        name for name, columns in COLUMNS.items() for _ in columns
    ]
