"""Pass@1 on validation problems, for every module that trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from w2sr.chat import Chat
from w2sr.evaluation import evaluate
from w2sr.metrics import PassAtK
from w2sr.rollouts import Generator
from w2sr.runs import Stopped
from w2sr.stops import STOP
from w2sr.types import EvalRecord, ProblemBatch, Sampling
from w2sr.verify import Verifier

EQUAL_ON_RANKS: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}
"""How a metric is logged that is reduced already: Lightning wants a reduction named; a maximum of equals is exact."""


def answer_validation(
    batch: ProblemBatch,
    chat: Chat,
    generator: Generator,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling,
    metric: PassAtK,
) -> list[EvalRecord]:
    """Samples the problems of a batch, adds them to the metric, and returns the records.

    Where a stop is asked for, it returns at once, and the callback that asked ends validation on all ranks together.
    """
    problems = [problem for problem, weight in zip(*batch, strict=True) if weight]
    try:
        with STOP.at_once():
            records = list(evaluate(problems, chat, generator, verifiers, sampling))
    except Stopped:
        if STOP.asked is None:  # before training: nothing is to be saved
            raise
        return []
    solved = Counter(record.problem_id for record in records if record.correct)
    metric.update(
        [problem.problem_id for problem in problems],
        [problem.source for problem in problems],
        torch.tensor([solved[problem.problem_id] for problem in problems], dtype=torch.int64),
    )
    return records
