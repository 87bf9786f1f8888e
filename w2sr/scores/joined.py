"""Scores for a selection: read from the stores of the traces where they are, computed where that costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

from w2sr.policy import DTypeName
from w2sr.scores.rules import difficulty_score, score_of_column, stored_likelihood, structure_score
from w2sr.scores.sidecars import FOLDER, Score, Values, stored_values
from w2sr.types import Trace

Table = dict[str, dict[str, float]]
"""Column → trace_id → value."""


def scores_for(
    traces: Sequence[Trace], stores: Sequence[Path], columns: Iterable[str], *, student: str, hash_of: Callable[[], str]
) -> tuple[Table, list[str]]:
    """The columns of the traces, and a line for each score that says where its values are from.

    Structure and difficulty are rules on the traces themselves: what no store holds is computed here. A likelihood
    needs the student's weights and is only read.

    Args:
        traces: all traces of the run, verified; difficulty is over these.
        stores: the trace stores that some of them are from.
        columns: names of the columns.
        student: the run's student, for messages.
        hash_of: gives the student's hash (see `student_hash`); called only if a likelihood is asked for.

    Raises:
        ValueError: an unknown column, a damaged part, or a trace without a stored likelihood of this student.
    """
    asked = sorted(columns)
    table: Table = {}
    lines: list[str] = []
    for name in dict.fromkeys(score_of_column(column) for column in asked):
        if name == "likelihood":
            found = _likelihood(traces, stores, student, hash_of())
            lines.append(f"likelihood by {student}: read for {len(found):,} traces")
        else:
            score = structure_score() if name == "structure" else difficulty_score(traces)
            found, num_computed = _read_or_computed(traces, stores, score)
            lines.append(f"{name}: read for {len(traces) - num_computed:,} traces, computed for {num_computed:,}")
        for column in asked:
            if score_of_column(column) == name:
                table[column] = {trace_id: values[column] for trace_id, values in found.items()}
    return table, lines


def stored_table(store: Path, traces: Sequence[Trace]) -> Table:
    """Every score that lies beside a store: column → trace_id → value. Nothing is computed.

    Where several students' likelihoods are there, their columns end with the student's hash and dtype.

    Args:
        store: directory of the store.
        traces: all its traces; difficulty is over these.
    """
    folders = sorted(path.name for path in (store / FOLDER).glob("likelihood-*"))
    named: list[tuple[str, Score]] = [("", structure_score()), ("", difficulty_score(traces))]
    for folder in folders:
        _, _, student, dtype = folder.split("-", 3)
        named.append((f" {student}-{dtype}" if len(folders) > 1 else "", stored_likelihood(student, dtype)))
    table: Table = {}
    for suffix, score in named:
        for trace_id, values in stored_values(store, score, traces).items():
            for column, value in values.items():
                table.setdefault(column + suffix, {})[trace_id] = value
    return table


def _read_or_computed(traces: Sequence[Trace], stores: Sequence[Path], score: Score) -> tuple[dict[str, Values], int]:
    found: dict[str, Values] = {}
    for store in stores:
        found |= stored_values(store, score, traces)
    missing = [trace for trace in traces if trace.trace_id not in found]
    found |= zip((trace.trace_id for trace in missing), score.values(missing), strict=True)
    return found, len(missing)


def _likelihood(traces: Sequence[Trace], stores: Sequence[Path], student: str, student_hash: str) -> dict[str, Values]:
    found: dict[str, Values] = {}
    for dtype in reversed(get_args(DTypeName)):  # the more exact one last: its values win
        for store in stores:
            found |= stored_values(store, stored_likelihood(student_hash, dtype), traces)
    missing = [trace.trace_id for trace in traces if trace.trace_id not in found]
    if missing:
        commands = "; ".join(
            f"python lightning_cli.py score {store} --scores likelihood --student {student}" for store in stores
        )
        raise ValueError(
            f"{len(missing):,} of {len(traces):,} traces have no likelihood by the student {student}, the first "
            f"{missing[0]!r}. Compute it: {commands or 'put the traces into a trace store first, then run `score`'}."
        )
    return found
