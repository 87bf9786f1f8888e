"""The LightningModules. They share functions, not a base class."""

from w2sr.modules.evaluate import EvalModule
from w2sr.modules.sft import SFTModule

__all__ = ["EvalModule", "SFTModule"]
