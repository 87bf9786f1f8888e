"""Foreign traces are read as their columns are mapped, or refused with the place and the reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Literal

import pytest

from w2sr.traces import read_foreign, read_traces, write_store
from w2sr.types import Trace

POLICIES: tuple[Literal["error", "skip"], ...] = ("error", "skip")
OURS = Trace("toy/1", "toy", "What is 1 + 1?", "2", "weak-7", "1 + 1 = 2")
COLUMNS = {"problem": "question", "completion": "response", "reference_answer": "gold", "teacher": "model"}
ROW = {"question": "1 + 1?", "response": "2", "gold": 2, "model": "m1", "done": True, "n": 5}


def write_lines(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["traces.jsonl", "traces.jsonl.gz"])
def test_mapped_columns_are_read(tmp_path: Path, name: str) -> None:
    rows = [ROW, {**ROW, "response": "two\u2028lines", "done": False}, {**ROW, "model": "m2", "n": None}]
    columns = {**COLUMNS, "finish_reason": "done", "num_tokens": "n", "source": "=toy", "seed": "=3"}
    traces, num_skipped = read_traces(write_lines(tmp_path / name, *rows), columns)
    assert num_skipped == 0
    assert [(t.teacher, t.sample_index, t.finish_reason, t.num_tokens) for t in traces] == [
        ("m1", 0, "stop", 5),
        ("m1", 1, "length", 5),
        ("m2", 0, "stop", -1),
    ]
    assert traces[1].completion == "two\u2028lines"
    assert {(t.reference_answer, t.source, t.seed, t.verdict, t.answer) for t in traces} == {("2", "toy", 3, "", None)}
    assert len({t.problem_id for t in traces}) == 1
    assert traces[0].problem_id.startswith("toy/")


def test_a_file_with_our_field_names_needs_no_columns(tmp_path: Path) -> None:
    rows = [{"problem": "p?", "completion": "c", "reference_answer": "1", "sample_index": 4, "other": 0}]
    traces, _ = read_traces(write_lines(tmp_path / "ours.jsonl", *rows), source="toy", teacher="t")
    assert [(t.sample_index, t.source, t.teacher) for t in traces] == [(4, "toy", "t")]
    with pytest.raises(ValueError, match=r"no column 'problem'\..* Its columns: question, response, gold"):
        read_traces(write_lines(tmp_path / "theirs.jsonl", ROW))


def test_wrong_mappings_are_refused_with_a_hint(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "t.jsonl", ROW)
    for columns, message in (
        (
            {**COLUMNS, "completion": "respones"},
            r"no column 'respones'\. Did you mean 'response'\? Its columns: question",
        ),
        ({**COLUMNS, "completon": "response"}, r"columns.completon is not a field\. Did you mean 'completion'"),
        ({"problem": "question", "completion": "response"}, "does not map reference_answer"),
        ({**COLUMNS, "verdict": "n"}, "t.jsonl:1: verdict .*'n'.*is 5, not true, false or .*Leave verdict unmapped"),
        (
            {**COLUMNS, "sample_index": "response", "problem": "model", "num_tokens": "model"},
            "'m1', not a whole number",
        ),
    ):
        for policy in POLICIES:
            with pytest.raises(ValueError, match=message):
                read_foreign(file, columns, on_bad_row=policy)
    with pytest.raises(ValueError, match="teacher is given twice"):
        read_foreign(file, COLUMNS, teacher="x")
    with pytest.raises(ValueError, match="suffix"):
        read_foreign(write_lines(tmp_path / "t.txt", ROW), COLUMNS)
    write_store(tmp_path / "store", [OURS])
    with pytest.raises(ValueError, match="is a trace store"):
        read_traces(tmp_path / "store", COLUMNS)
    assert read_traces(tmp_path / "store") == ([OURS], 0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"question": "1', "not a JSON line"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"question": "\xff"}', "not a JSON line"),
        (b"[" * 100_000, "not a JSON line"),
        ({**ROW, "gold": None}, "reference_answer .*null or absent"),
        ({key: value for key, value in ROW.items() if key != "response"}, "completion .*null or absent"),
        ({**ROW, "question": " "}, "the problem is empty"),
        ({**ROW, "gold": {"value": 2}}, "reference_answer .*is {'value': 2}, not text"),
        (b'{"question": "?", "response": "half \\ud83d", "gold": "1"}', "half of a surrogate pair"),
        ({**ROW, "done": "abort"}, "finish_reason .*'abort'"),
        ({**ROW, "n": 5.5}, "num_tokens .*5.5, not a whole number"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, bad: object, reason: str) -> None:
    file = write_lines(tmp_path / "t.jsonl", ROW, b"", bad, ROW)
    columns = {**COLUMNS, "finish_reason": "done", "num_tokens": "n"}
    with pytest.raises(ValueError, match=f"t.jsonl:3: .*{reason}"):
        read_foreign(file, columns)
    traces, num_skipped = read_foreign(file, columns, on_bad_row="skip")
    assert (len(traces), num_skipped) == (2, 1)
    assert [trace.sample_index for trace in traces] == [0, 1]


def test_a_file_of_bad_rows_alone_is_an_error(tmp_path: Path) -> None:
    for rows in ([{**ROW, "gold": None}] * 2, [b"{"]):
        with pytest.raises(ValueError, match=r"holds no usable row: [12] were skipped, the first: .*t.jsonl:1: "):
            read_foreign(write_lines(tmp_path / "t.jsonl", *rows), COLUMNS, on_bad_row="skip")


def test_empty_and_damaged_files_are_errors_under_every_policy(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    whole = write_lines(tmp_path / "t.jsonl.gz", *[{**ROW, "n": number} for number in range(300)]).read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.jsonl.gz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or cut off"):
            read_foreign(tmp_path / "cut.jsonl.gz", COLUMNS, on_bad_row="skip")
    with pytest.raises(ValueError, match="is empty"):
        read_foreign(tmp_path / "empty.jsonl", COLUMNS, on_bad_row="skip")
    with pytest.raises(ValueError, match="does not exist"):
        read_foreign(tmp_path / "absent.jsonl", COLUMNS)


def test_one_id_must_not_name_two_problems_or_two_traces(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "t.jsonl", {**ROW, "id": 0}, {**ROW, "id": 0, "question": "3 + 4?"})
    with pytest.raises(ValueError, match=r"t.jsonl:1 and .*t.jsonl:2 both have problem_id '0'"):
        read_foreign(file, {**COLUMNS, "problem_id": "id"})
    same = write_lines(tmp_path / "s.jsonl", {**ROW, "k": 1}, {**ROW, "k": 1})
    with pytest.raises(ValueError, match=r"s.jsonl:1 and .*s.jsonl:2 are both trace .*@m1#1'"):
        read_foreign(same, {**COLUMNS, "sample_index": "k"})


def test_stop_text_ends_the_completion(tmp_path: Path) -> None:
    rows = [{**ROW, "response": "2</s></s>"}, {**ROW, "response": "2 <|end|> x </s>"}, ROW]
    columns = {**COLUMNS, "num_tokens": "n"}
    traces, _ = read_foreign(write_lines(tmp_path / "t.jsonl", *rows), columns, stop_text=["</s>", "<|end|>"])
    assert [(t.completion, t.finish_reason, t.num_tokens) for t in traces] == [
        ("2", "stop", -1),
        ("2 ", "stop", -1),
        ("2", "unknown", 5),
    ]
    mapped, _ = read_foreign(
        write_lines(tmp_path / "m.jsonl", {**rows[0], "done": False}),
        {**COLUMNS, "finish_reason": "done"},
        stop_text=["</s>"],
    )
    assert mapped[0].finish_reason == "length"


def test_real_traces(shared_data: Path) -> None:
    columns = {
        "problem": "problem",
        "completion": "response",
        "reference_answer": "gold",
        "teacher": "model",
        "num_tokens": "n_tokens_qwen",
    }
    folder = shared_data / "traces"
    gsm8k, _ = read_traces(
        folder / "zeroeval_gsm8k_weak_to_strong.jsonl.gz", {**columns, "problem_id": "id"}, stop_text=["</s>"]
    )
    assert (len(gsm8k), len({t.problem_id for t in gsm8k}), len({t.teacher for t in gsm8k})) == (9233, 1319, 7)
    assert {t.teacher for t in gsm8k if t.finish_reason == "stop"} == {"Mistral-Nemo-Instruct-2407"}
    samples, _ = read_traces(folder / "qwen25math_example_math100.jsonl.gz", columns, source="math")
    assert sorted({t.sample_index for t in samples}) == list(range(8))
    assert len({t.problem_id for t in samples}) == 100
    r1, _ = read_traces(folder / "r1_distill_longcot_with_token_ids.jsonl.gz", {**columns, "finish_reason": "finished"})
    assert [sum(t.finish_reason == reason for t in r1) for reason in ("stop", "length")] == [60, 52]
    with pytest.raises(ValueError, match=r"solutions.jsonl.gz:1 and .*:5 both have problem_id 'gsm8k'"):
        read_traces(folder / "openai_gsm8k_example_model_solutions.jsonl.gz", {**columns, "problem_id": "dataset"})
