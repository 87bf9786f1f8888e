"""What trainable adapters of a frozen policy are configured by, and the embedding of a row that they change."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on every linear layer of the blocks, by peft, and the embedding
    row of the stop token (see `Policy.add_lora`).

    `rank` is the adapters' inner size, `alpha` / `rank` their scale. Experts that share one tensor have adapters too;
    peft has no `dropout` for those, and GRPO refuses it.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


def table_of_its_own(embedding: nn.Module) -> Any:
    """An embedding that computes as the given one does, from any table that is set as its `weight`."""
    table: Any = copy.copy(embedding)  # the buffers are the same ones, also after the model was moved
    table._parameters = {}
    table.padding_idx = None  # rows of another table, and the padding token's row has a gradient like any other
    return table


def adapted_weights(lm: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """id of an adapted weight → name and module of its adapter. Also one of several weights of a module (experts)."""
    found = {}
    for name, module in lm.named_modules():
        if "lora_A" in module._modules:
            base: Any = cast(Any, module).get_base_layer()
            found[id(getattr(base, getattr(module, "parameter_name", "weight")))] = (name, module)
    return found


def added_weight(adapter: nn.Module, weight: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """What an adapter adds to `weight`, by peft's own rule for its kind of layer.

    Args:
        adapter: peft's module; its own weights may lie elsewhere, in shards or on the meta device.
        weight, inner, outer: the frozen weight and the adapter's two, whole.
    """
    here: Any = copy.copy(adapter)
    sides = {"lora_A": {"default": SimpleNamespace(weight=inner)}, "lora_B": {"default": SimpleNamespace(weight=outer)}}
    here._modules = {**adapter._modules, **sides}
    here.__dict__["get_param"] = lambda: weight
    return cast(Tensor, here.get_delta_weight("default")).to(weight.dtype)
