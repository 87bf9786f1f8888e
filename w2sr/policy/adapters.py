"""What trainable adapters of a frozen policy are configured by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on every linear layer of the blocks, by peft, and the embedding
    row of the stop token (see `Policy.add_lora`).

    `rank` is the adapters' inner size, `alpha` / `rank` their scale.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
