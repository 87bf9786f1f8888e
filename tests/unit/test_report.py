"""The table of an experiment, character by character."""

from __future__ import annotations

from textwrap import dedent

import pytest

from w2sr.metrics import records_to_result
from w2sr.report import to_markdown, to_text
from w2sr.results import RunResult
from w2sr.types import EvalRecord, Problem


def arm(
    name: str, num_correct: int, *, sources: tuple[str, ...] = ("toy",), train_seconds: float | None = None
) -> RunResult:
    """Forty problems a source; the first `num_correct` are right in 30 tokens, of the others one is cut off at 70."""
    problems = [Problem(f"{source}/{i}", source, "?", "7") for source in sources for i in range(40)]
    records = []
    for index, problem in enumerate(problems):
        right = int(problem.problem_id.rpartition("/")[2]) < num_correct
        records.append(
            EvalRecord(
                problem.problem_id,
                problem.source,
                "",
                0,
                "…",
                "length" if index == 39 else "stop",
                70 if index == 39 else 30,
                None,
                "7",
                "correct" if right else "incorrect",
                right,
            )
        )
    return records_to_result(
        records,
        problems,
        name=name,
        model="m",
        num_samples=1,
        seconds=1234.56,
        command="c",
        sampling={},
        train_seconds=train_seconds,
        num_train_tokens=None if train_seconds is None else 87_654,
        num_bootstrap=50,
    )


def test_the_table_of_two_arms() -> None:
    # Wilson: 10 of 40 → [0.142, 0.402], 32 of 40 → [0.652, 0.895]. Tokens: (39 · 30 + 70) / 40 = 31.0.
    text = to_text([arm("plain student", 10), arm("W2SR-P", 32, train_seconds=64)])
    assert text == dedent(
        """\
        arm            Pass@1  95 % interval  problems  cut off  tokens  seconds
        -------------  ------  -------------  --------  -------  ------  -------
        plain student    25.0   [14.2, 40.2]        40    2.5 %    31.0  1,234.6
        W2SR-P           80.0   [65.2, 89.5]        40    2.5 %    31.0  1,234.6

        Pass@1 and its 95 % interval in per cent; Wilson.
        Training of W2SR-P: 64.0 s on 87,654 tokens.
        """
    )


def test_several_benchmarks_get_a_line_each_and_two_means() -> None:
    lines = to_text([arm("P", 20, sources=("gsm8k", "aime24"))]).splitlines()
    assert [line.split()[:3] for line in lines[2:6]] == [
        ["P", "gsm8k", "50.0"],
        ["P", "aime24", "50.0"],
        ["P", "pooled", "50.0"],
        ["P", "average", "50.0"],
    ]
    assert lines[4].endswith("1,234.6") and lines[2].endswith("40")


def test_gaps_name_their_floor_and_an_undefined_one_says_why() -> None:
    arms = [arm("plain", 10), arm("teacher", 20), arm("P", 28), arm("RL", 30)]
    text = to_text(arms, plain="plain", teacher="teacher", ceiling="RL")
    # RGR (28 − 10) / (30 − 10) = 90 %, PGR (28 − 20) / (30 − 20) = 80 %; only P is neither floor nor ceiling.
    rows = [line.split()[:6] for line in text.splitlines() if line.startswith("P ")]
    assert rows[1:] == [
        ["P", "RGR", "25.0", "70.0", "75.0", "90.0"],
        ["P", "PGR", "50.0", "70.0", "75.0", "80.0"],
    ]
    assert "RGR: floor = plain student (plain), ceiling = RL, in per cent." in text
    assert "PGR: floor = weak teacher (teacher), ceiling = RL, in per cent." in text
    upside_down = to_text(arms, plain="RL", ceiling="plain")
    assert "RGR of P is undefined: the ceiling 0.250 is not above the floor 0.750 (plain student)." in upside_down
    assert "PGR" not in upside_down and "nan" not in upside_down


def test_markdown_has_the_same_cells_and_escapes_names() -> None:
    lines = to_markdown([arm("a|b\x1b[31m", 10)]).splitlines()
    assert lines[0] == "| arm | Pass@1 | 95 % interval | problems | cut off | tokens | seconds |"
    assert lines[1] == "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| a\\|b?[31m | 25.0 | [14.2, 40.2] | 40 | 2.5 % | 31.0 | 1,234.6 |"


def test_missing_samples_are_told() -> None:
    problems = [Problem(f"{i}", "toy", "?", "7") for i in range(3)]
    empty = records_to_result(
        [], problems, name="crashed", model="m", num_samples=2, seconds=0, command="", sampling={}, num_bootstrap=5
    )
    text = to_text([empty])
    assert "Samples that are missing and counted as wrong: crashed 6." in text
    assert text.splitlines()[2].split() == ["crashed", "0.0", "[0.0,", "56.1]", "3", "0.0", "%", "-", "0.0"]


def test_arms_that_cannot_be_laid_side_by_side_raise() -> None:
    plain, other = arm("plain", 10), arm("P", 20)
    with pytest.raises(ValueError, match=r"share a name: \['P', 'P'\]"):
        to_text([other, other])
    with pytest.raises(ValueError, match=r"The ceiling arm 'RL' is not among \['plain', 'P'\]"):
        to_text([plain, other], plain="plain", ceiling="RL")
    with pytest.raises(ValueError, match="A gap needs a ceiling and a floor"):
        to_text([plain, other], plain="plain")
    with pytest.raises(ValueError, match="A gap needs a ceiling and a floor"):
        to_text([plain, other], ceiling="plain")
    lacking = records_to_result(
        [],
        [Problem("a", "toy", "?", "7")],
        name="k4",
        model="m",
        num_samples=4,
        ks=(4,),
        seconds=0,
        command="",
        sampling={},
    )
    with pytest.raises(ValueError, match=r"Result 'k4' has no 'pass@1/pooled', only \['pass@4/pooled'"):
        to_text([lacking])
