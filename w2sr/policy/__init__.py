"""The causal language model that reads packed rows, its adapters, how it is loaded, and the probe that checks it."""

from w2sr.policy.adapters import LoRA
from w2sr.policy.loading import DTypeName, context_length, empty_policy, load_policy, new_policy
from w2sr.policy.model import Policy, Recompute
from w2sr.policy.probe import RefusedModel, check_model

__all__ = [
    "DTypeName",
    "LoRA",
    "Policy",
    "Recompute",
    "RefusedModel",
    "check_model",
    "context_length",
    "empty_policy",
    "load_policy",
    "new_policy",
]
