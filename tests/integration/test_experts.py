"""A mixture of experts through the command line: one process and two, all weights and adapters, export."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from w2sr.chat import Chat
from w2sr.cli import main

FitConfig = Callable[..., Path]

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 300
SAVE = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 1, "save_top_k": -1, "save_last": True, "filename": "at-{step}"},
}
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}
RANKS_ATOL = 1e-4
"""Of a weight after two steps of SGD: float32 gradients that two ranks add in another order than one."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_world: Any) -> Path:
    """Four experts, two of them for a token, in the layout of the hub: a tensor an expert."""
    folder = tmp_path_factory.mktemp("experts") / "student"
    chat = Chat.load(tiny_world.student)
    torch.manual_seed(3)
    config = Qwen3MoeConfig(
        vocab_size=chat.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    chat.save(folder)
    assert "model.layers.0.mlp.experts.3.gate_proj.weight" in load_file(folder / "model.safetensors"), "guard"
    return folder


@pytest.mark.parametrize("lora", [None, {"rank": 3, "alpha": 9}], ids=["all weights", "adapters"])
def test_two_sharded_processes_train_the_student_of_one(
    lora: dict[str, Any] | None,
    student: Path,
    tmp_path: Path,
    fit_config: FitConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes: dict[str, Any] = {
        "model__student": str(student),
        "model__lora": lora,
        "model__learning_rates": {"sft": 0.1},
        "model__optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}},
        "trainer__max_steps": 2,
        "trainer__callbacks": [SAVE, EXPORT],
    }
    main(["fit", "--config", str(fit_config(tmp_path / "one", **changes))])
    two = fit_config(tmp_path / "two", **changes, trainer__devices=2, trainer__strategy="fsdp2")
    # each rank draws the beginning of adapters for itself, so with them two processes go on from a step of one
    words = ["--ckpt_path", str(tmp_path / "one" / "checkpoints" / "at-step=1.ckpt")] if lora else []
    done = subprocess.run(
        [sys.executable, "lightning_cli.py", "fit", "--config", str(two), *words],
        cwd=REPOSITORY,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    before = load_file(student / "model.safetensors")
    ones = load_file(tmp_path / "one" / "student" / "model.safetensors")
    assert ones.keys() == before.keys(), "the layout of the hub"
    experts = [name for name in ones if "experts" in name]
    assert max(float((ones[name] - before[name]).abs().max()) for name in experts) > 10 * RANKS_ATOL, "guard"
    twos = load_file(tmp_path / "two" / "student" / "model.safetensors")
    for name in ones:
        torch.testing.assert_close(twos[name], ones[name], atol=RANKS_ATOL, rtol=0, msg=name)
    for run in ("one", "two"):
        capsys.readouterr()
        main(["export", str(tmp_path / run), str(tmp_path / f"{run} exported")])
        said = capsys.readouterr().out
        assert "agree within" in said
        print(said)
        exported = load_file(tmp_path / f"{run} exported" / "model.safetensors")
        for name, weight in load_file(tmp_path / run / "student" / "model.safetensors").items():
            torch.testing.assert_close(exported[name], weight, atol=1e-6, rtol=0, msg=name)
