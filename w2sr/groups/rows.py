"""Rollouts to the packed rows of every optimizer step of a round.

Every rank knows all rollouts of the round and computes the same plan, so the weight of every token is known before the
first backward and does not depend on how rollouts share rows, micro-steps or ranks.

Legend: R rollouts of a round, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from w2sr import chance
from w2sr.groups.sharing import pack_sharing
from w2sr.losses import Objective, rollout_weights
from w2sr.packing import plan_epoch
from w2sr.types import IGNORE_INDEX, PolicyRow, Rollout, Segment


@dataclass(frozen=True)
class Experience:
    """The rollouts of one round, and what training knows of each.

    Attributes:
        rollouts: R of them, group after group.
        advantages_R: float64.
        old_logprobs: of each rollout's completion tokens, by the policy at the start of the round; None where every
            token is trained on once, by that very policy.
        ref_logprobs: likewise, by the reference policy; None without one.
    """

    rollouts: Sequence[Rollout]
    advantages_R: np.ndarray
    old_logprobs: Sequence[np.ndarray] | None = None
    ref_logprobs: Sequence[np.ndarray] | None = None


def minibatches(num_groups: int, group_size: int, parts: int, passes: int, seed: int, number: int) -> list[np.ndarray]:
    """The rollouts of each optimizer step of round `number`: indices into R, whole groups.

    Every pass deals the groups anew into `parts` mini-batches of almost equal size; one part in one pass is all of them
    in order. A pure function of its arguments, so that a resumed run deals alike.

    >>> minibatches(2, 3, parts=1, passes=1, seed=0, number=5)
    [array([0, 1, 2, 3, 4, 5])]
    """
    steps: list[np.ndarray] = []
    for turn in range(passes):
        order = np.arange(num_groups)
        if parts > 1:
            order = chance.permutation("minibatches", num_groups, seed, number, turn)
        for part in np.array_split(order, parts):
            steps.append((part[:, None] * group_size + np.arange(group_size)).ravel())
    return steps


def step_weights(
    experience: Experience,
    members: np.ndarray,
    objective: Objective,
    max_new_tokens: int,
    *,
    mask_cut_off: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The optimizer step on the rollouts `members`: each rollout's token weight, float64 [R], and which have to be run.

    Left out are rollouts that count in the denominators and have the gradient zero: those that are masked, and those of
    the advantage 0 where neither a KL term nor an entropy bonus reads their tokens.
    """
    rollouts = [experience.rollouts[member] for member in members]
    masked = np.array([mask_cut_off and rollout.completion.finish_reason == "length" for rollout in rollouts])
    lengths = np.array([len(rollout.completion.token_ids) for rollout in rollouts])
    weights_R = np.zeros(len(experience.rollouts))
    weights_R[members] = rollout_weights(np.where(masked, 0, lengths), objective.loss, max_new_tokens)
    all_teach = bool(objective.kl.coefficient or objective.entropy)
    return weights_R, members[~masked & (all_teach | (experience.advantages_R[members] != 0))]


def num_tokens(rollouts: Iterable[Rollout]) -> int:
    """Tokens of rollouts with their prompts, each counted as if it stood alone."""
    return sum(len(rollout.prompt_ids) + len(rollout.completion.token_ids) for rollout in rollouts)


def deal_rows(rollouts: Sequence[Rollout], max_tokens: int, rank: int, world_size: int) -> list[np.ndarray]:
    """This rank's rows: indices into `rollouts` that are packed together. Equally many rows on every rank, some empty.

    Rollouts of one prompt stand in one row as far as they fit, because they share their prompt there.

    Raises:
        ValueError: a rollout is longer than a row.
    """
    if not rollouts:
        return [np.empty(0, dtype=np.int64)]
    lengths = np.array([len(rollout.prompt_ids) + len(rollout.completion.token_ids) for rollout in rollouts])
    if (longest := int(lengths.argmax())) is not None and lengths[longest] > max_tokens:
        completion = rollouts[longest].completion
        raise ValueError(
            f"Rollout {completion.sample_index} of problem '{completion.problem_id}' has {lengths[longest]:,} tokens "
            f"with its prompt; a row holds model.max_tokens={max_tokens:,}. Raise model.max_tokens, or lower "
            "model.rollout.max_new_tokens."
        )
    units = _units(rollouts, max_tokens)
    unit_lengths = np.array([shared_length([rollouts[member] for member in unit]) for unit in units])
    plan = plan_epoch(unit_lengths, seed=0, epoch=0, max_tokens=max_tokens, step_sequences=len(units))
    nothing = np.empty(0, dtype=np.int64)
    return [
        np.concatenate([nothing, *(units[number] for number in row)]) for row in plan.rank_rows(0, rank, world_size)
    ]


def _units(rollouts: Sequence[Rollout], max_tokens: int) -> list[np.ndarray]:
    """Rollouts of one prompt, which share a row: as many together as a row holds."""
    of_prompt: dict[tuple[int, ...], list[list[int]]] = {}
    for number, rollout in enumerate(rollouts):
        parts = of_prompt.setdefault(rollout.prompt_ids, [[]])
        if shared_length([rollouts[member] for member in (*parts[-1], number)]) > max_tokens:
            parts.append([])
        parts[-1].append(number)
    return [np.array(part) for parts in of_prompt.values() for part in parts]


def shared_length(rollouts: Sequence[Rollout]) -> int:
    """Tokens that rollouts of one prompt take in a row: the prompt but its last token once, see `policy_row`."""
    return len(rollouts[0].prompt_ids) - 1 + sum(1 + len(rollout.completion.token_ids) for rollout in rollouts)


def policy_row(experience: Experience, weights_R: np.ndarray, members: np.ndarray) -> PolicyRow:
    """One packed row of the rollouts `members`; `weights_R` [R] is the weight of each token of a rollout.

    Equal prompts stand in it once, but for their last token: the label of that one is the first token of a completion.
    """
    rollouts = [experience.rollouts[member] for member in members]
    packed = pack_sharing([_segment(one) for one in rollouts], [len(one.prompt_ids) - 1 for one in rollouts])
    labelled = (packed.labels != IGNORE_INDEX).numpy()
    counts = [len(rollout.completion.token_ids) for rollout in rollouts]

    def of_rollouts(values_R: np.ndarray) -> torch.Tensor:
        return _spread(labelled, np.repeat(values_R[members], counts))

    def of_tokens(values: Sequence[Sequence[float] | np.ndarray]) -> torch.Tensor:
        return _spread(labelled, np.concatenate([np.empty(0), *values]))

    lengths = packed.cu_seqlens.diff().to(torch.int64)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    old, ref = experience.old_logprobs, experience.ref_logprobs
    return PolicyRow(
        packed,
        of_rollouts(experience.advantages_R),
        of_rollouts(weights_R),
        of_tokens([_sampled(rollout) for rollout in rollouts]),
        segments if packed.place is None else segments[packed.place],
        None if old is None else of_tokens([old[member] for member in members]),
        None if ref is None else of_tokens([ref[member] for member in members]),
    )


def rollout_values(values_T: torch.Tensor, row: PolicyRow, counts: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The inverse: values at a row's labels, one array for each of its rollouts, whose token counts are given."""
    labelled = values_T[row.packed.labels != IGNORE_INDEX].cpu().numpy()
    return np.split(labelled, np.cumsum(counts)[:-1]) if len(counts) else []


def _segment(rollout: Rollout) -> Segment:
    completion = rollout.completion
    input_ids = np.array([*rollout.prompt_ids, *completion.token_ids], dtype=np.int64)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    labels[len(rollout.prompt_ids) - 1 : -1] = completion.token_ids
    return Segment(f"{completion.problem_id}#{completion.sample_index}", input_ids, labels)


def _sampled(rollout: Rollout) -> Sequence[float]:
    completion = rollout.completion
    assert completion.logprobs is not None, "an engine that follows a policy returns log-probabilities"
    assert len(completion.logprobs) == len(completion.token_ids), "one log-probability a token"
    return completion.logprobs


def _spread(labelled_T: np.ndarray, values: np.ndarray) -> torch.Tensor:
    spread_T = np.zeros(len(labelled_T), dtype=np.float32)
    spread_T[labelled_T] = values
    return torch.from_numpy(spread_T)
