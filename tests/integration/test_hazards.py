"""Hazards of a run: a second one in its directory, a changed configuration, a metric without a value, an idle rank."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from w2sr.cli import main
from w2sr.modules.sft import SFTModule

Config = Callable[..., Path]

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 240
RANK_RTOL = 1e-4
"""Two ranks add the same float32 gradients in another order than one."""
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}
BEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "val/loss", "save_top_k": 1, "filename": "best-{step}"},
}
LAST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 1, "save_top_k": 1, "save_last": True, "filename": "latest-{step}"},
}
HALVES = {"data__held_out_frac": 0.2, "trainer__val_check_interval": 2, "trainer__max_epochs": 5}
"""5 epochs of 3 steps; validation after steps 2, 4, 6..."""


def early_stopping(**settings: Any) -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "patience": 2, **settings},
    }


def validation_losses(patch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Lets the n-th validation of a run end with the n-th of these losses."""
    real, given = SFTModule.on_validation_epoch_end, iter(losses)

    def end(self: SFTModule) -> None:
        self._val_loss[0] = next(given) * self._val_loss[1]
        real(self)

    patch.setattr(SFTModule, "on_validation_epoch_end", end)


def fit(config: Path, *words: str) -> None:
    main(["fit", "--config", str(config), *words])


def refusal(config: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        fit(config, *words)
    assert end.value.code == 2
    return capsys.readouterr().err.rpartition("error: ")[2]


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --- metrics that end a run, or have no value


def test_early_stopping_ends_a_run_that_is_finished(
    tmp_path: Path, fit_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses 3, 2, 2, 2: two validations without an improvement, so the run ends after step 8 of 15."""
    folder = tmp_path / "run"
    validation_losses(monkeypatch, [3.0, 2.0, 2.0, 2.0])
    config = fit_config(folder, trainer__callbacks=[early_stopping(), BEST, LAST, EXPORT], **HALVES)
    fit(config)
    assert json.loads((folder / "finished.json").read_text())["step"] == 8
    assert checkpoint_names(folder) == ["best-step=4.ckpt", "last.ckpt", "latest-step=8.ckpt"]
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8
    student = load_file(folder / "student" / "model.safetensors")
    assert len(student) > 10
    for name, weight in student.items():
        assert torch.equal(weight, saved["state_dict"][f"policy.lm.{name}"]), name
    assert "holds a finished run of 8 optimizer steps" in refusal(config, capsys)


def test_early_stopping_counts_on_after_a_stop(
    tmp_path: Path, fit_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses; the run is killed after step 6, with one validation without an improvement in its count."""
    folder = tmp_path / "run"
    config = fit_config(folder, trainer__callbacks=[early_stopping(), LAST], **HALVES)
    real = SFTModule.training_step

    def killed(self: SFTModule, *given: Any) -> None:
        if self.trainer.global_step == 6:
            raise RuntimeError("killed")
        real(self, *given)

    with monkeypatch.context() as patch:
        validation_losses(patch, [3.0, 2.0, 2.0])
        patch.setattr(SFTModule, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(config)
    validation_losses(monkeypatch, [2.0, 2.0])  # that after step 6 is done once more
    fit(config, "--ckpt_path", "last")
    assert json.loads((folder / "finished.json").read_text())["step"] == 8


def test_a_metric_that_is_nan_is_never_the_best(
    tmp_path: Path, fit_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    validation_losses(monkeypatch, [math.nan, 3.0, math.nan, 5.0, math.nan, 4.0, math.nan])
    fit(fit_config(folder, trainer__callbacks=[BEST], **HALVES))
    assert checkpoint_names(folder) == ["best-step=4.ckpt"]


def test_early_stopping_ends_on_nan_with_the_best_kept(
    tmp_path: Path, fit_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    validation_losses(monkeypatch, [3.0, math.nan])
    fit(fit_config(folder, trainer__callbacks=[early_stopping(), BEST], **HALVES))
    assert json.loads((folder / "finished.json").read_text())["step"] == 4
    assert checkpoint_names(folder) == ["best-step=2.ckpt"]


def test_a_metric_that_nothing_logs_is_named(tmp_path: Path, fit_config: Config) -> None:
    callbacks = [early_stopping(monitor="val/los")]
    with pytest.raises(RuntimeError, match=r"metric `val/los` which is not available.*`val/loss`"):
        fit(fit_config(tmp_path / "run", trainer__callbacks=callbacks, **HALVES))


# --- two runs in one directory


def test_a_directory_that_a_run_is_in_is_refused(
    tmp_path: Path, fit_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run starts while the first one loads its model: no file says yet that there is a run."""
    folder = tmp_path / "run"
    config = fit_config(folder, trainer__callbacks=[EXPORT], trainer__max_epochs=1)
    real, second = SFTModule.configure_model, []

    def meanwhile(self: SFTModule) -> None:
        if not second:
            command = [sys.executable, "lightning_cli.py", "fit", "--config", str(config)]
            assert not (folder / "config.yaml").exists()
            second.append(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S))
        real(self)

    monkeypatch.setattr(SFTModule, "configure_model", meanwhile)
    fit(config)
    (other,) = second
    assert other.returncode == 2 and "Traceback" not in other.stderr
    assert f"error: {folder} is being written by pid {os.getpid()} on " in other.stderr
    assert f"add --trainer.default_root_dir={folder}-2" in other.stderr
    assert (folder / "student" / "model.safetensors").exists() and not (folder / ".fit.lock").exists()
    assert "holds a finished run" in refusal(config, capsys)
    assert not (folder / ".fit.lock").exists()


# --- a run that goes on with something else


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, fit_config: Config) -> Path:
    """A checkpoint after step 3 of 8, in the middle of the first epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    fit(fit_config(folder, trainer__callbacks=[LAST], trainer__max_steps=3))
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__step_sequences": 5}, "step_sequences=4 there, step_sequences=5 here"),
        ({"data__seed": 7}, "seed=0 there, seed=7 here"),
        ({"data__window": 2}, "window=1 there, window=2 here"),
        ({"data__keep": "all"}, "num_traces=15, traces_hash="),
        ({"data__supervision": "process_only"}, "traces_hash="),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_optimizer_steps_are_refused(
    changes: dict[str, Any],
    said: str,
    tmp_path: Path,
    fit_config: Config,
    stopped: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    letter = refusal(fit_config(tmp_path / "run", **changes), capsys, "--ckpt_path", str(stopped))
    assert letter.startswith("The checkpoint is of a run with other optimizer steps: ") and said in letter
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_does_not_change_the_steps_may_change(
    tmp_path: Path, fit_config: Config, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shorter rows and loader threads: the same 4 traces a step, in other rows."""
    changes = {"data__max_tokens": 120, "data__num_workers": 1, "trainer__max_epochs": 1}
    fit(fit_config(tmp_path / "run", trainer__callbacks=[LAST], **changes), "--ckpt_path", str(stopped))
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_what_changed_is_said(
    tmp_path: Path, fit_config: Config, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    fit(fit_config(folder, trainer__callbacks=[LAST], trainer__max_epochs=1))
    config = fit_config(folder, trainer__callbacks=[LAST], data__max_tokens=120, model__clip_norm=0.5)
    with caplog.at_level("INFO"):
        fit(config, "--ckpt_path", "last")
    (said,) = [record.getMessage() for record in caplog.records if "configuration differs" in record.getMessage()]
    assert said.splitlines() == [
        f"The configuration differs from that of {folder / 'config.yaml'} (before -> now):",
        "  data.init_args.max_tokens: 160 -> 120",
        "  model.init_args.clip_norm: 0.7 -> 0.5",
        "  trainer.max_epochs: 1 -> 2",
    ]
    caplog.clear()
    with caplog.at_level("INFO"):
        fit(config, "--ckpt_path", "last")
    assert "configuration differs" not in caplog.text


# --- fewer problems than ranks


def test_a_rank_without_a_rollout_trains_with_the_other(tmp_path: Path, grpo_config: Config) -> None:
    """One problem a round on two ranks: the second one samples, verifies and scores nothing."""
    changes: dict[str, Any] = {
        "data__step_problems": 1,
        "trainer__max_steps": 3,
        "model__group_size": 16,
        "model__rollouts": {"temperature": 4.0, "max_new_tokens": 12},  # so hot that some rollouts stop early
        "model__optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
        "trainer__callbacks": [EXPORT],
    }
    for name, more in (("one", {}), ("two", {"trainer__devices": 2, "trainer__strategy": "ddp"})):
        config = grpo_config(tmp_path / name, **changes, **more)
        command = [sys.executable, "lightning_cli.py", "fit", "--config", str(config)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 3 and any(line["groups/dead_frac"] == 0 for line in one), "some round teaches"
    for mine, theirs in zip(one, two, strict=True):
        for name in ("reward/mean", "rollouts/tokens_mean", "train/loss", "train/grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=RANK_RTOL, abs=1e-6), name
    ours, others = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    for name, weight in ours.items():
        torch.testing.assert_close(others[name], weight, rtol=RANK_RTOL, atol=1e-6)
