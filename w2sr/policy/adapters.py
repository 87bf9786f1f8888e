"""What trainable adapters of a frozen policy are configured by, and the embedding of a row that they change."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on every linear layer of the blocks, by peft, and the embedding
    row of the stop token (see `Policy.add_lora`).

    `rank` is the adapters' inner size, `alpha` / `rank` their scale.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


def table_of_its_own(embedding: nn.Module) -> nn.Module:
    """An embedding that computes as the given one does, from any table that is set as its `weight`."""
    table = copy.copy(embedding)  # the buffers are the same ones, also after the model was moved
    table._parameters = {}
    table.padding_idx = None  # rows of another table, and the padding token's row has a gradient like any other
    return table
