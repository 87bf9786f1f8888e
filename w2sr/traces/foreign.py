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
    data_name,
    derived_id,
    problem_hash,
    read_rows,
)
from w2sr.traces.formats import FORMATS, Format
from w2sr.traces.store import is_store, read_store, trace_key
from w2sr.types import FinishReason, RowFormat, Trace, VerdictLabel

Data = str | Path | Sequence[Mapping[str, object]]
REQUIRED = ("problem", "completion", "reference_answer")
FIELDS = tuple(f.name for f in fields(Trace))


def read_traces(
    data: Data,
    columns: Mapping[str, str] | None = None,
    *,
    format: RowFormat = "columns",
    source: str | None = None,
    teacher: str | None = None,
    stop_text: Sequence[str] = (),
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Trace], int]:
    """Reads traces and says how many rows were skipped: a directory is our own store, anything else is foreign.

    Raises:
        ValueError: a store with `columns` (it has names of its own), or what `read_store` and `read_foreign` raise.
    """
    if isinstance(data, (str, Path)) and Path(data).is_dir():
        if not is_store(data):
            raise ValueError(f"{data} is a directory, but no trace store: no manifest.json and no journal.")
        if columns or source is not None or teacher is not None or stop_text or format != "columns":
            raise ValueError(f"{data} is a trace store. Remove columns, format, source, teacher, stop_text: it knows.")
        return read_store(data), 0
    return read_foreign(
        data, columns, format=format, source=source, teacher=teacher, stop_text=stop_text, on_bad_row=on_bad_row
    )


def read_foreign(
    data: Data,
    columns: Mapping[str, str] | None,
    *,
    format: RowFormat = "columns",
    source: str | None = None,
    teacher: str | None = None,
    stop_text: Sequence[str] = (),
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Trace], int]:
    """Reads traces from a .jsonl(.gz), .json, .csv or .parquet file, or from rows in memory; counts skipped rows.

    Args:
        data: the file, or rows as mappings.
        columns: field of Trace to column of the file, or to `=text`, a literal for every row. `problem`, `completion`
            and `reference_answer` are required. Without `problem_id` the id is made of the source and a hash of the
            problem, which joins the samples of one problem; without `sample_index` the samples of a problem and teacher
            are numbered in file order. Columns of booleans serve as `finish_reason` (true means "stop", false "length")
            and as `verdict` (true means "correct", false "incorrect", also where no answer was given); without
            `verdict` every trace is to be verified. None: the file uses the names of Trace.
        format: `columns`, or a form in which problem and completion share a row in another way (see
            `w2sr.traces.formats`); then `columns` maps the other fields, and renames the columns of the form.
        source: short for `columns.source: "=..."`; likewise `teacher`.
        stop_text: texts at which the teacher should have stopped, such as `</s>` left in by a decoder. The completion
            ends before the first of them; then the finish reason is "stop" unless its column says otherwise, and the
            number of tokens is unknown.
        on_bad_row: `error` names file and line; `skip` leaves the row out and counts it. A null in a required column
            makes a row bad. An empty reference answer does not: whether it can be used is for the verifier to say.

    Raises:
        ValueError: an empty or damaged file, a column that is not there, a bad row, one id for two problems or traces.
    """
    if format not in get_args(RowFormat):
        raise ValueError(f"format={format!r} is unknown. Choose one of {', '.join(get_args(RowFormat))}.")
    form = FORMATS.get(format)
    given = {field: f"={text}" for field, text in (("source", source), ("teacher", teacher)) if text is not None}
    bad = BadRows(on_bad_row)
    rows, specs = (
        _rows(data, columns, bad, given) if form is None else _form_rows(data, columns or {}, bad, given, form)
    )
    traces: list[tuple[str, Trace]] = []
    for row in rows:
        try:
            traces.append((row.where, _trace(_values(row, specs, form), stop_text)))
        except ValueError as error:
            bad.meet(row.where, error)
    bad.report(data_name(data), len(traces))
    if "problem_id" in specs:
        _check_problem_ids(traces, specs["problem_id"])
    if "sample_index" in specs:
        _check_sample_indices(traces)
        return [trace for _, trace in traces], bad.num_skipped
    return _numbered([trace for _, trace in traces]), bad.num_skipped


def _rows(
    data: Data, columns: Mapping[str, str] | None, bad: BadRows, given: dict[str, str]
) -> tuple[list[Row], dict[str, str]]:
    """The rows, and field to spec for every field that the file or a literal gives."""
    if columns is None:
        optional = [field for field in FIELDS if field not in REQUIRED and field not in given]
        rows = read_rows(data, REQUIRED, bad, optional=optional)
        found = {field for row in rows for field in row.cells}
        return rows, {field: field for field in FIELDS if field in found} | given
    check_fields(columns, FIELDS)
    missing = [field for field in REQUIRED if field not in columns]
    if missing:
        raise ValueError(
            f"{data_name(data)}: columns does not map {', '.join(missing)}. For example columns: {{problem: question, "
            "completion: response, reference_answer: gold, teacher: model}."
        )
    specs = _joined(columns, given)
    return read_rows(data, column_names(specs.values()), bad), specs


def _form_rows(
    data: Data, columns: Mapping[str, str], bad: BadRows, given: dict[str, str], form: Format
) -> tuple[list[Row], dict[str, str]]:
    """Likewise for a form: the specs of its parts stand beside those of the fields."""
    check_fields(columns, [*form.parts, *(field for field in FIELDS if field not in ("problem", "completion"))])
    specs = {**{part: part for part in form.parts}, **form.defaults, **_joined(columns, given)}
    if "reference_answer" not in specs:
        raise ValueError(
            f"{data_name(data)}: its format does not say which column holds the reference answers. Name it: columns: "
            "{reference_answer: gold}."
        )
    optional = [specs[part] for part in form.optional if part not in columns]
    required = [name for name in column_names(specs.values()) if name not in optional]
    return read_rows(data, required, bad, optional=optional), specs


def _joined(columns: Mapping[str, str], given: dict[str, str]) -> dict[str, str]:
    for field in sorted(given.keys() & columns.keys()):
        raise ValueError(f"{field} is given twice, as {given[field][1:]!r} and as columns.{field}: remove one of them.")
    return {**columns, **given}


def _values(row: Row, specs: dict[str, str], form: Format | None) -> dict[str, Any]:
    """The fields of a trace that its row gives."""
    exchanged: dict[str, Any] = {}
    if form is not None:
        problem, completion = form.exchange({part: cell(row, specs[part]) for part in form.parts})
        exchanged = {"problem": problem, "completion": completion}
    values = {field: _value(row, field, spec) for field, spec in specs.items() if field in FIELDS}
    return exchanged | {field: value for field, value in values.items() if value is not None}


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


def _truth(value: object) -> bool | None:
    """The truth value of a cell, where it is one: JSON's and Parquet's booleans, and how CSV spells them."""
    return {"true": True, "false": False}.get(str(value).lower()) if isinstance(value, (bool, str)) else None


def _finish_reason(value: object) -> FinishReason:
    if (truth := _truth(value)) is not None:
        return "stop" if truth else "length"
    for reason in get_args(FinishReason):
        if value == reason:
            return cast(FinishReason, reason)
    raise ValueError(f"is {value!r}; known are true, false, {', '.join(get_args(FinishReason))}")


def _verdict(value: object) -> str:
    if (truth := _truth(value)) is not None:
        return "correct" if truth else "incorrect"
    if isinstance(value, str) and value in ("", *get_args(VerdictLabel)):
        return value
    raise ValueError(
        f"is {value!r}, not true, false or one of {', '.join(get_args(VerdictLabel))}. Leave verdict unmapped to have "
        "it verified"
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
