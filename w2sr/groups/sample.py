"""Problems to groups of verified rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from w2sr.chat import Chat
from w2sr.evaluation import graded
from w2sr.rollouts import sample_requests
from w2sr.types import Completion, Problem, Rollout, RolloutGroup, SampleRequest
from w2sr.verify import Verifier


def group_requests(
    problems: Sequence[Problem], chat: Chat, group_size: int, asked_before: Mapping[str, int] | None = None
) -> list[SampleRequest]:
    """What an engine is asked: `group_size` samples of each problem, group after group.

    Noise depends on the sample index, so a problem that is asked again by the same version of the policy gets indices
    of its own: after those of the groups that stand before it, and of the `asked_before` (problem id → groups).
    """
    asked = Counter(asked_before or {})
    requests: list[SampleRequest] = []
    for problem in problems:
        first = asked[problem.problem_id] * group_size
        asked[problem.problem_id] += 1
        fresh = sample_requests(problem, chat, group_size)
        requests += [replace(request, sample_index=first + request.sample_index) for request in fresh]
    return requests


def verified_groups(
    problems: Sequence[Problem],
    requests: Sequence[SampleRequest],
    completions: Sequence[Completion],
    verifiers: Mapping[str, Verifier],
    opened: str = "",
) -> list[RolloutGroup]:
    """The groups of `group_requests`, in its order, from an engine's completions in any order.

    `opened`: what the prompt holds of the assistant's turn (`Chat.opened`); it is put in front of each text.

    Raises:
        ValueError: a source has no verifier.
    """
    if missing := {problem.source for problem in problems} - set(verifiers):
        raise ValueError(f"no verifier for source {sorted(missing)}; there are verifiers for {sorted(verifiers)}.")
    by_id = {problem.problem_id: problem for problem in problems}
    done = {
        (completion.problem_id, completion.sample_index): (completion, verdict)
        for completion, verdict in graded(completions, by_id, verifiers, opened)
    }
    rollouts = [
        Rollout(by_id[request.problem_id], request.prompt_ids, *done[request.problem_id, request.sample_index])
        for request in requests
    ]
    group_size = len(requests) // max(1, len(problems))
    return [
        RolloutGroup(problem, tuple(rollouts[number * group_size : (number + 1) * group_size]))
        for number, problem in enumerate(problems)
    ]
