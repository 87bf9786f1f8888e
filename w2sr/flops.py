"""Floating-point operations of training, counted from shapes, and what share of a machine's peak they use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel


def training_flops(lm: PreTrainedModel, lengths: Iterable[int], num_loss_tokens: int) -> float:
    """Operations of one forward and backward pass over packed segments.

    6 · P_body · tokens + 6 · P_head · loss tokens + 6 · layers · heads · head size · Σ length², where P_body counts
    the weights without embedding and head. The last term is causal attention: QKᵀ and PV, 2 operations a product,
    half of the square, three passes. Recomputation is not counted: this is the *model's* work (MFU, Chowdhery et al.,
    arXiv 2204.02311), not the hardware's.
    """
    config = lm.config
    embedding, head = (cast(Any, layer).weight for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()))
    outside = embedding.numel() + (0 if head is embedding else head.numel())
    body = sum(parameter.numel() for parameter in lm.parameters()) - outside
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = list(lengths)
    attention = config.num_hidden_layers * config.num_attention_heads * head_dim * sum(n * n for n in lengths)
    return 6.0 * (body * sum(lengths) + head.numel() * num_loss_tokens + attention)


def matmul_peak(
    device: torch.device,
    dtype: torch.dtype,
    size: int | None = None,
    seconds: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measured rate of a large square matrix product, in operations a second: the ceiling that MFU is held against.

    With `time.process_time` as the clock it is the rate a CPU second, which other processes hardly change.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    _wait(device)
    count, began = 0, clock()
    while clock() - began < seconds:
        left @ right
        _wait(device)
        count += 1
    return 2.0 * size**3 * count / (clock() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_parameters(module: nn.Module) -> int:
    """Weights of a module, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
