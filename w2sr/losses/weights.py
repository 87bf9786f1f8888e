"""How much a token weighs in the loss of the whole optimizer step.

Legend: R rollouts of the optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from w2sr.losses.objective import PolicyLoss


def rollout_weights(lengths: Sequence[int] | np.ndarray, loss: PolicyLoss, max_new_tokens: int) -> np.ndarray:
    """The weight of each token of each rollout, float64 [R], so that the loss of the step is Σ_i weight_i · Σ_t ℓ_it.

    - `grpo`, `gspo`: 1 / (R·|o_i|): the mean over rollouts of the mean over tokens. A token of a long rollout weighs
      little (arXiv 2402.03300; 2507.18071).
    - `dapo`, `cispo`: 1 / Σ_j |o_j|: the mean over the tokens of the step (2503.14476; 2506.13585).
    - `dr_grpo`: 1 / (R·L_max): a constant, so that neither length nor what the siblings did changes how much a token
      counts (2503.20783).

    A rollout that is not learned from (cut off at the token limit, say) has length 0 and weight 0, but is one of the R:
    it was sampled, and what another rollout counts in grpo and dr_grpo does not depend on it. Leaving it out of
    `lengths` would make its siblings count more. Of a step without any loss token all weights are 0.

    Args:
        lengths: loss tokens of every rollout of the step, over all rows and ranks.
        loss: whose weights.
        max_new_tokens: L_max, the token limit of sampling; only `dr_grpo` looks at it.

    >>> rollout_weights([1, 4, 0], "grpo", 8) * 12
    array([4., 1., 0.])
    >>> rollout_weights([1, 4, 0], "dapo", 8)
    array([0.2, 0.2, 0. ])
    >>> rollout_weights([1, 4, 0], "dr_grpo", 8) * 24
    array([1., 1., 0.])
    """
    lengths_R = np.asarray(lengths, dtype=np.float64)
    learned_R = lengths_R > 0
    if loss in ("grpo", "gspo"):
        denominators_R = len(lengths_R) * lengths_R
    elif loss == "dr_grpo":
        denominators_R = np.full_like(lengths_R, len(lengths_R) * max_new_tokens)
    else:
        denominators_R = np.full_like(lengths_R, lengths_R.sum())
    return np.divide(1.0, denominators_R, out=np.zeros_like(lengths_R), where=learned_R)
