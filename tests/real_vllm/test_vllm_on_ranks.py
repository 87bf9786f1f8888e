"""Two processes with a vLLM each train a policy that is sharded over them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from starting import ENGINE, PYTHON, REPOSITORY, START_S, TEACHER, environment, skip_without_vllm

pytestmark = pytest.mark.vllm

SAME_KL = 1e-6
"""Nats a token between engines with the same float32 weights; 2e-9 was seen."""
NUM_ROUNDS = 2


def test_each_process_s_vllm_gets_the_whole_of_a_sharded_policy(
    tmp_path: Path, grpo_config: Callable[..., Path]
) -> None:
    """One writes the weights for both. A bonus for entropy moves the policy in rounds without a right answer too."""
    skip_without_vllm()
    arguments = {**ENGINE["engine_args"], "enable_chunked_prefill": False}
    config = grpo_config(
        tmp_path / "run",
        model__student=str(TEACHER),
        model__engine={"class_path": "w2sr.rollouts.VLLM", "init_args": {**ENGINE, "engine_args": arguments}},
        model__objective={"loss": "dapo", "entropy": 0.01},
        model__learning_rates={"grpo": 0.001},
        trainer__devices=2,
        trainer__strategy="fsdp2",
        trainer__max_epochs=1,
    )
    done = subprocess.run(
        [PYTHON, "lightning_cli.py", "fit", "--config", config],
        cwd=REPOSITORY,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == NUM_ROUNDS
    assert all(line["train/grad_norm"] > 0 for line in lines), "guard: the policy moves"
    assert all(abs(line["policy/mismatch_kl"]) < SAME_KL for line in lines)
