"""Traces in files that others wrote: which column is which is said by the user, never guessed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast, get_args

from w2sr.rows import (
    BadRows,
    OnBadRow,
    Row,
    as_float,
    as_int,
    as_text,
    cell,
    check_fields,
    column_names,
    derived_id,
    problem_hash,
    read_rows,
)
from w2sr.traces.store import is_store, read_store, trace_key
from w2sr.types import FinishReason, Trace, VerdictLabel

REQUIRED = ("problem", "completion", "reference_answer")
FIELDS = tuple(f.name for f in fields(Trace))


def read_traces(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    source: str | None = None,
    teacher: str | None = None,
    stop_text: Sequence[str] = (),
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Trace], int]:
    """Reads traces and says how many rows were skipped: a directory is our own store, a file is a foreign one.

    Raises:
        ValueError: a store with `columns` (it has names of its own), or what `read_store` and `read_jsonl` raise.
    """
    path = Path(path)
    if path.is_dir():
        if not is_store(path):
            raise ValueError(f"{path} is a directory, but no trace store: no manifest.json and no journal.")
        if columns or source is not None or teacher is not None or stop_text:
            raise ValueError(f"{path} is a trace store. Remove columns, source, teacher and stop_text: it knows.")
        return read_store(path), 0
    return read_jsonl(path, columns, source=source, teacher=teacher, stop_text=stop_text, on_bad_row=on_bad_row)


def read_jsonl(
    path: str | Path,
    columns: Mapping[str, str] | None,
    *,
    source: str | None = None,
    teacher: str | None = None,
    stop_text: Sequence[str] = (),
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Trace], int]:
    """Reads foreign traces from .jsonl(.gz), .csv or .parquet and says how many rows were skipped.

    Args:
        path: the file.
        columns: field of Trace to column of the file, or to `=text`, a literal for every row. `problem`, `completion`
            and `reference_answer` are required. Without `problem_id` the id is made of the source and a hash of the
            problem, which joins the samples of one problem; without `sample_index` the samples of a problem and teacher
            are numbered in file order. `finish_reason` may be a column of booleans: true means "stop", false "length".
            None: the file uses the names of Trace.
        source: short for `columns.source: "=..."`; likewise `teacher`.
        stop_text: texts at which the teacher should have stopped, such as `</s>` left in by a decoder. The completion
            ends before the first of them; then the finish reason is "stop" unless its column says otherwise, and the
            number of tokens is unknown.
        on_bad_row: `error` names file and line; `skip` leaves the row out and counts it. A null in a required column
            makes a row bad. An empty reference answer does not: whether it can be used is for the verifier to say.

    Raises:
        ValueError: an empty or damaged file, a column that is not there, a bad row, one id for two problems or traces.
    """
    bad = BadRows(on_bad_row)
    rows, specs = _rows(path, columns, bad, source=source, teacher=teacher)
    traces: list[tuple[str, Trace]] = []
    for row in rows:
        try:
            values = {field: _value(row, field, spec) for field, spec in specs.items()}
            values = {field: value for field, value in values.items() if value is not None}
            traces.append((row.where, _trace(values, stop_text)))
        except ValueError as error:
            bad.meet(row.where, error)
    bad.report(str(path), len(traces))
    if "problem_id" in specs:
        _check_problem_ids(traces, specs["problem_id"])
    if "sample_index" in specs:
        _check_sample_indices(traces)
        return [trace for _, trace in traces], bad.num_skipped
    return _numbered([trace for _, trace in traces]), bad.num_skipped


def _rows(
    path: str | Path, columns: Mapping[str, str] | None, bad: BadRows, **literals: str | None
) -> tuple[list[Row], dict[str, str]]:
    """The rows, and field to spec for every field that the file or a literal gives."""
    given = {field: f"={text}" for field, text in literals.items() if text is not None}
    if columns is None:
        optional = [field for field in FIELDS if field not in REQUIRED and field not in given]
        rows = read_rows(path, REQUIRED, bad, optional=optional)
        found = {field for row in rows for field in row.cells}
        return rows, {field: field for field in FIELDS if field in found} | given
    check_fields(columns, FIELDS)
    missing = [field for field in REQUIRED if field not in columns]
    if missing:
        raise ValueError(
            f"{path}: columns does not map {', '.join(missing)}. For example columns: {{problem: question, completion: "
            "response, reference_answer: gold, teacher: model}."
        )
    for field in sorted(given.keys() & columns.keys()):
        raise ValueError(f"{field} is given twice, as {given[field][1:]!r} and as columns.{field}: remove one of them.")
    specs = {**columns, **given}
    return read_rows(path, column_names(specs.values()), bad), specs


def _value(row: Row, field: str, spec: str) -> object:
    value = cell(row, spec)
    try:
        if value is None and field in REQUIRED:
            raise ValueError("is null or absent")
        return None if value is None else _CONVERT.get(field, as_text)(value)
    except ValueError as error:
        raise ValueError(f"{field} (column {spec!r}) {error}") from error


def _trace(values: dict[str, Any], stop_text: Sequence[str]) -> Trace:
    if not values["problem"].strip():
        raise ValueError("the problem is empty")
    cut = min((at for text in stop_text if (at := values["completion"].find(text)) >= 0), default=None)
    if cut is not None:
        values = {"finish_reason": "stop", **values, "completion": values["completion"][:cut], "num_tokens": -1}
    values = {"source": "", "teacher": "", **values}
    return Trace(**{"problem_id": derived_id(values["source"], values["problem"]), **values})


def _finish_reason(value: object) -> FinishReason:
    if isinstance(value, bool):
        return "stop" if value else "length"
    for reason in get_args(FinishReason):
        if value == reason:
            return cast(FinishReason, reason)
    raise ValueError(f"is {value!r}; known are true, false, {', '.join(get_args(FinishReason))}")


def _verdict(value: object) -> str:
    if isinstance(value, str) and value in ("", *get_args(VerdictLabel)):
        return value
    raise ValueError(
        f"is {value!r}, not one of {', '.join(get_args(VerdictLabel))}. Leave verdict unmapped to have it verified"
    )


def _sampling(value: object) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else as_text(value)


_BY_TYPE: dict[str, Callable[[object], object]] = {"int": as_int, "float": as_float}
_CONVERT: dict[str, Callable[[object], object]] = {
    **{f.name: _BY_TYPE.get(str(f.type), as_text) for f in fields(Trace)},
    "finish_reason": _finish_reason,
    "verdict": _verdict,
    "sampling": _sampling,
}


def _check_problem_ids(traces: list[tuple[str, Trace]], column: str) -> None:
    first: dict[str, tuple[str, str]] = {}
    for where, trace in traces:
        text_hash = problem_hash(trace.problem)
        other_where, other_hash = first.setdefault(trace.problem_id, (where, text_hash))
        if text_hash != other_hash:
            raise ValueError(
                f"{other_where} and {where} both have problem_id {trace.problem_id!r} (column {column!r}), but their "
                "problems differ. Map another column, or none: the id is then made of the problem's text."
            )


def _check_sample_indices(traces: list[tuple[str, Trace]]) -> None:
    first: dict[tuple[str, str, int], str] = {}
    for where, trace in traces:
        other = first.setdefault(trace_key(trace), where)
        if other != where:
            raise ValueError(
                f"{other} and {where} are both trace {trace.trace_id!r}. Leave sample_index unmapped to number the "
                "samples of a problem and teacher in file order, or map the teacher."
            )


def _numbered(traces: list[Trace]) -> list[Trace]:
    counts: Counter[tuple[str, str]] = Counter()
    numbered = []
    for trace in traces:
        name = trace.problem_id, trace.teacher
        numbered.append(replace(trace, sample_index=counts[name]))
        counts[name] += 1
    return numbered
