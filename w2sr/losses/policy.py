"""The loss of a packed row of rollouts, and what is watched of it.

    loss = Σ_t weight_t · ( w_t·ℓ_t(ρ_t, A_t) + β·KL_t − c·H_t ),   ρ = π_θ / π_old,   w = π_old / π_sampler

ℓ is the surrogate of `objective.loss`, w the bounded importance weight against the mismatch of sampler and trainer, KL
an estimate of the divergence from the reference policy (times ρ, if asked), H the entropy. Weights are known beforehand
(`rollout_weights`), so rows are summed, over micro-steps and ranks.

Legend: T packed tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2sr.losses.correction import importance_weights
from w2sr.losses.kl import estimated_kl, k1, k3
from w2sr.losses.objective import KL, Objective
from w2sr.losses.surrogates import cispo_loss, clipped_loss, ratio, sequence_log_ratio
from w2sr.types import PolicyRow


def policy_loss(
    logprobs_T: Tensor, entropies_T: Tensor | None, row: PolicyRow, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """This row's part of the loss of the optimizer step, a float32 scalar, and sums over its loss tokens.

    A loss token is one whose weight is not 0: a rollout of weight 0 is neither learned from nor watched. A row without
    `old_logprobs` is trained on by the policy that began the round: ρ = 1, with the gradient of log π.

    Args:
        logprobs_T: log π_θ of the row's labels, in nats.
        entropies_T: of π_θ at each token, in nats. None where nobody watches it and `objective.entropy` is 0.
        row: rollouts with their advantages and weights; `ref_logprobs` are needed where `objective.kl.coefficient` > 0.
        objective: what is optimised.

    Returns:
        The loss, and sums without gradient: add them over rows and ranks, and divide by `tokens`.

        - `tokens`; `ratio`, ρ (of GSPO that of the sequence).
        - `clipped_low`, `clipped_high`: tokens without a gradient because ρ is beyond that clip (of CISPO those whose
          weight it bounds); `clipped_dual` with `objective.dual_clip`.
        - `old_kl`, `mismatch_kl`: k3 estimates of KL(π_old ‖ π_θ) and KL(π_sampler ‖ π_old).
        - `correction`, `correction_limited`: w, and the tokens whose w met its limit.
        - `entropy`, where it was given; `kl`, from the reference policy by `objective.kl.estimator`, where the row has
          `ref_logprobs`.
    """
    counted_T = row.weights != 0
    old_logprobs_T = logprobs_T.detach() if row.old_logprobs is None else row.old_logprobs
    log_ratio_T = token_log_ratio_T = logprobs_T - old_logprobs_T
    if objective.loss == "gspo":
        log_ratio_T = sequence_log_ratio(token_log_ratio_T, row.segments, counted_T)
    advantages_T = _advantages(row, old_logprobs_T, objective.kl)
    correction_T, limited_T = importance_weights(
        old_logprobs_T, row.rollout_logprobs, row.segments, counted_T, objective.correction
    )
    loss_T = _surrogate(logprobs_T, log_ratio_T, advantages_T, objective) * correction_T
    watched = {
        "tokens": torch.ones_like(logprobs_T),
        **_clip_watch(log_ratio_T.detach(), advantages_T, objective),
        "old_kl": k3(old_logprobs_T, logprobs_T),
        "mismatch_kl": k3(row.rollout_logprobs, old_logprobs_T),
        "correction": correction_T,
        "correction_limited": limited_T,
    }
    if row.ref_logprobs is not None:
        watched["kl"] = estimated_kl(objective.kl.estimator, logprobs_T, row.ref_logprobs)
    if objective.kl.is_loss:
        assert row.ref_logprobs is not None, "a KL penalty needs ref_logprobs"
        factor_T = ratio(token_log_ratio_T) if objective.kl.times_ratio else 1.0
        loss_T = loss_T + objective.kl.coefficient * factor_T * watched["kl"]
    if entropies_T is not None:
        watched["entropy"] = entropies_T
    if objective.entropy > 0:
        assert entropies_T is not None, "an entropy bonus needs entropies"
        loss_T = loss_T - objective.entropy * entropies_T
    return (row.weights * loss_T).sum(), {name: _total(values_T, counted_T) for name, values_T in watched.items()}


def _advantages(row: PolicyRow, old_logprobs_T: Tensor, kl: KL) -> Tensor:
    if not kl.is_reward:
        return row.advantages
    assert row.ref_logprobs is not None, "a KL penalty needs ref_logprobs"
    return row.advantages - kl.coefficient * k1(old_logprobs_T, row.ref_logprobs)


def _surrogate(logprobs_T: Tensor, log_ratio_T: Tensor, advantages_T: Tensor, objective: Objective) -> Tensor:
    low, high = objective.clip
    if objective.loss == "cispo":
        return cispo_loss(logprobs_T, log_ratio_T, advantages_T, low, high)
    return clipped_loss(log_ratio_T, advantages_T, low, high, objective.dual_clip)


def _clip_watch(log_ratio_T: Tensor, advantages_T: Tensor, objective: Objective) -> dict[str, Tensor]:
    """The ratio, and which tokens a clip holds; a token of advantage 0 is never among them."""
    ratio_T = ratio(log_ratio_T)
    low, high = objective.clip
    bad_T, good_T = advantages_T < 0, advantages_T > 0
    if objective.loss == "cispo":
        bad_T = good_T = bad_T | good_T
    watch = {
        "ratio": ratio_T,
        "clipped_low": (ratio_T < 1 - low) & bad_T,
        "clipped_high": (ratio_T > 1 + high) & good_T,
    }
    if objective.dual_clip is not None:
        watch["clipped_dual"] = (ratio_T > objective.dual_clip) & bad_T
    return watch


def _total(values_T: Tensor, counted_T: Tensor) -> Tensor:
    """The float32 sum over the loss tokens; what other tokens have may be infinite."""
    return values_T.detach().masked_fill(~counted_T, 0).sum(dtype=torch.float32)
