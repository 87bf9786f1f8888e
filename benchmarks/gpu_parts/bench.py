"""What all parts share: the device, its clock and memory, and when to stop."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

import torch

from w2sr.flops import matmul_peak
from w2sr.scaling import GIB

MEASURED_STEPS, WARM_UP_STEPS = 5, 2
SKIPPED = "skipped: out of time"

Row = dict[str, Any]
"""One line of a table: column → value."""


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        device: where it runs.
        tiny: everything is shrunk: a check of the script.
        deadline, part_deadline: `time.monotonic()` at which no further measurement begins, of any part and of the present one.
        wrong: engines and kernels that `correctness` found wrong: nothing is timed with them.
    """

    device: torch.device
    tiny: bool
    deadline: float
    part_deadline: float = float("inf")
    wrong: set[str] = field(default_factory=set)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def backend(self) -> str:
        """Of torch.compile. On a CPU the script is checked without waiting for a C++ compiler."""
        return "inductor" if self.device.type == "cuda" else "aot_eager"

    @cached_property
    def peak(self) -> float:
        """Measured rate of a large matrix product, in operations a second."""
        return matmul_peak(self.device, self.dtype, 128 if self.tiny else None, 0.05 if self.tiny else 1.0)

    def why_not(self, *used: str) -> str | None:
        """Why nothing is measured now, by what `correctness` found of what would be used, or by the clock; or None."""
        if broken := sorted(self.wrong & set(used)):
            return f"skipped: {', '.join(broken)} is wrong here"
        return SKIPPED if time.monotonic() > min(self.deadline, self.part_deadline) else None

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Median wall seconds of `work`, after one call that is not counted."""
        work()
        times = []
        for _ in range(1 if self.tiny else repeats):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return median(times)

    def forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else float("nan")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
