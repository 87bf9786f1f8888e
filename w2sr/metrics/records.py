"""From evaluated samples to a result: the one place where a missing sample becomes a wrong one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import nan

import torch

from w2sr.metrics.pass_at_k import PassAtK
from w2sr.results import Cost, Estimate, JsonValue, ProblemCount, RunResult, library_versions
from w2sr.types import EvalRecord, Problem

_CHUNK = 512  # problems per update: bounds the bootstrap weights held at once to 512 · B numbers


@dataclass
class _Tally:
    """Running counts over the records of one evaluation."""

    num_correct: dict[str, int]
    seen: set[tuple[str, int]] = field(default_factory=set)
    num_finished: int = 0
    num_cut_off: int = 0
    num_tokens: int = 0
    num_with_tokens: int = 0


def records_to_result(
    records: Iterable[EvalRecord],
    problems: Sequence[Problem],
    *,
    name: str,
    model: str,
    num_samples: int,
    seconds: float,
    command: str,
    sampling: Mapping[str, JsonValue],
    ks: Sequence[int] = (1,),
    sources: Sequence[str] | None = None,
    train_seconds: float | None = None,
    num_train_tokens: int | None = None,
    extra: Mapping[str, JsonValue] | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> RunResult:
    """Turns the samples of one arm into its result; every expected sample that is missing counts as wrong.

    Args:
        records: the evaluated samples, in any order.
        problems: the problems that were asked, each once.
        name: label of the arm.
        model: path or hub name.
        num_samples: samples drawn per problem.
        seconds: wall time of the evaluation.
        command: the command line that made this result.
        sampling: temperature, top_p and the like.
        ks: the values of k.
        sources: the benchmarks that are expected; those of `problems` if not given.
        train_seconds: wall time of the fit; None if unknown or not trained.
        num_train_tokens: tokens of the fit; None if unknown or not trained.
        extra: anything else the trainer wants to keep.
        num_bootstrap: replicates of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: if a problem is listed twice, or a record is of no listed problem, of no drawn sample, or repeated.
    """
    tally = _count(records, problems, num_samples)
    sources = tuple(dict.fromkeys(problem.source for problem in problems)) if sources is None else tuple(sources)
    expected = len(problems) * num_samples
    return RunResult(
        name=name,
        model=model,
        sources=sources,
        num_samples=num_samples,
        estimates=_estimates(tally.num_correct, problems, num_samples, ks, sources, num_bootstrap, seed),
        per_problem={
            p.problem_id: ProblemCount(tally.num_correct[p.problem_id], num_samples, p.source) for p in problems
        },
        finished_frac=tally.num_finished / expected if expected else nan,
        cut_off_frac=tally.num_cut_off / expected if expected else nan,
        num_missing_samples=expected - len(tally.seen),
        mean_completion_tokens=tally.num_tokens / tally.num_with_tokens if tally.num_with_tokens else nan,
        sampling=dict(sampling),
        cost=Cost(seconds, tally.num_tokens, train_seconds, num_train_tokens),
        command=command,
        versions=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=dict(extra or {}),
    )


def _count(records: Iterable[EvalRecord], problems: Sequence[Problem], num_samples: int) -> _Tally:
    tally = _Tally({problem.problem_id: 0 for problem in problems})
    if len(tally.num_correct) != len(problems):
        repeated = [i for i, times in Counter(problem.problem_id for problem in problems).items() if times > 1]
        raise ValueError(
            f"{len(problems):,} problems have {len(tally.num_correct):,} different ids; {repeated[:3]} come more than "
            f"once. Give every problem an id of its own."
        )
    for record in records:
        key = (record.problem_id, record.sample_index)
        where = f"Sample {record.sample_index} of problem {record.problem_id!r}"
        if record.problem_id not in tally.num_correct:
            raise ValueError(f"{where} is of none of the {len(problems):,} expected problems. Evaluate the same set.")
        if not 0 <= record.sample_index < num_samples:
            raise ValueError(f"{where} is beyond num_samples={num_samples}. Set num_samples to what was drawn.")
        if key in tally.seen:
            raise ValueError(f"{where} comes twice. Records of two runs are mixed: keep one run's.")
        tally.seen.add(key)
        tally.num_correct[record.problem_id] += record.correct
        tally.num_finished += record.finish_reason == "stop"
        tally.num_cut_off += record.finish_reason == "length"
        if record.num_tokens >= 0:
            tally.num_tokens += record.num_tokens
            tally.num_with_tokens += 1
    return tally


def _estimates(
    num_correct: Mapping[str, int],
    problems: Sequence[Problem],
    num_samples: int,
    ks: Sequence[int],
    sources: Sequence[str],
    num_bootstrap: int,
    seed: int,
) -> dict[str, Estimate]:
    metric = PassAtK(
        ks=ks,
        num_samples=num_samples,
        sources=sources,
        strata=sorted({(problem.source, problem.stratum) for problem in problems if problem.stratum}),
        num_bootstrap=num_bootstrap,
        seed=seed,
        sync_on_compute=False,
    )
    for start in range(0, len(problems), _CHUNK):
        chunk = problems[start : start + _CHUNK]
        metric.update(
            [problem.problem_id for problem in chunk],
            [problem.source for problem in chunk],
            torch.tensor([num_correct[problem.problem_id] for problem in chunk], dtype=torch.int64),
            strata=[problem.stratum for problem in chunk],
        )
    estimates: dict[str, Estimate] = metric.compute()
    return estimates
