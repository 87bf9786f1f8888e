"""From problems to evaluated records: prompt, sample, verify. Used by validation, by `test` and by the final table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

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
            yield from _records(waiting, by_id, verifiers, chat.opened)
            waiting = []
    yield from _records(waiting, by_id, verifiers, chat.opened)


def _records(
    completions: Sequence[Completion], by_id: Mapping[str, Problem], verifiers: Mapping[str, Verifier], opened: str
) -> Iterator[EvalRecord]:
    for completion, verdict in graded(completions, by_id, verifiers, opened):
        yield _record(by_id[completion.problem_id], completion, verdict)


def graded(
    completions: Sequence[Completion],
    by_id: Mapping[str, Problem],
    verifiers: Mapping[str, Verifier],
    opened: str = "",
) -> Iterator[tuple[Completion, Verdict]]:
    """Each completion with its verdict, those of one source side by side.

    Args:
        completions: as an engine gives them.
        by_id: the problem of each id.
        verifiers: one for each source.
        opened: what the prompt holds of the assistant's turn (`Chat.opened`). It is put in front of the text, so that
            a thought that never ends is not read as an answer.
    """
    by_source: dict[str, list[Completion]] = {}
    for completion in completions:
        source = by_id[completion.problem_id].source
        by_source.setdefault(source, []).append(_whole_turn(completion, opened))
    for source, group in by_source.items():
        pairs = [(completion.text, by_id[completion.problem_id].reference_answer) for completion in group]
        yield from zip(group, verifiers[source].verify_all(pairs), strict=True)


def _whole_turn(completion: Completion, opened: str) -> Completion:
    """The completion with the text that its prompt had already opened. A chat server may have put it back already."""
    if not opened or completion.text.startswith(opened):
        return completion
    spans = tuple((start + len(opened), end + len(opened)) for start, end in completion.no_loss_spans)
    return replace(completion, text=opened + completion.text, no_loss_spans=spans)


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
