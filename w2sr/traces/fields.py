"""What a cell of a foreign file says of a trace: one conversion for each field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import cast, get_args

from w2sr.rows import Row, as_answer, as_float, as_int, as_prose, as_text, cell, is_filled, shown
from w2sr.types import FinishReason, Trace, VerdictLabel

REQUIRED = ("problem", "completion", "reference_answer")
FIELDS = tuple(f.name for f in fields(Trace))
REASONING = "reasoning"
"""Not a field of a trace: a column with the reasoning that belongs in front of the completion, within its tags."""

REASONING_COLUMNS = ("reasoning_content", "reasoning", "thinking")
"""Columns in which others keep what a completion was reasoned from. Filled, they must be mapped."""

OF_THE_PROBLEM = ("problem", "problem_id", "source", "reference_answer")
"""Fields that all generations of a row share."""


def field_value(row: Row, field: str, spec: str) -> object:
    """The value of a field in a row, or None where its cell says nothing.

    Raises:
        ValueError: the cell cannot be converted, or says nothing of a required field.
    """
    value = cell(row, spec)
    try:
        if value is None and field in REQUIRED:
            raise ValueError("is null or absent")
        return None if value is None else _CONVERT.get(field, as_text)(value)
    except ValueError as error:
        raise ValueError(f"{field} (column {spec!r}) {error}") from error


def generations(row: Row, specs: Mapping[str, str]) -> Iterator[Row]:
    """The row once for each generation where its completion is a list of texts, else the row itself.

    Other lists in the row have one value for each generation. What a list does not hold, all generations share.

    Raises:
        ValueError: the list of completions is empty, or another list has another length.
    """
    completions = cell(row, specs.get("completion", "="))
    if not isinstance(completions, (list, tuple)):
        yield row
        return
    if not completions:
        raise ValueError(f"completion (column {specs['completion']!r}) is an empty list")
    lists: dict[str, list[object]] = {}
    for field, spec in specs.items():
        values = cell(row, spec)
        if field in OF_THE_PROBLEM or not isinstance(values, (list, tuple)):
            continue
        if len(values) != len(completions):
            raise ValueError(
                f"{field} (column {spec!r}) has {len(values)} values, and the row has {len(completions)} completions"
            )
        lists[spec] = list(values)
    for number in range(len(completions)):
        where = f"{row.where}, generation {number + 1}"
        yield Row(where, {**row.cells, **{spec: values[number] for spec, values in lists.items()}})


def refuse_unmapped_reasoning(row: Row, specs: Mapping[str, str]) -> None:
    """Raises ValueError where a column of REASONING_COLUMNS is filled, and no field is read from it."""
    for name in REASONING_COLUMNS:
        if REASONING not in specs and name not in specs.values() and is_filled(row.cells.get(name)):
            raise ValueError(
                f"column {name!r} is filled beside the completion. Map it, columns: {{reasoning: {name}}}, to put it "
                "in front of the completion as <think>...</think>; or leave it out, columns: {reasoning: =}"
            )


def with_reasoning(reasoning: str, completion: str) -> str:
    r"""The completion with its reasoning in front, as the chat templates of reasoning models write it.

    >>> with_reasoning("1 and 1", "2")
    '<think>\n1 and 1\n</think>\n\n2'
    """
    if not reasoning.strip():
        return completion
    if "<think>" in completion or "</think>" in completion:
        raise ValueError("reasoning is filled, and the completion has <think> or </think> of its own")
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{completion.lstrip()}"


def _truth(value: object) -> bool | None:
    """The truth value of a cell, where it is one: JSON's and Parquet's booleans, and how CSV spells them."""
    return {"true": True, "false": False}.get(str(value).lower()) if isinstance(value, (bool, str)) else None


def _finish_reason(value: object) -> FinishReason:
    if (truth := _truth(value)) is not None:
        return "stop" if truth else "length"
    for reason in get_args(FinishReason):
        if value == reason:
            return cast(FinishReason, reason)
    raise ValueError(f"is {shown(value)}; known are true, false, {', '.join(get_args(FinishReason))}")


def _verdict(value: object) -> str:
    if (truth := _truth(value)) is not None:
        return "correct" if truth else "incorrect"
    if isinstance(value, str) and value in ("", *get_args(VerdictLabel)):
        return value
    raise ValueError(
        f"is {shown(value)}, not true, false or one of {', '.join(get_args(VerdictLabel))}. Leave verdict unmapped to "
        "have it verified"
    )


def _json_text(value: object) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else as_text(value)


_BY_TYPE: dict[str, Callable[[object], object]] = {"int": as_int, "float": as_float}
_CONVERT: dict[str, Callable[[object], object]] = {
    **{f.name: _BY_TYPE.get(str(f.type), as_text) for f in fields(Trace)},
    "problem": as_prose,
    "completion": as_prose,
    "reference_answer": as_answer,
    "finish_reason": _finish_reason,
    "verdict": _verdict,
    "sampling": _json_text,
    "no_loss_spans": _json_text,
    "corruption": _json_text,
}
