"""Packed rows of random tokens, by two protocols."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from w2sr.packing import pack_row, plan_epoch
from w2sr.types import IGNORE_INDEX, Segment, StepBatch

Protocol = Literal["full rows", "real lengths"]


def document(rng: np.random.Generator, length: int, num_prompt: int, vocabulary: int) -> Segment:
    input_ids = rng.integers(0, vocabulary, length)
    labels = np.append(input_ids[1:], IGNORE_INDEX)
    labels[: max(0, num_prompt - 1)] = IGNORE_INDEX
    return Segment("document", input_ids, labels)


def steps_of(protocol: Protocol, tokens: int, vocabulary: int, count: int) -> list[StepBatch]:
    """Optimizer steps of one row each. Real lengths: median 600 tokens, log-normal of σ 0.8, best-fit packed."""
    rng = np.random.default_rng(0)
    if protocol == "full rows":
        rows = [[document(rng, tokens, 1, vocabulary)] for _ in range(count)]
    else:
        middle = min(600, tokens // 8)
        lengths = np.exp(rng.normal(np.log(middle), 0.8, size=4 * count * tokens // middle)).astype(int)
        lengths = lengths.clip(8, tokens)
        plan = plan_epoch(lengths, seed=0, epoch=0, max_tokens=tokens, step_sequences=len(lengths))
        packed = plan.step_rows(0)  # those with the longest documents come first
        chosen = packed[:: len(packed) // count][:count]
        rows = [[document(rng, n, n // 5, vocabulary) for n in lengths[row].tolist()] for row in chosen]
    assert len(rows) == count, "enough documents for all rows"
    return [
        StepBatch([pack_row(row)], sum(s.num_loss_tokens for s in row), tuple(map(len, row)), ("",) * len(row), tokens)
        for row in rows
    ]


def on(device: torch.device, batch: Any) -> Any:
    """A row's tensors on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return type(batch)(*(on(device, part) if isinstance(part, Tensor | tuple) else part for part in batch))
