"""From problems to packed rows of rollouts: sampling groups, and planning the rows of every optimizer step."""

from w2sr.groups.rows import Experience, deal_rows, minibatches, num_tokens, policy_row, rollout_values, step_weights
from w2sr.groups.sample import group_requests, verified_groups
from w2sr.groups.sharing import pack_sharing
from w2sr.groups.watch import round_metrics

__all__ = [
    "Experience",
    "deal_rows",
    "group_requests",
    "minibatches",
    "num_tokens",
    "pack_sharing",
    "policy_row",
    "rollout_values",
    "round_metrics",
    "step_weights",
    "verified_groups",
]
