"""A stream of completions becomes a stream of verified traces, a few at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from w2sr.evaluation import graded
from w2sr.rollouts import Generator
from w2sr.types import Completion, Problem, SampleRequest, Sampling, Trace, Verdict
from w2sr.verify import Verifier

VERIFY_CHUNK = 16
"""So many completions are verified together at most: slow answers are graded side by side, and a kill loses few."""
WAIT_S = 1.0
"""A completion that comes so long after the last ones were verified waits for no other."""


class Stamp(NamedTuple):
    """Where a trace comes from, beside its sampling. `opened`: what the prompt held of its text (`Chat.opened`)."""

    teacher: str
    template_hash: str
    engine: str
    opened: str = ""


def distill(
    requests: Sequence[SampleRequest],
    problems: Mapping[str, Problem],
    generator: Generator,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling,
    stamp: Stamp,
) -> Iterator[Trace]:
    """Samples and verifies; yields each trace soon after its completion has ended.

    Args:
        requests: what is sampled.
        problems: the problem of each id.
        generator: the engine.
        verifiers: one for each source of the problems.
        sampling: temperature, top_p, token limit and seed.
        stamp: provenance.
    """
    settings = json.dumps(asdict(sampling))
    for completions, seconds in _chunks(generator.stream(requests, sampling)):
        for completion, verdict in graded(completions, problems, verifiers, stamp.opened):
            yield _trace(problems[completion.problem_id], completion, verdict, sampling.seed, settings, stamp, seconds)


def _chunks(stream: Iterator[Completion]) -> Iterator[tuple[list[Completion], float]]:
    """Completions to verify together, and the seconds of generation that each of them stands for.

    Seconds are time spent in the engine since the chunk before, in equal shares: over all traces they sum to the wall
    time of generation, however many were sampled side by side.
    """
    waiting: list[Completion] = []
    last_s = time.perf_counter()
    for completion in stream:
        waiting.append(completion)
        now_s = time.perf_counter()
        if len(waiting) == VERIFY_CHUNK or now_s - last_s >= WAIT_S:
            yield waiting, (now_s - last_s) / len(waiting)
            waiting, last_s = [], time.perf_counter()
    if waiting:
        yield waiting, (time.perf_counter() - last_s) / len(waiting)


def _trace(
    problem: Problem,
    completion: Completion,
    verdict: Verdict,
    seed: int,
    settings: str,
    stamp: Stamp,
    seconds: float,
) -> Trace:
    return Trace(
        problem_id=problem.problem_id,
        source=problem.source,
        problem=problem.problem,
        reference_answer=problem.reference_answer,
        teacher=stamp.teacher,
        completion=completion.text,
        finish_reason=completion.finish_reason,
        sample_index=completion.sample_index,
        num_tokens=len(completion.token_ids),
        sampling=settings,
        seed=seed,
        template_hash=stamp.template_hash,
        engine=stamp.engine,
        seconds=seconds,
        no_loss_spans=json.dumps(completion.no_loss_spans) if completion.no_loss_spans else "",
    ).judged(verdict)
