"""What a user watches of a round's rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from w2sr.types import RolloutGroup


def round_metrics(
    groups: Sequence[RolloutGroup], rewards_NG: np.ndarray, advantages_NG: np.ndarray
) -> dict[str, float]:
    """Rewards, pass rate (by stratum too), lengths, advantages and the share of dead groups, of all ranks' rollouts.

    A group is dead where all its rewards are equal: it teaches nothing. Lengths are in completion tokens. Entropy is
    estimated by -log p of the sampled tokens, in nats a token.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = np.array([len(rollout.completion.token_ids) for rollout in rollouts])
    cut_off = np.array([rollout.completion.finish_reason == "length" for rollout in rollouts])
    correct_NG = np.array([[rollout.verdict.is_correct for rollout in group.rollouts] for group in groups])
    dead_N = (rewards_NG == rewards_NG[:, :1]).all(axis=1)
    metrics = {
        "reward/mean": float(rewards_NG.mean()),
        "reward/std": float(rewards_NG.std()),
        "reward/group_std": float(rewards_NG.std(axis=1).mean()),
        "rollouts/pass_rate": float(correct_NG.mean()),
        "rollouts/tokens_mean": float(lengths.mean()),
        "rollouts/tokens_max": float(lengths.max()),
        "rollouts/cut_off_frac": float(cut_off.mean()),
        "rollouts/entropy": -sum(sum(rollout.completion.logprobs or ()) for rollout in rollouts) / float(lengths.sum()),
        "advantage/mean": float(advantages_NG.mean()),
        "advantage/std": float(advantages_NG.std()),
        "advantage/min": float(advantages_NG.min()),
        "advantage/max": float(advantages_NG.max()),
        "groups/dead_frac": float(dead_N.mean()),
        "groups/all_correct_frac": float(correct_NG.all(axis=1).mean()),
        "groups/all_wrong_frac": float((~correct_NG).all(axis=1).mean()),
    }
    strata = np.array([group.problem.stratum for group in groups])
    for stratum in sorted(set(strata) - {""}):
        metrics[f"pass_rate/{stratum}"] = float(correct_NG[strata == stratum].mean())
    return metrics
