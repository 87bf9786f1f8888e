"""GRPO through the command line: rounds, what they leave behind, and going on after a kill."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from w2sr.runs import newest_checkpoint, read_label

REPOSITORY = Path(__file__).resolve().parents[2]
SAVE_LAST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 1, "save_top_k": 1, "save_last": True, "filename": "latest-{step}"},
}
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}
TABLE = {"class_path": "w2sr.callbacks.FinalTable"}
TEXT = {"class_path": "w2sr.callbacks.RolloutText", "init_args": {"every": 2}}
CLOCK = ("seconds/", "speed/")
"""Values of a round that no two runs share."""

RANK_RTOL = 1e-4
"""Two ranks add the same float32 gradients in another order than one; over four rounds weights drift in the last
bits. A wrong denominator is off by a factor."""

GrpoConfig = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]


def run_cli(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "lightning_cli.py", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def fit(config: Path, *words: str) -> str:
    done = run_cli("fit", "--config", str(config), *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl without what a clock says. Where no token was trained on, means over them are NaN."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [
        {name: math.nan if value is None else value for name, value in line.items() if not name.startswith(CLOCK)}
        for line in lines
    ]


@pytest.fixture(scope="module")
def more(tiny_world: Any) -> dict[str, Any]:
    """All that has a state: two mini-batches in two passes, a reference policy, dynamic sampling, a curriculum."""
    return {
        "data__validation": {"five": {"path": str(tiny_world.validation)}},
        "data__curriculum": {"low": 0.01, "high": 0.99, "keep_frac": 0.5},
        "model__minibatches": 2,
        "model__passes": 2,
        "model__warmup_frac": 0.5,
        "model__objective": {"loss": "grpo", "kl": {"coefficient": 0.1, "estimator": "k3"}, "entropy": 0.001},
        "model__dynamic_sampling": {"max_batches": 3},
        "trainer__max_epochs": 3,
        "trainer__callbacks": [SAVE_LAST, EXPORT],
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, grpo_config: GrpoConfig, more: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("grpo") / "whole"
    fit(grpo_config(folder, **more))
    return folder


def test_rewards_rise(tmp_path: Path, grpo_config: GrpoConfig) -> None:
    """Short completions earn more: in 16 rounds a random policy learns to stop early."""
    folder = tmp_path / "run"
    fit(grpo_config(folder, trainer__max_epochs=8))
    lengths = [line["rollouts/tokens_mean"] for line in rounds(folder)]
    assert len(lengths) == 16 and sum(lengths[-4:]) < 0.7 * sum(lengths[:4])


def test_everything_is_watched(tmp_path: Path, grpo_config: GrpoConfig, tiny_world: Any, scalars: Scalars) -> None:
    folder = tmp_path / "run"
    fit(
        grpo_config(
            folder,
            data__validation={"five": {"path": str(tiny_world.validation)}},
            data__benchmarks={"quiz": {"path": str(tiny_world.validation)}},
            trainer__callbacks=[EXPORT, TEXT, TABLE],
        )
    )
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    for name in (
        "reward/mean", "reward/std", "reward/short", "rollouts/pass_rate", "rollouts/tokens_mean",
        "rollouts/cut_off_frac", "policy/entropy", "policy/mismatch_kl", "policy/clipped_low", "policy/clipped_high",
        "advantage/std", "groups/dead_frac", "speed/rollout_tokens_per_s", "speed/train_tokens_per_s",
        "seconds/rollouts", "seconds/train", "train/loss", "train/grad_norm", "train/learning_rate",
    ):  # fmt: skip
        logged = scalars(folder, name)
        expected = {line["round"]: math.nan if line[name] is None else line[name] for line in lines}
        assert logged == pytest.approx(expected, rel=1e-6, nan_ok=True), name
    assert any(name.startswith("pass_rate/") for name in lines[0])
    assert lines[0]["reward/mean"] == pytest.approx(2 * lines[0]["reward/short"]), "the weight of the term is 2"
    assert lines[0]["policy/ratio"] == 1 and lines[0]["policy/mismatch_kl"] < 1e-6
    result = json.loads((folder / "eval" / "grpo" / "result.json").read_text())
    assert result["name"] == "GRPO" and result["cost"]["num_train_tokens"] > 0
    assert result["extra"]["rounds"] == 4 and result["extra"]["last_round"]["round"] == 3
    assert result["extra"]["seconds/train"] == pytest.approx(sum(line["seconds/train"] for line in lines))
    card = (folder / "student" / "README.md").read_text()
    assert "reinforcement learning" in card and "short (weight 2)" in card and "Rounds: 4" in card
    assert scalars(folder, "val/pass@1")


def test_killed_at_any_moment_it_goes_on_bit_for_bit(
    whole: Path, tmp_path: Path, grpo_config: GrpoConfig, more: dict[str, Any]
) -> None:
    """SIGKILL twice, in the middle of a round; the curve and the weights are those of the uninterrupted run."""
    folder = tmp_path / "killed"
    config = grpo_config(folder, **more)
    command = [sys.executable, "lightning_cli.py", "fit", "--config", str(config), "--ckpt_path", "last"]
    for wanted in (1, 3):
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not ((folder / "rounds.jsonl").exists() and len(rounds_so_far(folder)) > wanted):
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it was killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "finished.json").exists()
    last = newest_checkpoint(folder)
    label = read_label(last) if last is not None else None
    assert label is not None and label.step % 4 == 0 and label.num_steps == 24  # 3 epochs of 2 rounds of 4 steps
    fit(config, "--ckpt_path", "last")
    assert rounds(folder) == rounds(whole) and len(rounds(whole)) == 6
    ours, theirs = (load_file(run / "student" / "model.safetensors") for run in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def rounds_so_far(folder: Path) -> list[str]:
    return (folder / "rounds.jsonl").read_text().splitlines()


def test_several_updates_move_the_ratio_away_from_one(whole: Path) -> None:
    line = rounds(whole)[1]
    assert line["policy/ratio"] != 1 and line["policy/old_kl"] > 0 and line["policy/kl"] > 0
    assert rounds(whole)[0]["groups/sampled"] >= 3


@pytest.mark.parametrize(("loss", "strategy"), [("grpo", "ddp"), ("dr_grpo", "fsdp2")])
def test_two_processes_have_the_curve_of_one(tmp_path: Path, grpo_config: GrpoConfig, loss: str, strategy: str) -> None:
    """Three problems on two ranks: one samples two groups, the other one."""
    changes: dict[str, Any] = {
        "model__objective": {"loss": loss},
        "model__optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
        "model__max_tokens": 90,
        "trainer__callbacks": [EXPORT],
    }
    fit(grpo_config(tmp_path / "one", **changes))
    fit(grpo_config(tmp_path / "two", **changes, trainer__devices=2, trainer__strategy=strategy))
    one, two = rounds(tmp_path / "one"), rounds(tmp_path / "two")
    assert len(one) == len(two) == 4
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=RANK_RTOL, abs=1e-6, nan_ok=True)
    ours, theirs_too = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs_too[name], weight, rtol=RANK_RTOL, atol=1e-6)


def test_with_adapters_the_reference_policy_needs_no_copy(tmp_path: Path, grpo_config: GrpoConfig) -> None:
    """Adapters begin at zero, so the KL begins at exactly zero."""
    folder = tmp_path / "run"
    fit(
        grpo_config(
            folder,
            model__lora={"rank": 4, "alpha": 8},
            model__objective={"loss": "grpo", "kl": {"coefficient": 0.1, "estimator": "k3"}},
            trainer__callbacks=[EXPORT],
        )
    )
    kl = [line["policy/kl"] for line in rounds(folder)]
    assert kl[0] == 0 and kl[-1] > 0
    assert (folder / "student" / "model.safetensors").exists()


def test_w2sr_then_reinforcement_learning_then_w2sr(
    tmp_path: Path, grpo_config: GrpoConfig, fit_config: Callable[..., Path]
) -> None:
    """What a run leaves is the student of the next one, in both orders."""
    fit(fit_config(tmp_path / "w2sr", trainer__max_epochs=1, trainer__callbacks=[EXPORT]))
    after_w2sr = grpo_config(tmp_path / "rl", model__student=str(tmp_path / "w2sr" / "student"))
    fit(after_w2sr, "--trainer.max_epochs=1", "--trainer.callbacks+=w2sr.callbacks.ExportStudent")
    fit(fit_config(tmp_path / "again", model__student=str(tmp_path / "rl" / "student"), trainer__max_epochs=1))
    card = (tmp_path / "rl" / "student" / "README.md").read_text()
    assert f"Made from `{tmp_path / 'w2sr' / 'student'}`" in card
