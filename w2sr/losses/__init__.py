"""Losses over packed rows: tensors in, tensors out. What a loss needs of a step is known before its first backward."""

from w2sr.losses.correction import importance_weights
from w2sr.losses.kl import k1, k2, k3
from w2sr.losses.objective import KL, Correction, Objective
from w2sr.losses.policy import policy_loss
from w2sr.losses.sft import sft_loss
from w2sr.losses.surrogates import cispo_loss, clipped_loss, ratio, sequence_log_ratio
from w2sr.losses.weights import rollout_weights

__all__ = [
    "KL",
    "Correction",
    "Objective",
    "cispo_loss",
    "clipped_loss",
    "importance_weights",
    "k1",
    "k2",
    "k3",
    "policy_loss",
    "ratio",
    "rollout_weights",
    "sequence_log_ratio",
    "sft_loss",
]
