"""benchmarks/gpu.py runs to its end on a CPU, shrunken, without the packages that its machine need not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ABSENT = ["datasets", "jsonargparse", "pyarrow", "math_verify", "openai", "lightning.pytorch.cli"]
ABSENT += ["vllm", "trl", "liger_kernel", "flash_attn", "flash_attn_interface"]

PROGRAM = f"""
import runpy, sys
for name in {ABSENT}:
    sys.modules[name] = None  # importing it raises
sys.path.insert(0, "benchmarks")
sys.argv = ["benchmarks/gpu.py", *sys.argv[1:]]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def test_every_part_runs_on_shrunken_models(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    command += ["--minutes", "600"]  # a busy machine is no reason to leave parts out
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    record = json.loads((tmp_path / "cpu-all.json").read_text())
    parts = record["parts"]
    assert list(parts) == [
        "correctness",
        "ceilings",
        "sft-0.6b",
        "sft-7b",
        "peers",
        "decode",
        "grpo",
        "sft-1.5b",
        "liger",
    ]
    assert {row["result"] for row in parts["correctness"]} == {"right", "not available here"}
    assert sum(row["result"] == "right" for row in parts["correctness"]) >= 8
    assert [row.get("result") for row in parts["peers"]] == [None, "not installed"] * 2
    trained = [row for row in parts["sft-0.6b"] if "tokens/s" in row]
    assert len(trained) == 8 and all(row["tokens/s"] > 0 and len(row["step s"]) == 5 for row in trained)
    assert all(row["trained tokens/s"] > 0 for row in parts["grpo"]) and len(parts["grpo"]) == 2
    assert set(record["seconds"]) == set(parts) and record["goals"] == [], "shrunken models are not judged"
    page = (tmp_path / "cpu-all.md").read_text()
    assert "no number here is a result" in page and "| Qwen3-0.6B, 65,536, real lengths |" in page


def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "benchmarks/gpu.py"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "--device cpu --tiny" in done.stderr
