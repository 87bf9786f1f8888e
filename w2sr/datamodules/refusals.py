"""Rows that a tokenizer or chat template cannot hold: refused before anything is trained, or skipped and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info

from w2sr.chat import Chat
from w2sr.conversation import RefusedText
from w2sr.rows import OnBadRow
from w2sr.supervision import Supervision
from w2sr.types import Problem, Trace

SKIP = "Or set data.on_bad_row=skip to leave such rows out."
NUM_NAMED = 3

_Row = TypeVar("_Row", Problem, Trace)


def askable(problems: Sequence[Problem], chat: Chat, on_bad_row: OnBadRow) -> list[Problem]:
    """The problems that can be a prompt.

    Raises:
        ValueError: one cannot and `on_bad_row` is "error", or none can.
    """
    ids = [problem.problem_id for problem in problems]
    return _accepted(problems, ids, lambda some: chat.prompts_ids([p.problem for p in some]), on_bad_row)


def teachable(traces: Sequence[Trace], chat: Chat, supervision: Supervision, on_bad_row: OnBadRow) -> list[Trace]:
    """The traces that can be a segment under a variant of supervision.

    Raises:
        ValueError: one cannot and `on_bad_row` is "error", or none can.
    """
    ids = [trace.trace_id for trace in traces]
    return _accepted(traces, ids, lambda some: chat.segments(some, supervision=supervision), on_bad_row)


def _accepted(
    rows: Sequence[_Row], ids: Sequence[str], render: Callable[[Sequence[_Row]], object], on_bad_row: OnBadRow
) -> list[_Row]:
    """The rows that `render` does not refuse. All at once is faster than one by one, and mostly enough."""
    if _refusal(render, rows) is None:
        return list(rows)
    refusals = [_refusal(render, [row]) for row in rows]
    kept = [row for row, refusal in zip(rows, refusals, strict=True) if refusal is None]
    told: list[str] = [
        f"{row_id}: {refusal}" for row_id, refusal in zip(ids, refusals, strict=True) if refusal is not None
    ]
    counts = f"{len(told):,} of {len(rows):,} rows cannot be given to the model:"
    said = "\n  ".join([counts, *told[:NUM_NAMED]])
    if on_bad_row == "error" or not kept:
        raise ValueError(f"{said}\n{SKIP}" if kept else said)
    rank_zero_info(f"{said}\nThey are left out (data.on_bad_row=skip).")
    return kept


def _refusal(render: Callable[[Sequence[_Row]], object], rows: Sequence[_Row]) -> str | None:
    try:
        render(rows)
    except RefusedText as error:
        return str(error)
    return None
