"""How hard a problem was for the teachers: the share of its traces that are not right."""

from __future__ import annotations

from collections.abc import Sequence

from w2sr.types import Trace

COLUMNS = ("difficulty", "difficulty_others")


def difficulty_scores(group: Sequence[Trace]) -> list[dict[str, float]]:
    """For each trace of one problem: 1 − pass rate over all its samples and teachers, and over all but this trace.

    `difficulty` is the same for every trace of the problem. It counts the trace itself: of a problem with few traces,
    the right ones look easy because they are right. `difficulty_others` leaves the trace out, and is NaN where it is
    the only one. Missing answers and timeouts are not right.

    Raises:
        ValueError: a trace without verdict.
    """
    for trace in group:
        if not trace.verdict:
            raise ValueError(
                f"Trace {trace.trace_id!r} has no verdict, which difficulty needs. Verify the store first."
            )
    wrong = [trace.verdict != "correct" for trace in group]
    total, number = sum(wrong), len(wrong)
    return [
        {
            "difficulty": total / number,
            "difficulty_others": (total - one) / (number - 1) if number > 1 else float("nan"),
        }
        for one in wrong
    ]
