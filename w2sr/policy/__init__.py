"""The causal language model that reads packed rows, its adapters, and how it is loaded."""

from w2sr.policy.adapters import LoRA
from w2sr.policy.loading import DTypeName, context_length, empty_policy, load_policy, new_policy
from w2sr.policy.model import Policy, Recompute

__all__ = ["DTypeName", "LoRA", "Policy", "Recompute", "context_length", "empty_policy", "load_policy", "new_policy"]
