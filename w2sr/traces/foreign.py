"""Traces in files that others wrote: which column is which is said by the user, never guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from w2sr.rows import (
    MEDIA,
    BadRows,
    Data,
    OnBadRow,
    Row,
    Where,
    cell,
    check_fields,
    column_names,
    data_name,
    derived_id,
    parse_spans,
    problem_hash,
    read_rows,
    refuse_media,
)
from w2sr.traces.fields import (
    FIELDS,
    REASONING,
    REASONING_COLUMNS,
    REQUIRED,
    field_value,
    generations,
    refuse_unmapped_reasoning,
    with_reasoning,
)
from w2sr.traces.formats import FORMATS, Format
from w2sr.traces.store import TraceKey, is_store, read_store, trace_key
from w2sr.types import RowFormat, Trace


def read_traces(
    data: Data,
    columns: Mapping[str, str] | None = None,
    *,
    format: RowFormat = "columns",
    source: str | None = None,
    teacher: str | None = None,
    stop_text: Sequence[str] = (),
    where: Where | None = None,
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Trace], int]:
    """Reads traces and says how many rows were skipped: a directory is our own store, anything else is foreign.

    Raises:
        ValueError: a store with `columns` (it has names of its own), or what `read_store` and `read_foreign` raise.
    """
    if isinstance(data, (str, Path)) and Path(data).is_dir():
        if not is_store(data):
            raise ValueError(f"{data} is a directory, but no trace store: no manifest.json and no journal.")
        if columns or source is not None or teacher is not None or stop_text or where or format != "columns":
            raise ValueError(
                f"{data} is a trace store. Remove columns, format, source, teacher, stop_text, where: it knows."
            )
        return read_store(data), 0
    return read_foreign(
        data,
        columns,
        format=format,
        source=source,
        teacher=teacher,
        stop_text=stop_text,
        where=where,
        on_bad_row=on_bad_row,
    )


def read_foreign(
    data: Data,
    columns: Mapping[str, str] | None,
    *,
    format: RowFormat = "columns",
    source: str | None = None,
    teacher: str | None = None,
    stop_text: Sequence[str] = (),
    where: Where | None = None,
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Trace], int]:
    """Reads traces from a file (see `w2sr.rows.SUFFIXES`) or from rows in memory; counts skipped rows.

    Args:
        data: the file, or rows as mappings.
        columns: field of Trace to column of the file, or to `=text`, a literal for every row. `problem`, `completion`
            and `reference_answer` are required. Without `problem_id` the id is made of the source and a hash of the
            problem, which joins the samples of one problem; without `sample_index` the samples of a problem and teacher
            are numbered in file order. Columns of booleans serve as `finish_reason` (true means "stop", false "length")
            and as `verdict` (true means "correct", false "incorrect", also where no answer was given); without
            `verdict` every trace is to be verified. None: the file uses the names of Trace.
            A column of lists of texts as `completion` gives a trace for each text; then other columns may hold lists of
            the same length. `reasoning` is put in front of the completion as `<think>...</think>`.
        format: `columns`, or a form in which problem and completion share a row in another way (see
            `w2sr.traces.formats`); then `columns` maps the other fields, and renames the columns of the form.
        source: short for `columns.source: "=..."`; likewise `teacher`.
        stop_text: texts at which the teacher should have stopped, such as `</s>` left in by a decoder. The completion
            ends before the first of them; then the finish reason is "stop" unless its column says otherwise, and the
            number of tokens is unknown.
        where: a filter of rows (see `w2sr.rows.read_rows`).
        on_bad_row: `error` names file and line; `skip` leaves the row out and counts it. A row is bad if a required
            cell is null or NaN, if a column of `w2sr.rows.MEDIA` is filled, if a reasoning is filled and not mapped, or
            if an earlier row has its problem_id with another problem, or its sample_index. An empty reference answer
            is not bad: whether it can be used is for the verifier to say.

    Raises:
        ValueError: an empty or damaged file, a column that is not there, a bad row.
    """
    if format not in get_args(RowFormat):
        raise ValueError(f"format={format!r} is unknown. Choose one of {', '.join(get_args(RowFormat))}.")
    form = FORMATS.get(format)
    given = {field: f"={text}" for field, text in (("source", source), ("teacher", teacher)) if text is not None}
    specs, optional = _specs(data, columns, given, form)
    bad, known = BadRows(on_bad_row), _Known(specs)
    traces: list[Trace] = []
    asked = dict.fromkeys([*optional, *MEDIA, *REASONING_COLUMNS])
    required = [name for name in column_names(specs.values()) if name not in optional]
    for row in read_rows(data, required, bad, optional=asked, where=where):
        for one in _spread(row, specs, bad):
            try:
                values = _values(one, specs, form)
                trace = _trace(values, stop_text)
                known.add(one.where, trace, values)
            except ValueError as error:
                bad.meet(one.where, error)
            else:
                traces.append(trace)
    bad.report(data_name(data), len(traces))
    return known.numbered(traces), bad.num_skipped


def _specs(
    data: Data, columns: Mapping[str, str] | None, given: Mapping[str, str], form: Format | None
) -> tuple[dict[str, str], list[str]]:
    """Field, or part of a form, to spec; and the columns that may be absent."""
    for field in sorted(given.keys() & (columns or {}).keys()):
        raise ValueError(f"{field} is given twice, as {given[field][1:]!r} and as columns.{field}: remove one of them.")
    if form is None and columns is None:
        optional = [field for field in FIELDS if field not in REQUIRED and field not in given]
        return {field: field for field in FIELDS} | dict(given), optional
    columns = columns or {}
    if form is None:
        check_fields(columns, [*FIELDS, REASONING])
        missing = [field for field in REQUIRED if field not in columns]
        if missing:
            raise ValueError(
                f"{data_name(data)}: columns does not map {', '.join(missing)}. For example columns: {{problem: "
                "question, completion: response, reference_answer: gold, teacher: model}."
            )
        return {**columns, **given}, []
    own = [field for field in (*FIELDS, REASONING) if field not in ("problem", "completion")]
    check_fields(columns, [*form.parts, *own])
    specs = {**{part: part for part in form.parts}, **form.defaults, **columns, **given}
    if "reference_answer" not in specs:
        raise ValueError(
            f"{data_name(data)}: its format does not say which column holds the reference answers. Name it: columns: "
            "{reference_answer: gold}."
        )
    return specs, [specs[part] for part in form.optional if part not in columns]


def _spread(row: Row, specs: Mapping[str, str], bad: BadRows) -> list[Row]:
    """The row once for each of its generations; none where that cannot be told."""
    try:
        return list(generations(row, specs))
    except ValueError as error:
        bad.meet(row.where, error)
        return []


def _values(row: Row, specs: Mapping[str, str], form: Format | None) -> dict[str, Any]:
    """The fields of a trace that its row gives."""
    refuse_media(row, specs.values())
    refuse_unmapped_reasoning(row, specs)
    fields = {field: spec for field, spec in specs.items() if field in FIELDS or field == REASONING}
    values = {field: field_value(row, field, spec) for field, spec in fields.items()}
    if form is not None:
        parts = {part: cell(row, specs[part]) for part in form.parts}
        values["problem"], values["completion"] = form.exchange(parts)
    reasoning = values.pop(REASONING, None)
    if reasoning:
        values["completion"] = with_reasoning(str(reasoning), str(values["completion"]))
    return {field: value for field, value in values.items() if value is not None}


def _trace(values: dict[str, Any], stop_text: Sequence[str]) -> Trace:
    if not values["problem"].strip():
        raise ValueError("the problem is empty")
    cut = min((at for text in stop_text if (at := values["completion"].find(text)) >= 0), default=None)
    if cut is not None:
        values = {"finish_reason": "stop", **values, "completion": values["completion"][:cut], "num_tokens": -1}
    parse_spans(values.get("no_loss_spans", ""), len(values["completion"]))
    values = {"source": "", "teacher": "", **values}
    return Trace(**{"problem_id": derived_id(values["source"], values["problem"]), **values})


class _Known:
    """The ids of problems and traces so far. Each names one problem, or one trace."""

    def __init__(self, specs: Mapping[str, str]) -> None:
        self._id_column = specs.get("problem_id", "")
        self._problems: dict[str, tuple[str, str]] = {}
        self._indexed: dict[TraceKey, str] = {}
        self._first_bare = ""

    def add(self, where: str, trace: Trace, values: Mapping[str, object]) -> None:
        """Takes up a trace, of which the row gave `values`. Raises ValueError where its id names another already."""
        if "problem_id" in values:
            text_hash = problem_hash(trace.problem)
            other, other_hash = self._problems.setdefault(trace.problem_id, (where, text_hash))
            if text_hash != other_hash:
                raise ValueError(
                    f"{other} and {where} both have problem_id {trace.problem_id!r} (column {self._id_column!r}), but "
                    "their problems differ. Map another column, or none: the id is then made of the problem's text"
                )
        if "sample_index" not in values:
            self._first_bare = self._first_bare or where
        elif (other := self._indexed.setdefault(trace_key(trace), where)) != where:
            raise ValueError(
                f"{other} and {where} are both trace {trace.trace_id!r}. Leave sample_index unmapped to number the "
                "samples of a problem and teacher in file order, or map the teacher"
            )

    def numbered(self, traces: list[Trace]) -> list[Trace]:
        """The traces with the sample indices of their rows, or with their numbers in the order of the file."""
        if self._indexed and self._first_bare:
            raise ValueError(
                f"{self._first_bare} has no sample_index, and other rows have one. Fill it in every row, or leave it "
                "unmapped to number the samples of a problem and teacher in file order."
            )
        if self._indexed:
            return traces
        counts: Counter[tuple[str, str]] = Counter()
        numbered = []
        for trace in traces:
            name = trace.problem_id, trace.teacher
            numbered.append(replace(trace, sample_index=counts[name]))
            counts[name] += 1
        return numbered
