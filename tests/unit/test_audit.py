"""The audit on traces whose every disagreement is known beforehand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from w2sr import audit
from w2sr.cli import main
from w2sr.traces import write_store
from w2sr.types import Trace
from w2sr.verbs.audit import escaped
from w2sr.verify import Verifier


def trace(number: int, completion: str, reference: str = "7", verdict: str = "incorrect", **more: Any) -> Trace:
    given = {"problem_id": f"p/{number}", "source": "s", "problem": f"? {number}", "teacher": "t", **more}
    return Trace(reference_answer=reference, completion=completion, verdict=verdict, **given)  # type: ignore[arg-type]


TRACES = [
    trace(0, r"\boxed{7}", verdict="correct"),
    trace(1, r"\boxed{7.0}"),  # stored wrong, and right
    trace(2, r"\boxed{8}", verdict="correct"),  # stored right, and wrong
    trace(3, "It is 7.\n#### 7", verdict="no_answer", finish_reason="stop"),  # another rule finds it
    trace(4, "First 7, then", verdict="no_answer", finish_reason="length"),
    trace(5, r"\boxed{9}", reference=""),
    *(trace(6, r"\boxed{12}", teacher=f"t{n}", reference="13") for n in range(3)),
    trace(6, r"\boxed{13}", teacher="t3", reference="13", verdict="correct"),
]


def test_the_table_and_the_examples_of_two_gradings() -> None:
    with Verifier(["boxed"]) as verifier:
        first, second = audit.stored_grading(TRACES), audit.fresh_grading(TRACES, verifier)
    assert second.labels[:6] == ["correct", "correct", "incorrect", "no_answer", "no_answer", "bad_reference"]
    assert audit.disagreements(first, second) == [1, 2, 5]  # 5 last: neither calls it correct
    assert second.name == "rules boxed; kind math"
    assert audit.judged_wrong(first) == [1, 3, 4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match=r"trace 'p/9@t#0' bears no verdict.*--rules boxed"):
        audit.stored_grading([trace(9, "?", verdict="")])


def test_other_rules_and_kinds_that_would_accept() -> None:
    traces = [
        *TRACES,
        trace(10, r"\boxed{Yes, it is}", reference="yes"),
        trace(11, "<think>#### 7", verdict="no_answer"),
    ]
    with Verifier(["boxed"]) as base:
        found = audit.other_readings(traces, audit.judged_wrong(audit.stored_grading(traces)), base, 5.0)
    assert found[3] == ["rule hash", "rule last_number"]
    assert found[4] == ["rule last_number"]
    assert found[10] == ["kind yes_no"]
    assert "kind number" in found[1]
    assert not {5, 6, 11} & set(found)
    with Verifier(["boxed"], prompt_opens_think=True) as base:
        assert 3 not in audit.other_readings(traces, [3], base, 5.0)  # without </think> it never answered


@pytest.mark.parametrize(
    ("completion", "reference", "stands"),
    [
        ("so it is 18.", "18", True),
        ("so it is $18$, eggs", "18", True),
        ("so it is 180", "18", False),
        ("so it is 18.5", "18", False),
        ("so it is 1.18", "18", False),
        ("18" + "." * 200, "18", False),
        ("The  new\nYork", "New York", True),
        ("anything", "", False),
    ],
)
def test_a_completion_that_ends_with_the_reference(completion: str, reference: str, stands: bool) -> None:
    assert audit.ends_with_reference(completion, reference) is stands


def test_a_majority_that_was_judged_wrong() -> None:
    grading = audit.stored_grading(TRACES)
    assert audit.wrong_majorities(TRACES, grading) == []  # stored traces bear no answers here
    with Verifier(["boxed"]) as verifier:
        fresh = audit.fresh_grading(TRACES, verifier)
        assert audit.wrong_majorities(TRACES, fresh) == [audit.Majority("p/6", "13", "12", 3, 4)]
        half = [*TRACES, trace(6, r"\boxed{14}", teacher="t4"), trace(6, r"\boxed{15}", teacher="t5")]
        assert audit.wrong_majorities(half, audit.fresh_grading(half, verifier)) == []  # 3 of 6 are not most
        assert audit.wrong_majorities(TRACES[6:8], audit.fresh_grading(TRACES[6:8], verifier)) == []  # 2 are too few


def test_the_verb_over_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "store", TRACES)
    main(["audit", str(tmp_path / "store"), "--limit", "1"])
    out = capsys.readouterr().out
    assert "10 traces, 7 problems" in out
    assert "Disagreements: 3 of 10" in out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if re.match(r"  \w+( +[0-9]+){4}$", line)}
    #                    correct incorrect no_answer bad_reference
    assert table == {
        "correct": ["2", "1", "0", "0"],
        "incorrect": ["1", "3", "0", "1"],
        "no_answer": ["0", "0", "2", "0"],
        "bad_reference": ["0", "0", "0", "0"],
    }
    assert "p/1@t#0" in out and "first       incorrect: no answer; no reason stored" in out
    assert "second      correct: 7.0 (boxed); equal numbers" in out
    assert "and 2 more (--limit)" in out
    assert "rule hash" in out and "kind number" in out
    assert "reference answer cannot be used: 1" in out and "the reference answer '' is empty" in out
    assert "Traces without answer: 2 (by finish reason: stop 1, length 1)" in out
    assert "Timeouts: 0" in out


def test_two_fresh_gradings_over_a_foreign_file_as_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"q": "1 | 2?", "c": "#### 1,000", "g": "1000", "m": "a|b"},
        {"q": "hostile", "c": "4 \x1b[2J\u202e <b>`x`</b> #### `5|\n", "g": "4", "m": "m"},
        {"q": "none", "c": None, "g": "4", "m": "m"},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--columns", "problem=q", "completion=c", "reference_answer=g", "teacher=m"]
    arguments = ["audit", str(path), *columns, "--rules", "hash", "--against-kind", "exact", "--markdown"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "completion" in capsys.readouterr().err
    main([*arguments, "--on-bad-row", "skip"])
    out = capsys.readouterr().out
    assert "1 bad rows were skipped" in out
    assert "first (lines): rules hash; kind math" in out and "second (columns): rules hash; kind exact" in out
    assert "| correct | 0 | 1 |" in out
    assert "`incorrect: 1,000 (hash); different text`" in out
    assert not set(out) & {"\x1b", "\u202e"}
    assert r"\x1b[2J\u202e" in out
    assert "``" in out  # a span that holds backticks has more of them around it


def test_one_grading_alone_and_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    row = {"problem": "?", "completion": r"\boxed{7.3}", "reference_answer": "7"}
    path.write_text(json.dumps(row) + "\n")
    main(["audit", str(path), "--kind", "number", "--tolerance", "0.5", "0"])
    out = capsys.readouterr().out
    assert "Only one grading (rules boxed; kind number)" in out and "perhaps right: 0 to look" in out
    main(["audit", str(path), "--kind", "number", "--against_kind", "math", "--tolerance", "0.5", "0"])
    assert "Disagreements: 1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["STORE", "--columns", "problem"], "--columns 'problem' is not FIELD=COLUMN"),
        (["STORE", "--rules", "boxd"], "Did you mean boxed"),
        (["STORE", "--columns", "problem=q"], "is a trace store. Remove columns"),
    ],
)
def test_what_the_verb_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "store", TRACES)
    with pytest.raises(SystemExit) as ended:
        main(["audit", *(str(tmp_path / "store") if word == "STORE" else word for word in arguments)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_of_a_model_reaches_the_terminal_as_control() -> None:
    text = "".join(map(chr, [*range(0x20), 0x7F, 0x85, 0x9B, 0x200B, 0x2028, 0x202E, 0xFEFF, 0xE0001])) + "é漢"
    assert escaped(text).isprintable() and escaped(text).endswith("é漢")
