"""Traces in the forms that others use are read as they say, or refused with the row and the reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w2sr.chat import Chat
from w2sr.datamodules.sources import load_problems, load_traces
from w2sr.datamodules.traces import with_token_counts
from w2sr.rows import OnBadRow
from w2sr.selection import Gates
from w2sr.traces import read_foreign, read_traces
from w2sr.types import DataFile, RowFormat, Trace
from w2sr.verify import Verifier

PROBLEM = "Add them.\n3 + 4"
COMPLETION = "3 + 4 = 7, so \\boxed{7}"
ALPACA = {"instruction": "Add them.", "input": "3 + 4", "output": COMPLETION, "is_correct": False, "gt_answer": 7}
USER = {"role": "user", "content": PROBLEM}
ASSISTANT = {"role": "assistant", "content": COMPLETION}
GOLD = {"reference_answer": "gold"}


def turns(*said: tuple[str, object]) -> list[dict[str, object]]:
    return [{"from": role, "value": text} for role, text in said]


def read(rows: list[dict[str, Any]], columns: Mapping[str, str] | None, form: RowFormat) -> list[Trace]:
    return read_foreign(rows, columns, format=form)[0]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_alpaca_needs_no_columns(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        {**ALPACA, "history": [], "system": "Be brief."},
        {"instruction": PROBLEM, "output": "six", "gt_answer": "7"},
        {**ALPACA, "input": None},
    ]
    text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text)
    traces, num_skipped = read_traces(tmp_path / name, format="alpaca", teacher="weak-3", source="sums")
    assert num_skipped == 0
    assert [(t.problem, t.completion, t.reference_answer) for t in traces] == [
        (PROBLEM, COMPLETION, "7"),
        (PROBLEM, "six", "7"),
        ("Add them.", COMPLETION, "7"),
    ]
    assert [t.sample_index for t in traces] == [0, 1, 0]
    assert {(t.teacher, t.source, t.verdict) for t in traces} == {("weak-3", "sums", "")}


def test_is_correct_becomes_the_verdict_only_where_it_is_asked_for() -> None:
    rows = [ALPACA, {**ALPACA, "is_correct": True}]
    assert [t.verdict for t in read(rows, None, "alpaca")] == ["", ""]
    assert [t.verdict for t in read(rows, {"verdict": "is_correct"}, "alpaca")] == ["incorrect", "correct"]
    spelled = [{**ALPACA, "is_correct": "False", "done": "TRUE"}, {**ALPACA, "is_correct": "true", "done": "false"}]
    traces = read(spelled, {"verdict": "is_correct", "finish_reason": "done"}, "alpaca")
    assert [(t.verdict, t.finish_reason) for t in traces] == [("incorrect", "stop"), ("correct", "length")]


def test_a_form_renames_its_columns_and_maps_other_fields() -> None:
    row = {"prompt": "Add them.", "response": "7", "gold": "7", "who": "w", "why": "stop"}
    columns = {
        "instruction": "prompt",
        "output": "response",
        "reference_answer": "gold",
        "teacher": "who",
        "finish_reason": "why",
    }
    (trace,) = read([row], columns, "alpaca")
    assert (trace.problem, trace.completion, trace.teacher, trace.finish_reason) == ("Add them.", "7", "w", "stop")
    (trace,) = read([{"chat": [USER, ASSISTANT], "gold": 7}], {**GOLD, "messages": "chat"}, "openai")
    assert trace.problem == PROBLEM


@pytest.mark.parametrize("names", [("human", "gpt"), ("user", "assistant")])
def test_sharegpt_is_one_exchange_without_its_system_turn(names: tuple[str, str]) -> None:
    rows = [
        {"conversations": turns(("system", "Be brief."), (names[0], PROBLEM), (names[1], COMPLETION)), "gold": "7"},
        {"conversations": turns((names[0], PROBLEM), (names[1], "eight")), "gold": "7"},
    ]
    assert [(t.problem, t.completion) for t in read(rows, GOLD, "sharegpt")] == [
        (PROBLEM, COMPLETION),
        (PROBLEM, "eight"),
    ]


def test_openai_messages_may_be_lists_of_text_parts() -> None:
    parts = [{"type": "text", "text": "Add them.\n"}, {"type": "text", "text": "3 + 4"}]
    system = {"role": "developer", "content": "Be brief."}
    row = {"messages": [system, {"role": "user", "content": parts}, {**ASSISTANT, "tool_calls": None}], "gold": 7}
    (trace,) = read([row], GOLD, "openai")
    assert (trace.problem, trace.completion) == (PROBLEM, COMPLETION)


BAD: list[tuple[RowFormat, dict[str, Any], str]] = [
    ("openai", {"messages": [USER, ASSISTANT, USER, ASSISTANT]}, "turns user, assistant, user, assistant; .*one exch"),
    ("openai", {"messages": [USER]}, "the turns user; a trace is one exchange"),
    ("openai", {"messages": [{"role": "system", "content": "x"}]}, "the turns none"),
    ("openai", {"messages": [ASSISTANT, USER]}, "the turns assistant, user"),
    (
        "openai",
        {"messages": [USER, {**ASSISTANT, "reasoning_content": "3 and 4"}]},
        "turn 2 .* reasoning_content besid",
    ),
    ("openai", {"messages": [USER, {**ASSISTANT, "tool_calls": [1]}]}, "turn 2 of messages has tool_calls"),
    ("openai", {"messages": [USER, {"role": "tool", "content": "7"}]}, "turn 2 of messages is by 'tool'; known are"),
    ("openai", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "which is not text"),
    ("openai", {"messages": [USER, {"role": "assistant", "content": None}]}, "turn 2 of messages is None, not text"),
    ("openai", {"messages": json.dumps([USER, ASSISTANT])}, "not a list of {role, content}"),
    ("openai", {"messages": None}, "messages is None, not a list"),
    ("openai", {"messages": turns(("human", "1?"), ("gpt", "2"))}, "turn 1 of messages is .*, not {role, content}"),
    ("sharegpt", {"conversations": [USER, ASSISTANT]}, "turn 1 of conversations is .*, not {from, value}"),
    ("sharegpt", {"conversations": turns(("human", " "), ("gpt", "2"))}, "the problem is empty"),
    ("alpaca", {**ALPACA, "history": [["1?", "2"]]}, "history holds earlier turns"),
    ("alpaca", {**ALPACA, "output": None}, "output is null or absent"),
    ("alpaca", {**ALPACA, "gt_answer": None}, "reference_answer .* is null or absent"),
]


@pytest.mark.parametrize(("form", "row", "reason"), BAD)
def test_a_row_that_is_no_single_exchange_is_named_or_skipped(
    form: RowFormat, row: dict[str, Any], reason: str
) -> None:
    good: dict[str, dict[str, Any]] = {
        "openai": {"messages": [USER, ASSISTANT]},
        "sharegpt": {"conversations": turns(("human", PROBLEM), ("gpt", "7"))},
        "alpaca": ALPACA,
    }
    rows = [{"gold": 7, **part} for part in (good[form], row, good[form])]
    columns = {} if form == "alpaca" else GOLD
    with pytest.raises(ValueError, match=f"row 2: .*{reason}"):
        read_foreign(rows, columns, format=form)
    traces, num_skipped = read_foreign(rows, columns, format=form, on_bad_row="skip")
    assert (len(traces), num_skipped) == (2, 1)


def test_a_form_that_does_not_fit_the_file_says_so(tmp_path: Path) -> None:
    rows = [{"messages": [USER, ASSISTANT], "gold": 7}]
    for columns, form, message in (
        (None, "openai", "which column holds the reference answers. Name it: columns: {reference_answer: gold}"),
        (GOLD, "sharegpt", "no column 'conversations'.* Its columns: messages, gold"),
        ({**GOLD, "completion": "x"}, "openai", "columns.completion is not a field"),
        ({**GOLD, "message": "x"}, "openai", "columns.message is not a field. Did you mean 'messages'"),
        (None, "alpaca", "no column 'instruction'"),
        (GOLD, "chatml", "format='chatml' is unknown. Choose one of columns, alpaca, sharegpt, openai"),
    ):
        with pytest.raises(ValueError, match=message):
            read_foreign(rows, columns, format=form)  # type: ignore[arg-type]
    for text, message in (
        ('{"a": 1}', "holds one object with the keys a, not a list of objects"),
        ('[{"a"', "is not one JSON documen"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_foreign(tmp_path / "x.json", None, format="alpaca")
    (tmp_path / "y.json").write_text('[{"a": 1}, 5]')
    with pytest.raises(ValueError, match=r"y\.json:item 2: holds 5, not a JSON object"):
        read_foreign(tmp_path / "y.json", None, format="alpaca")


def judged(file: DataFile, on_bad_row: OnBadRow = "error") -> list[Trace]:
    return load_traces([file], on_bad_row=on_bad_row, on_bad_reference="error", timeout_s=5.0)


def plain_rows() -> list[dict[str, Any]]:
    return [
        {"q": f"{n} + 4?", "a": f"\\boxed{{{n + 4}}}</s>x" if n % 3 else "no", "gold": str(n + 4)} for n in range(9)
    ]


def test_every_container_gives_the_same_traces(tmp_path: Path) -> None:
    """JSON, CSV, Parquet and what `datasets` saves: alike with mapped columns, and judged alike."""
    datasets = pytest.importorskip("datasets")
    rows = plain_rows()
    (tmp_path / "t.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "dev": whole.select([0])}).save_to_disk(str(tmp_path / "splits"))
    columns: dict[str, str | list[str]] = {"problem": "q", "completion": "a", "reference_answer": "gold"}
    file = DataFile("", columns, stop_text=("</s>",))
    expected = judged(replace(file, path=str(tmp_path / "t.json")))
    assert [t.verdict for t in expected] == ["no_answer", "correct", "correct"] * 3
    assert [t.finish_reason for t in expected] == ["unknown", "stop", "stop"] * 3
    assert expected[1].completion == "\\boxed{5}"
    for name in ("t.csv", "t.parquet", "one"):
        assert judged(replace(file, path=str(tmp_path / name))) == expected, name
        with pytest.raises(ValueError, match=r"split is '?train'?\. Remove"):
            judged(replace(file, path=str(tmp_path / name), split="train"))
    assert judged(replace(file, path=str(tmp_path / "splits"), split="train")) == expected
    assert len(judged(replace(file, path=str(tmp_path / "splits"), split="dev"))) == 1
    with pytest.raises(ValueError, match=r"has no split 'test'; it has train, dev\. Set split"):
        judged(replace(file, path=str(tmp_path / "splits"), split="test"))
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="neither a trace store nor a data set of `save_to_disk`"):
        judged(replace(file, path=str(tmp_path / "other")))


def test_saved_messages_come_back_as_messages(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"messages": [USER, ASSISTANT], "gold": "7"},
        {"messages": [USER, {**ASSISTANT, "content": "x"}], "gold": "7"},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "chat"))
    traces = judged(DataFile(str(tmp_path / "chat"), GOLD, format="openai"))
    assert [(t.problem, t.verdict) for t in traces] == [(PROBLEM, "correct"), (PROBLEM, "no_answer")]


def test_a_hub_name_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[object, ...]] = []

    def load_dataset(path: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((path, config, split))
        return [ALPACA]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (trace,) = judged(DataFile("someone/traces", split="train[:7]", config="hard", format="alpaca"))
    assert asked == [("someone/traces", "hard", "train[:7]")]
    assert (trace.problem, trace.verdict) == (PROBLEM, "correct")
    with pytest.raises(ValueError, match=r"there is no data file 'someone/traces.json'"):
        judged(DataFile("someone/traces.json"))


def test_problems_are_read_from_saved_data_sets_and_refuse_what_is_for_traces(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"q": "3 + 4?", "a": "7"}]).save_to_disk(str(tmp_path / "quiz"))
    file = DataFile(str(tmp_path / "quiz"), {"problem": "q", "reference_answer": "a"})
    with Verifier() as verifier:
        (problem,) = load_problems("quiz", file, verifier, seed=0)
        assert (problem.problem, problem.reference_answer, problem.source) == ("3 + 4?", "7", "quiz")
        for wrong in (replace(file, stop_text=("</s>",)), replace(file, format="alpaca")):
            with pytest.raises(ValueError, match="format and stop_text are for traces"):
                load_problems("quiz", wrong, verifier, seed=0)


@pytest.mark.parametrize(
    ("gates", "need"),
    [
        (Gates(), False),
        (Gates(min_tokens=0), True),
        (Gates(max_tokens=9), True),
        (Gates(num_tokens=9), True),
        (Gates(choose="longest"), False),
        (Gates(choose="shortest", max_per_problem=3), True),
        (Gates(choose="random", max_per_problem=3, num_traces=5), False),
    ],
)
def test_gates_say_whether_they_need_token_counts(gates: Gates, need: bool) -> None:
    assert gates.need_tokens is need


def test_unknown_token_counts_are_the_loss_tokens_of_the_students_segments() -> None:
    chat = Chat.load("w2sr/miniature/student")
    text = "Step by step: Mia has 23. So Mia has \\boxed{23}."
    bare = Trace("p/0", "toy", "How many apples does Mia have?", "23", "t", text)
    traces = [
        replace(bare, finish_reason="stop"),
        replace(bare, finish_reason="length"),
        bare,
        replace(bare, num_tokens=5),
        replace(bare, completion=""),
    ]
    counted = [trace.num_tokens for trace in with_token_counts(traces, chat)]
    expected = [segment.num_loss_tokens for segment in chat.segments(traces)]
    assert counted == [expected[0], expected[0] - 1, expected[0], 5, 1]
    assert expected[1] == expected[0] - 1 > 10
