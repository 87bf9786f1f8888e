"""What is asked, and what all traces of the run have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from w2sr.chat import Chat
from w2sr.shards import shard_number
from w2sr.tools import Calculator
from w2sr.traces import Recipe
from w2sr.types import DataFile, Problem, Sampling


def problems_that_fit(
    problems: Sequence[Problem], chat: Chat, positions: int | None, max_new_tokens: int
) -> tuple[list[Problem], str]:
    """The problems whose prompt leaves room for an answer, and a sentence about the others ("" where there are none).

    Args:
        problems: all problems.
        chat: renders prompts.
        positions: tokens that the teacher's context holds; None where that is not known: everything fits.
        max_new_tokens: what an answer may take.
    """
    if positions is None:
        return list(problems), ""
    lengths = {problem.problem_id: len(chat.prompt_ids(problem.problem)) for problem in problems}
    fitting = [problem for problem in problems if lengths[problem.problem_id] + max_new_tokens <= positions]
    if len(fitting) == len(problems):
        return fitting, ""
    worst = max(lengths, key=lengths.__getitem__)
    return fitting, (
        f"{len(problems) - len(fitting):,} of {len(problems):,} problems are too long for the teacher's context of "
        f"{positions:,} tokens with sampling.max_new_tokens={max_new_tokens:,}; the longest is {worst!r} with a prompt "
        f"of {lengths[worst]:,} tokens"
    )


def make_recipe(
    teacher: str,
    engine: str,
    chat: Chat,
    sampling: Sampling,
    num_samples: int,
    files: Mapping[str, DataFile],
    problems: Sequence[Problem],
    num_shards: int,
    calculator: Calculator | None = None,
) -> Recipe:
    """The recipe of a run: what its store may not mix. Problems count by what they ask, not by where they were read."""
    by_source: dict[str, list[Problem]] = {name: [] for name in files}
    problems_by_shard = [0] * num_shards
    for problem in problems:
        by_source[problem.source].append(problem)
        problems_by_shard[shard_number(problem.problem_id, num_shards) - 1] += 1
    return Recipe(
        teacher=teacher,
        engine=engine,
        template=chat.template,
        stop_token=chat.stop_token,
        instruction=chat.instruction,
        template_hash=chat.template_hash,
        template_date=chat.template_date,
        sampling=json.loads(json.dumps(asdict(sampling))),  # as it is read back: lists, no tuples
        calculator={} if calculator is None else asdict(calculator),
        num_samples=num_samples,
        problems={
            name: {
                "num_problems": len(asked),
                "sha256": _hash_of(asked),
                "rules": list(files[name].rules),
                "kind": files[name].kind,
                "tolerance": asdict(files[name].tolerance),
            }
            for name, asked in by_source.items()
        },
        problems_by_shard=problems_by_shard,
    )


def _hash_of(problems: Sequence[Problem]) -> str:
    """16 hex digits of what is asked and what counts as right, whatever the order."""
    lines = sorted("\0".join(problem) for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
