"""The rates that nothing on this machine exceeds."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpu_parts.bench import Bench, Row


def ceilings(bench: Bench) -> Iterator[Row]:
    """The rates that nothing on this machine exceeds: a large matrix product, and a copy of memory."""
    yield {"what": f"matrix product, {bench.dtype}".replace("torch.", ""), "TFLOP/s": bench.peak / 1e12}
    numbers = torch.empty(1 << (16 if bench.tiny else 30), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(numbers)
    seconds = bench.seconds(lambda: target.copy_(numbers), repeats=20)
    yield {"what": "copy (read and written)", "TB/s": 2 * numbers.numel() / seconds / 1e12}
