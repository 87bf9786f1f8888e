"""The LightningModules. They share functions, not a base class.

Each is imported when it is asked for: training needs none of what distillation does (pyarrow, rich).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2sr.modules.distill import DistillModule
    from w2sr.modules.evaluate import EvalModule
    from w2sr.modules.grpo import GRPOModule
    from w2sr.modules.sft import SFTModule

__all__ = ["DistillModule", "EvalModule", "GRPOModule", "SFTModule"]

_HOMES = {"DistillModule": "distill", "EvalModule": "evaluate", "GRPOModule": "grpo", "SFTModule": "sft"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
