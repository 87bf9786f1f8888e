"""From problems to evaluated records: prompt, sample, verify. Used by validation, by `test` and by the final table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from w2sr.chat import Chat
from w2sr.rollouts import Generator, sample_requests
from w2sr.types import Completion, EvalRecord, Problem, Sampling, Verdict
from w2sr.verify import Verifier

VERIFY_CHUNK = 64
"""Completions are verified this many at a time, so that slow answers are graded side by side."""


def evaluate(
    problems: Sequence[Problem],
    chat: Chat,
    generator: Generator,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling,
    num_samples: int = 1,
) -> Iterator[EvalRecord]:
    """Samples `num_samples` completions of every problem and verifies each. Yields records as they are finished.

    Args:
        problems: what is asked; ids are unique.
        chat: renders prompts, with the instruction that this arm of the evaluation gets.
        generator: the engine.
        verifiers: one for each source of the problems.
        sampling: temperature, top_p, token limit and seed.
        num_samples: samples a problem.

    Raises:
        ValueError: a source has no verifier.
    """
    by_id = {problem.problem_id: problem for problem in problems}
    if missing := {problem.source for problem in problems} - set(verifiers):
        raise ValueError(f"no verifier for source {sorted(missing)}; there are verifiers for {sorted(verifiers)}.")
    requests = [request for problem in problems for request in sample_requests(problem, chat, num_samples)]
    waiting: list[Completion] = []
    for completion in generator.stream(requests, sampling):
        waiting.append(completion)
        if len(waiting) == VERIFY_CHUNK:
            yield from _records(waiting, by_id, verifiers)
            waiting = []
    yield from _records(waiting, by_id, verifiers)


def _records(
    completions: Sequence[Completion], by_id: Mapping[str, Problem], verifiers: Mapping[str, Verifier]
) -> Iterator[EvalRecord]:
    for completion, verdict in graded(completions, by_id, verifiers):
        yield _record(by_id[completion.problem_id], completion, verdict)


def graded(
    completions: Sequence[Completion], by_id: Mapping[str, Problem], verifiers: Mapping[str, Verifier]
) -> Iterator[tuple[Completion, Verdict]]:
    """Each completion with its verdict, those of one source side by side."""
    by_source: dict[str, list[Completion]] = {}
    for completion in completions:
        by_source.setdefault(by_id[completion.problem_id].source, []).append(completion)
    for source, group in by_source.items():
        pairs = [(completion.text, by_id[completion.problem_id].reference_answer) for completion in group]
        yield from zip(group, verifiers[source].verify_all(pairs), strict=True)


def _record(problem: Problem, completion: Completion, verdict: Verdict) -> EvalRecord:
    return EvalRecord(
        problem_id=problem.problem_id,
        source=problem.source,
        stratum=problem.stratum,
        sample_index=completion.sample_index,
        completion=completion.text,
        finish_reason=completion.finish_reason,
        num_tokens=len(completion.token_ids),
        answer=verdict.answer,
        reference_answer=problem.reference_answer,
        verdict=verdict.label,
        correct=verdict.is_correct,
    )


class Stopwatch:
    """Wall seconds of a `with` block."""

    seconds: float = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
