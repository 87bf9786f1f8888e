"""The curves of a small SFT run and a small GRPO run are those that `regenerate.py` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import regenerate

CURVE_RTOL, CURVE_ATOL = 2e-4, 1e-6
"""Another version of torch adds float32 numbers in another order, and ten optimizer steps carry that on."""


@pytest.mark.parametrize("name", regenerate.CURVES)
def test_the_curve_is_the_golden_one(name: str, tmp_path: Path) -> None:
    golden = [json.loads(line) for line in (regenerate.HERE / f"{name}.txt").read_text().splitlines()]
    found = regenerate.CURVES[name](tmp_path)
    assert len(found) == len(golden) >= 5
    for step, (mine, wanted) in enumerate(zip(found, golden, strict=True)):
        assert mine == pytest.approx(wanted, rel=CURVE_RTOL, abs=CURVE_ATOL), f"{name}, step {step}"


@pytest.mark.parametrize("name", regenerate.CURVES)
def test_the_golden_curve_is_interesting(name: str) -> None:
    golden = [json.loads(line) for line in (regenerate.HERE / f"{name}.txt").read_text().splitlines()]
    assert len({line["train/loss"] for line in golden}) == len(golden)
    if name == "sft":
        norms = [line["train/grad_norm"] for line in golden]
        assert min(norms) < 2.2 < max(norms), "the gradient is clipped in some steps and not in others"
        assert golden[-1]["train/loss"] < 0.9 * golden[0]["train/loss"]
    else:
        assert all(line["policy/clipped_high"] > 0 and line["policy/clipped_low"] > 0 for line in golden)
        assert golden[0]["policy/kl"] < golden[-1]["policy/kl"]
