"""Liger's kernels. The last part, because they replace transformers' own in the process."""

from __future__ import annotations

from collections.abc import Iterator

from gpu_parts.bench import Bench, Row, installed
from gpu_parts.correctness import FLOAT32_ATOL, eager_logprobs, small_model, small_row, verdict
from gpu_parts.rows import on
from gpu_parts.sft import Cell, sft
from w2sr.kernels import Kernels, use_kernels


def liger(bench: Bench) -> Iterator[Row]:
    """Liger's kernels: right, and how fast? The last part, because they replace transformers' own in the process."""
    if not installed("liger_kernel") or bench.device.type != "cuda":
        yield {"what": "liger", "result": "not available here"}
        return
    row = on(bench.device, small_row(97, [40, 3, 129, 17]))
    expected = eager_logprobs(small_model(bench), row)
    fused = small_model(bench)
    use_kernels(fused, Kernels(liger=True))
    yield verdict(bench, "float32", "liger", fused(row), expected, FLOAT32_ATOL)
    yield from sft(bench, [Cell("Qwen3-0.6B", 16_384, "full rows", Kernels(liger=True))])
