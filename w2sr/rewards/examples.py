"""A rollout in a line, for the examples of rewards and for trying out one of your own."""

from __future__ import annotations

from w2sr.types import Completion, FinishReason, Problem, Rollout, Verdict, VerdictLabel


def rollout(
    text: str = "",
    label: VerdictLabel = "correct",
    *,
    num_tokens: int = 0,
    finish: FinishReason = "stop",
    problem_id: str = "example/1",
    sample_index: int = 0,
) -> Rollout:
    """A rollout with this completion, `num_tokens` tokens long, and this verdict.

    >>> rollout("so 3", "incorrect").verdict.is_correct
    False
    """
    problem = Problem(problem_id, "example", "1 + 2 = ?", "3")
    completion = Completion(problem_id, sample_index, (0,) * num_tokens, text, finish)
    return Rollout(problem, (), completion, Verdict(label, None, "", "", "example", ""))
