"""Loss and gradient of a step equal those of TRL's GRPOTrainer: `benchmarks/trl_equality.py`, variant by variant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the peer is an extra: pip install w2sr[bench]")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import trl_equality
    finally:
        sys.path.remove(str(BENCHMARKS))
    return trl_equality


# of 14 variants those that have between them every loss, both penalties, a mask of rollouts and a correction
@pytest.mark.parametrize(
    "name",
    [
        "grpo, dual clip 1.3",
        "grpo, KL k3, β = 0.1",
        "dapo, batch std, KL k3 · ρ, β = 0.1",
        "dr_grpo, no std",
        "cispo, ratio ≤ 1.2",
        "dapo, cut-off rollouts masked",
        "gspo, w truncated at 2 by sequences",
        "grpo, w masked outside [1/2, 2] by sequences",
    ],
)
def test_a_step_equals_trls(benchmark: Any, name: str) -> None:
    (variant,) = [variant for variant in benchmark.VARIANTS if variant.name == name]
    result = benchmark.compare(variant)
    assert result.loss_apart < benchmark.TOLERANCE and result.gradient_apart < benchmark.TOLERANCE
    assert result.advantages_apart < benchmark.TOLERANCE
    assert result.watched["clipped_low"] + result.watched["clipped_high"] > 0, "guard: clips are met"
