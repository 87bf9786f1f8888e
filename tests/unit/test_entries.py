"""An entry of traces or problems: every key is used or refused, and no column that matters is dropped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from w2sr.datamodules.sources import load_problems, load_traces
from w2sr.problems import read_problems
from w2sr.rows import OnBadRow
from w2sr.selection import select
from w2sr.traces import read_foreign, write_store
from w2sr.types import DataFile, RowFormat, Trace
from w2sr.verify import Verifier

ROW: dict[str, Any] = {"problem": "1 + 1?", "completion": r"so \boxed{2}", "reference_answer": "2"}
COLUMNS = {name: name for name in ROW}
MESSAGES = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
TURNS = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]


def write(path: Path, rows: list[dict[str, Any]]) -> DataFile:
    path.write_text("\n".join(map(json.dumps, rows)))
    return DataFile(str(path))


def loaded(file: DataFile, skip: bool = False) -> list[Trace]:
    policy: OnBadRow = "skip" if skip else "error"
    return load_traces([file], on_bad_row=policy, on_bad_reference=policy, timeout_s=5.0)


def test_the_reference_rule_finds_the_answer_in_a_solution(tmp_path: Path) -> None:
    """GSM8K's golds are solutions that end in `#### 2`."""
    rows = [{**ROW, "reference_answer": "1 + 1 = <<1+1=2>>2\n#### 2"}, {**ROW, "problem": "2 + 0?"}]
    file = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=r"reference_rule hash finds no answer in 1 of 2 reference answers, .*: '2'"):
        loaded(replace(file, reference_rule="hash"))
    (trace,) = loaded(replace(file, reference_rule="hash", limit=1))
    assert (trace.reference_answer, trace.verdict) == ("2", "correct")
    assert loaded(replace(file, limit=1))[0].verdict == "incorrect"  # the guard: without the rule it is wrong
    with Verifier() as verifier, pytest.raises(ValueError, match="reference_rule hash finds no answer in 1 of 2"):
        load_problems("sums", replace(file, reference_rule="hash"), verifier, seed=0)


def test_real_gsm8k_solutions_are_golds(shared_data: Path, tmp_path: Path) -> None:
    with gzip.open(shared_data / "problems" / "gsm8k_test.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(50), strict=False)]
    written = [
        {"problem": row["problem"], "completion": rf"\boxed{{{row['answer']}}}", "reference_answer": row["solution"]}
        for row in rows
    ]
    traces = loaded(replace(write(tmp_path / "t.jsonl", written), reference_rule="hash"))
    assert [trace.verdict for trace in traces] == ["correct"] * 50


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "train"}, "has no configurations, .* split is train"),
        ({"config": "main"}, "config is main"),
        ({"choices": True}, "choices: true is for problems"),
    ],
)
def test_a_key_that_a_file_of_traces_has_not_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "t.jsonl", [ROW])
    with pytest.raises(ValueError, match=message):
        loaded(replace(file, **keys))


def test_a_store_refuses_what_is_for_files(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [Trace("p", "s", "1?", "1", "t", "1", verdict="correct")])
    file = DataFile(str(tmp_path / "store"))
    assert len(loaded(file)) == 1
    for keys in ({"reference_rule": "hash"}, {"where": {"source": "s"}}, {"split": "train"}):
        with pytest.raises(ValueError, match=r"is a trace store, .* Remove|lies on this machine"):
            loaded(replace(file, **keys))


def test_where_reads_one_kind_of_a_file_with_several(tmp_path: Path) -> None:
    rows = [
        {**ROW, "task": "sums"},
        {**ROW, "task": "odd", "reference_answer": "yes", "completion": "The answer is yes."},
    ]
    file = write(tmp_path / "t.jsonl", rows)
    (trace,) = loaded(replace(file, where={"task": "odd"}, kind="yes_no", rules=("yes_no",)))
    assert (trace.completion, trace.verdict) == ("The answer is yes.", "correct")
    problems = read_problems(str(file.path), where={"task": ["sums"]}, source="s")
    assert [problem.reference_answer for problem in problems] == ["2"]


def test_unusable_references_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    golds = ["2", "x", "", *(f"word {n}" for n in range(40))]
    rows = [{**ROW, "problem": f"{n}?", "reference_answer": gold} for n, gold in enumerate(golds)]
    with caplog.at_level("INFO"):
        assert len(loaded(replace(write(tmp_path / "t.jsonl", rows), kind="number"), skip=True)) == 1
    said = [line for line in caplog.messages if "is no number" in line]
    assert len(said) == 1 and "(42 of them: problem/" in said[0] and said[0].count("problem/") == 3
    assert "and 39 more)" in said[0]


@pytest.mark.parametrize("missing", [None, float("nan"), "nan", "None", " <NA> "])
@pytest.mark.parametrize("field", ["problem", "completion"])
def test_a_missing_value_is_no_text(tmp_path: Path, field: str, missing: object) -> None:
    file = write(tmp_path / "t.jsonl", [ROW, {**ROW, field: missing}])
    with pytest.raises(ValueError, match=rf"t\.jsonl:2: {field} .*(null or absent|a missing value is written)"):
        loaded(file)
    assert len(loaded(file, skip=True)) == 1
    if field == "problem":
        with pytest.raises(ValueError, match=r"row 2: problem "):
            read_problems([ROW, {**ROW, field: missing}], source="s")


@pytest.mark.parametrize(("gold", "text"), [(True, "true"), (["2", 2.0], "2"), (2.0, "2"), ([["2"]], "2")])
def test_traces_and_problems_read_a_gold_alike(gold: object, text: str) -> None:
    row = {**ROW, "reference_answer": gold}
    assert [trace.reference_answer for trace in read_foreign([row], None)[0]] == [text]
    assert [problem.reference_answer for problem in read_problems([row], source="s")] == [text]
    bad = {**ROW, "reference_answer": ["2", "3"]}
    for read in (lambda: read_foreign([bad], None), lambda: read_problems([bad], source="s")):
        with pytest.raises(ValueError, match=r"row 1: reference_answer .* 2 different answers; one is required"):
            read()


FORMS: list[tuple[RowFormat, dict[str, Any], dict[str, str] | None]] = [
    ("columns", ROW, COLUMNS),
    ("columns", ROW, None),
    ("openai", {"messages": MESSAGES, "gold": "2"}, {"reference_answer": "gold"}),
    ("sharegpt", {"conversations": TURNS, "gold": "2"}, {"reference_answer": "gold"}),
    ("alpaca", {"instruction": "1 + 1?", "output": "2", "gt_answer": "2"}, {}),
]


@pytest.mark.parametrize(("form", "row", "columns"), FORMS)
def test_a_picture_or_a_reasoning_is_not_dropped(
    form: RowFormat, row: dict[str, Any], columns: Mapping[str, str] | None
) -> None:
    cells: list[tuple[str, Any, Any]] = [
        ("images", [], ["a.png"]),
        ("image", {"bytes": None, "path": None}, {"bytes": b"x", "path": None}),
        ("audios", None, [b"x"]),
        ("reasoning_content", "", "1 and 1"),
        ("thinking", " ", "1 and 1"),
    ]
    for name, empty, filled in cells:
        rows = [{**row, name: empty}, {**row, name: filled}]
        with pytest.raises(ValueError, match=f"row 2: column '{name}' is filled"):
            read_foreign(rows, columns, format=form)
        traces, num_skipped = read_foreign(rows, columns, format=form, on_bad_row="skip")
        assert (len(traces), num_skipped) == (1, 1)
    with pytest.raises(ValueError, match="row 1: column 'images' is filled"):
        read_problems([{**ROW, "images": ["a.png"]}], source="s")


@pytest.mark.parametrize(("form", "row", "columns"), [form for form in FORMS if form[2] is not None])
def test_a_reasoning_that_is_mapped_is_thought(
    form: RowFormat, row: dict[str, Any], columns: Mapping[str, str]
) -> None:
    rows = [{**row, "thinking": "\n1 and 1\n"}, {**row, "thinking": None}]
    bare = read_foreign(rows, {**columns, "reasoning": "="}, format=form)[0]
    traces, _ = read_foreign(rows, {**columns, "reasoning": "thinking"}, format=form)
    assert traces[0].completion == f"<think>\n1 and 1\n</think>\n\n{bare[0].completion}"
    assert traces[1].completion == bare[0].completion == bare[1].completion
    twice = [{**ROW, "completion": "<think>x</think>2", "thinking": "1 and 1"}]
    with pytest.raises(ValueError, match="row 1: reasoning is filled, and the completion has <think>"):
        read_foreign(twice, {**COLUMNS, "reasoning": "thinking"})


OPENR1: dict[str, Any] = {
    "problem": "1 + 1?",
    "answer": "2",
    "generations": ["<think>a</think>2", "3", "4"],
    "correctness_math_verify": [True, False, None],
    "finish_reasons": None,
    "uuid": "u1",
}
OPENR1_COLUMNS = {
    "problem": "problem",
    "completion": "generations",
    "reference_answer": "answer",
    "verdict": "correctness_math_verify",
    "finish_reason": "finish_reasons",
    "problem_id": "uuid",
    "teacher": "=r1",
}


def test_a_list_of_generations_is_a_trace_each() -> None:
    rows = [OPENR1, {**OPENR1, "uuid": "u2", "problem": "2?", "finish_reasons": ["stop", "length", None]}]
    traces, num_skipped = read_foreign(rows, OPENR1_COLUMNS)
    assert num_skipped == 0
    assert [t.trace_id for t in traces] == [f"u{row}@r1#{sample}" for row in (1, 2) for sample in range(3)]
    assert [t.completion for t in traces[:3]] == OPENR1["generations"]
    assert [t.verdict for t in traces[:3]] == ["correct", "incorrect", ""]
    assert [t.finish_reason for t in traces] == ["unknown"] * 3 + ["stop", "length", "unknown"]
    assert {t.reference_answer for t in traces} == {"2"}


@pytest.mark.parametrize(
    ("change", "message", "num_traces"),
    [
        ({"generations": ["a", None, "c"]}, "row 1, generation 2: completion .* null", 2 + 3),
        ({"generations": []}, r"row 1: completion \(column 'generations'\) is an empty list", 3),
        ({"finish_reasons": ["stop"]}, "row 1: finish_reason .* has 1 values, and the row has 3 completions", 3),
        ({"answer": ["2", "2", "3"]}, "row 1, generation 1: reference_answer .* different answers", 3),
        ({"correctness_math_verify": [True, 7, True]}, "row 1, generation 2: verdict .*is 7", 2 + 3),
    ],
)
def test_generations_that_do_not_fit_are_bad(change: dict[str, Any], message: str, num_traces: int) -> None:
    rows = [{**OPENR1, **change}, {**OPENR1, "uuid": "u2", "problem": "2?", "answer": ["2", "2", "2"]}]
    with pytest.raises(ValueError, match=message):
        read_foreign(rows, OPENR1_COLUMNS)
    assert len(read_foreign(rows, OPENR1_COLUMNS, on_bad_row="skip")[0]) == num_traces


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"problem": "2 + 2?"}, "both have problem_id 'p'"),
        ({}, "are both trace 'p@t#0'"),
        ({"sample_index": 1, "no_loss_spans": [[0, 99]]}, "must be JSON such as"),
    ],
)
def test_skip_covers_an_id_that_is_there_already(second: dict[str, Any], reason: str) -> None:
    row = {**ROW, "problem_id": "p", "teacher": "t", "sample_index": 0}
    rows = [row, {**row, **second}, {**row, "sample_index": 2, "no_loss_spans": [[0, 2]]}]
    with pytest.raises(ValueError, match=reason):
        read_foreign(rows, None)
    traces, num_skipped = read_foreign(rows, None, on_bad_row="skip")
    assert ([trace.sample_index for trace in traces], num_skipped) == ([0, 2], 1)
    assert traces[1].no_loss_spans == "[[0, 2]]"


def test_an_index_in_some_rows_only_is_refused() -> None:
    rows = [{**ROW, "sample_index": 1}, ROW]
    with pytest.raises(ValueError, match="row 2 has no sample_index, and other rows have one"):
        read_foreign(rows, None)


def test_shards_of_one_teacher_are_told_to_number_their_samples(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{shard}.jsonl", [{**ROW, "n": shard}]) for shard in range(2)]
    policies: dict[str, Any] = {"on_bad_row": "error", "on_bad_reference": "error", "timeout_s": 5.0}
    with pytest.raises(ValueError, match=r"was given twice .* lie in several files, .*: map sample_index"):
        select(load_traces(files, **policies), keep="P", finish="stop_or_unknown")
    columns: dict[str, Any] = {**COLUMNS, "sample_index": "n"}
    numbered = load_traces([replace(file, columns=columns) for file in files], **policies)
    assert len(select(numbered, keep="P", finish="stop_or_unknown", dedupe=False).traces) == 2
