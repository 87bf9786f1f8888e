"""What `benchmarks/gpu.py` does around its measurements: shares of the time, goals, and lines written as they come."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu

        yield gpu
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_lines_are_on_disk_as_they_come_and_a_broken_part_loses_none(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, seen = [], []

    def on_disk() -> dict[str, Any]:
        (file,) = tmp_path.glob("*.json")
        return json.loads(file.read_text())["parts"]  # type: ignore[no-any-return]

    def part(bench: Any) -> Iterator[dict[str, Any]]:
        waits.append(bench.deadline - bench.part_deadline)
        yield {"what": "first", "tokens/s": 7.5}
        seen.append(on_disk())
        if len(waits) == 1:
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "PARTS", {"short": gpu.Part(part, 1), "long": gpu.Part(part, 3)})
    bench = gpu.Bench(torch.device("cpu"), True, time.monotonic() + 4000)
    results, failed = gpu.run_parts(bench, ["short", "long"], tmp_path, "all")
    line = {"what": "first", "tokens/s": 7.5}
    assert seen[0] == {"short": [line]}
    assert failed and results["short"][1]["result"] == "BROKEN" and "no such kernel" in results["short"][1]["traceback"]
    assert results["long"] == [line]
    assert on_disk() == results
    # three quarters of 4,000 s are the second part's, and the last part may use all that is left
    assert waits == [pytest.approx(3000, rel=0.05), 0]


def test_nothing_is_measured_with_what_is_wrong_or_out_of_time(gpu: Any) -> None:
    bench = gpu.Bench(torch.device("cpu"), True, time.monotonic() + 4000)
    bench.wrong = {"compile"}
    assert bench.why_not("summed_logprobs") is None
    assert bench.why_not("summed_logprobs", "compile") == "skipped: compile is wrong here"
    bench.part_deadline = time.monotonic() - 1
    assert bench.why_not() == "skipped: out of time"


def test_goals(gpu: Any) -> None:
    """The best of our settings counts.

    20,000 tokens/s beside 10,000 are 2 ×, and below 1.3 × 25,486 = 33,132. 80 GB are 74.5 GiB."""
    rows = "Qwen3-0.6B, 16,384, full rows"
    results = {
        "sft-0.6b": [
            {"what": rows, "tokens/s": 15_000.0},
            {"what": f"{rows}, fsdp2", "tokens/s": 20_000.0},
            {"what": f"{rows} and more", "tokens/s": 99_000.0},
            {"what": "Qwen3-0.6B, 65,536, full rows", "peak GiB": 74.0},
        ],
        "sft-7b": [{"what": "Qwen2.5-7B, 8,192, real lengths", "result": "out of memory"}],
        "peers": [{"what": f"transformers: {rows}", "tokens/s": 10_000.0}],
    }
    found = {row["goal"]: (row["found"], row["result"]) for row in gpu.judged(results)}
    assert [row["by"] for row in gpu.judged(results)][1] == f"{rows}, fsdp2"
    assert found == {
        "one H200: MFU of the 7B shape": ("", "not measured"),
        "one H200: 1.3 × 25,486 tokens/s, published for an H100": (20_000.0, "NOT reached"),
        "tokens/s beside TRL": ("", "not measured"),
        "tokens/s beside plain transformers": (2.0, "reached"),
        "rows of 65,536 in 80 GB": (74.0, "reached"),
    }
