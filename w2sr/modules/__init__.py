"""The LightningModules. They share functions, not a base class."""

from w2sr.modules.distill import DistillModule
from w2sr.modules.evaluate import EvalModule
from w2sr.modules.grpo import GRPOModule
from w2sr.modules.sft import SFTModule

__all__ = ["DistillModule", "EvalModule", "GRPOModule", "SFTModule"]
