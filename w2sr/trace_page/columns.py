"""Traces as the columns that the page embeds: plain values, repeated ones stored once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from w2sr.selection import is_looping
from w2sr.trace_page.highlight import highlight_answer
from w2sr.trace_summary import length_of, length_unit, verdict_name
from w2sr.types import Trace

SHOWN_FIELDS = (
    "problem_id",
    "source",
    "problem",
    "reference_answer",
    "teacher",
    "completion",
    "finish_reason",
    "sample_index",
    "num_tokens",
    "answer",
    "answer_rule",
    "verdict",
    "verdict_reason",
    "grader",
    "grader_version",
    "sampling",
    "seed",
    "template_hash",
    "engine",
    "seconds",
)
"""The fields of a trace that have a place on the page. Every other field is listed by its name."""

MAX_EXACT_INT = 2**53
"""Above this a browser's numbers are not exact: such an integer is shown as text."""


def page_columns(traces: Sequence[Trace]) -> dict[str, Any]:
    """Name → {"values": one a trace}; or {"of": distinct values, "at": one index a trace} where that is shorter."""
    unit = length_unit(traces)
    columns: dict[str, list[Any]] = {name: [_plain(getattr(t, name)) for t in traces] for name in SHOWN_FIELDS}
    columns["verdict"] = [verdict_name(trace) for trace in traces]
    columns["trace_id"] = [trace.trace_id for trace in traces]
    columns["length"] = [length_of(trace, unit) for trace in traces]
    columns["looping"] = [is_looping(trace.completion) for trace in traces]
    columns |= _marks(traces)
    return {name: _encoded(values) for name, values in columns.items()}


def extra_columns(traces: Sequence[Trace]) -> dict[str, Any]:
    """The fields that have no place of their own, likewise; numbers in an object get a column each, `scores.length`."""
    columns: dict[str, list[Any]] = {}
    for at, trace in enumerate(traces):
        for field in fields(trace):
            if field.name not in SHOWN_FIELDS:
                for name, value in _parts(field.name, getattr(trace, field.name)).items():
                    columns.setdefault(name, [None] * len(traces))[at] = value
    kept = {name: values for name, values in columns.items() if any(value not in (None, "") for value in values)}
    return {name: _encoded(values) for name, values in kept.items()}


def score_columns(traces: Sequence[Trace], scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Scores that lie beside the traces, `scores.structure`, likewise. Rounded to what a person reads."""
    columns = {}
    for name, values in scores.items():
        found = [values.get(trace.trace_id, math.nan) for trace in traces]
        columns[f"scores.{name}"] = _encoded([None if math.isnan(value) else round(value, 4) for value in found])
    return columns


def numeric_columns(extras: Mapping[str, Any]) -> list[str]:
    """Which of the extra columns hold numbers only: what one can filter and sort by."""
    return [name for name, column in extras.items() if all(map(_is_number, column.get("of", column.get("values"))))]


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _parts(name: str, value: object) -> dict[str, Any]:
    """One value, or one for each entry of an object of numbers (also of its JSON text)."""
    entries = value
    if isinstance(value, str) and value.startswith("{"):
        try:
            entries = json.loads(value)
        except (ValueError, RecursionError):
            entries = value  # some text that begins with a brace, or a hostile one
    if isinstance(entries, Mapping) and entries and all(map(_is_number, entries.values())):
        return {f"{name}.{key}": _plain(entry) for key, entry in entries.items()}
    return {name: _plain(value)}


def _marks(traces: Sequence[Trace]) -> dict[str, list[Any]]:
    """Where the answer stands, counted as browsers count; the answer found where it is not the one stored; a note."""
    marks: dict[str, list[Any]] = {"mark": [], "mark_answer": [], "mark_note": []}
    for trace in traces:
        if trace.answer is None and not trace.answer_rule:
            span, answer, note = None, None, ""
        else:
            span, answer, note = highlight_answer(trace.completion, trace.answer_rule)
        marks["mark"].append(None if span is None else tuple(_utf16(trace.completion, at) for at in span))
        marks["mark_answer"].append(None if answer == trace.answer else answer)
        marks["mark_note"].append(note)
    return marks


def _utf16(text: str, at: int) -> int:
    """The index of a code point in JavaScript's string of the text."""
    return at if text.isascii() else len(text[:at].encode("utf-16-le", "surrogatepass")) // 2


def _plain(value: object) -> Any:
    """A value that JSON and a browser hold exactly: text, a number, a truth value, null; else its text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if abs(value) < MAX_EXACT_INT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _encoded(values: list[Any]) -> dict[str, Any]:
    places: dict[tuple[type, Any], int] = {}
    at = [places.setdefault((type(value), value), len(places)) for value in values]
    if len(places) > len(values) / 2:
        return {"values": values}
    return {"of": [value for _, value in places], "at": at}
