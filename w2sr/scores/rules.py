"""The scores that there are: name → columns, and how each is made into something that can be computed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from w2sr.rows import nearest
from w2sr.scores import difficulty, likelihood, structure
from w2sr.scores.likelihood import Student, likelihoods
from w2sr.scores.sidecars import Provenance, Score, Values
from w2sr.types import Trace

VERSIONS = {"structure": 1, "likelihood": 1, "difficulty": 1}
"""Raised by one with every change of a rule that changes a value: values of another version are never read."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "structure": structure.COLUMNS,
    "likelihood": likelihood.COLUMNS,
    "difficulty": difficulty.COLUMNS,
}
LIKELIHOOD_CHUNK = 256
"""Traces a part: what a kill can cost of a student's work."""


def score_of_column(column: str) -> str:
    """The score that a column belongs to: `num_steps` to `structure`.

    Raises:
        ValueError: no score has this column; the nearest is named.
    """
    for name, columns in COLUMNS.items():
        if column in columns:
            return name
    known = [column for columns in COLUMNS.values() for column in columns]
    raise ValueError(f"There is no score {column!r}.{nearest(column, known)} Scores: {', '.join(known)}.")


def structure_score() -> Score:
    return Score(
        Provenance("structure", VERSIONS["structure"]),
        structure.COLUMNS,
        inputs=lambda trace: trace.completion,
        values=lambda traces: [structure.structure_scores(trace.completion) for trace in traces],
    )


def difficulty_score(traces: Sequence[Trace]) -> Score:
    """Difficulty over exactly these traces: with more traces of a problem its value is another one.

    Raises:
        ValueError: a trace without verdict.
    """
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.problem_id].append(trace)
    values: dict[str, Values] = {}
    inputs: dict[str, str] = {}
    for problem_id, group in groups.items():
        inputs[problem_id] = json.dumps(sorted((t.teacher, t.sample_index, t.verdict == "correct") for t in group))
        scored = zip(group, difficulty.difficulty_scores(group), strict=True)
        values.update((trace.trace_id, one) for trace, one in scored)
    return Score(
        Provenance("difficulty", VERSIONS["difficulty"]),
        difficulty.COLUMNS,
        inputs=lambda trace: inputs[trace.problem_id],
        values=lambda traces: [values[trace.trace_id] for trace in traces],
    )


def likelihood_score(student: Student, max_tokens: int) -> Score:
    """Likelihood by a loaded student."""

    def values(traces: Sequence[Trace]) -> list[Values]:
        return [{"likelihood": value} for value in likelihoods(student, traces, max_tokens)]

    stored = stored_likelihood(student.hash, student.dtype)
    return Score(stored.provenance, stored.columns, stored.inputs, values, chunk=LIKELIHOOD_CHUNK)


def stored_likelihood(student_hash: str, dtype: str) -> Score:
    """Likelihood that can only be read: its student is not loaded."""

    def values(traces: Sequence[Trace]) -> list[Values]:
        raise AssertionError("a stored likelihood is read, not computed")

    return Score(
        Provenance("likelihood", VERSIONS["likelihood"], student_hash, dtype),
        likelihood.COLUMNS,
        inputs=lambda trace: json.dumps([trace.problem, trace.completion, trace.finish_reason == "length"]),
        values=values,
    )
