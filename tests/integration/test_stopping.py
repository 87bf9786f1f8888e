"""Ctrl-C: what a run leaves behind, what it says, and that it goes on as if it had not been stopped."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from w2sr.cli import main
from w2sr.modules.checkpoints import WholeCheckpointIO
from w2sr.modules.sft import SFTModule
from w2sr.runs import Progress, read_label

FitConfig = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 240
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}
TABLE = {"class_path": "w2sr.callbacks.FinalTable"}
BEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "val/loss", "save_top_k": 1, "filename": "best-{step}"},
}
LATEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 2, "save_top_k": 1, "save_last": True, "filename": "latest-{step}"},
}


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """SIGINT has its usual handler, also where the tests run as a background job that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def changes(tiny_world: Any) -> dict[str, Any]:
    """3 epochs of 3 steps of several rows; validation (2 loaders) after steps 2, 4, 6 and 8: also at an epoch's end."""
    return {
        "data__max_tokens": 120,
        "data__held_out_frac": 0.2,
        "data__validation": {"five": {"path": str(tiny_world.validation)}},
        "trainer__max_epochs": 3,
        "trainer__val_check_interval": 2,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fit_config: FitConfig, changes: dict[str, Any]) -> Path:
    """The folder of a run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    main(["fit", "--config", str(fit_config(folder, trainer__callbacks=[BEST, LATEST, EXPORT], **changes))])
    return folder


def press_ctrl_c(patch: pytest.MonkeyPatch, method: str, step: int, call: int = 1) -> None:
    """Sends SIGINT in one call of `method` with so many optimizer steps done: by default in the first."""
    real, num_calls = getattr(SFTModule, method), [0]

    def pressed(self: Any, batch: Any, *more: Any) -> Any:
        num_calls[0] += self.trainer.global_step == step
        if self.trainer.global_step == step and num_calls[0] == call:
            signal.raise_signal(signal.SIGINT)
        return real(self, batch, *more)

    patch.setattr(SFTModule, method, pressed)


def stopped(config: Path, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The letter of a fit that a person stops."""
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), *words])
    assert end.value.code == 130
    return "Stopped" + capfd.readouterr().err.rpartition("Stopped")[2]


@pytest.mark.parametrize(
    ("method", "call", "step", "done", "callbacks"),
    [
        ("training_step", 1, 0, 1, []),  # the first step; no ModelCheckpoint of the configuration's
        ("training_step", 1, 1, 2, [BEST, LATEST]),  # validation follows: it is left before it begins
        ("validation_step", 1, 4, 4, [BEST, LATEST]),  # in validation, one step into the second epoch
        ("training_step", 1, 2, 3, []),  # the last step of an epoch
        ("validation_step", 2, 6, 6, [LATEST]),  # in the second loader of a validation at the end of an epoch
        ("training_step", 1, 8, 9, [BEST]),  # the last step of all: results are still missing
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(
    method: str,
    call: int,
    step: int,
    done: int,
    callbacks: list[Any],
    whole: Path,
    tmp_path: Path,
    fit_config: FitConfig,
    scalars: Scalars,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    config = fit_config(run, trainer__callbacks=[*callbacks, EXPORT], **changes)
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, method, step, call)
        letter = stopped(config, capfd)
    last = run / "checkpoints" / "last.ckpt"
    assert f"Stopped at optimizer step {done} of 9 (epoch {(done - 1) // 3}). Checkpoint: {last}\n" in letter
    assert read_label(last) == Progress(done, 9, (done - 1) // 3)
    assert not (run / "student").exists() and not (run / "finished.json").exists()
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    for tag in ("train/loss", "train/learning_rate", "train/grad_norm", "val/loss", "val/pass@1"):
        assert scalars(run, tag) == scalars(whole, tag), tag
    assert list(scalars(run, "train/loss")) == list(range(9)) and len(scalars(run, "val/loss")) == 4
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (run, whole)]
    torch.testing.assert_close(*weights, atol=0, rtol=0)
    if callbacks == [BEST, LATEST]:
        names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (run, whole)]
        assert names[0] == names[1], "no last-v1.ckpt beside it"


@pytest.mark.parametrize(("first", "every"), [(0, 1), (0, 2), (2, 2)])
def test_a_run_that_is_stopped_again_and_again(
    first: int,
    every: int,
    whole: Path,
    tmp_path: Path,
    fit_config: FitConfig,
    scalars: Scalars,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In every step, in every second one, and from the last one of the first epoch on in every second one."""
    run = tmp_path / "run"
    config, words = fit_config(run, trainer__callbacks=[EXPORT], **changes), []
    for step in range(first, 9, every):
        with monkeypatch.context() as patch:
            press_ctrl_c(patch, "training_step", step)
            assert f"Stopped at optimizer step {step + 1} of 9 (epoch {step // 3})" in stopped(config, capfd, *words)
        words = ["--ckpt_path", "last"]
    main(["fit", "--config", str(config), *words])
    for tag in ("train/loss", "train/learning_rate", "train/grad_norm", "val/loss", "val/pass@1"):
        assert scalars(run, tag) == scalars(whole, tag), tag
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (run, whole)]
    torch.testing.assert_close(*weights, atol=0, rtol=0)


def test_the_letter_names_commands_that_work(
    tmp_path: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Stopped twice: the second letter does not repeat `--ckpt_path`. Neither export nor table is made."""
    monkeypatch.setattr(sys, "argv", ["lightning_cli.py"])
    config, folder = fit_config(tmp_path / "unused", trainer__callbacks=[EXPORT, TABLE]), tmp_path / "a run"
    words: tuple[str, ...] = ("--trainer.default_root_dir", str(folder))
    for step in (2, 5):
        with monkeypatch.context() as patch:
            press_ctrl_c(patch, "training_step", step)
            letter = stopped(config, capfd, *words)
        first, on, anew = letter.splitlines()
        assert first.startswith(f"Stopped at optimizer step {step + 1} of 8 ")
        program, script, verb, *words = shlex.split(on.removeprefix("Go on: "))  # type: ignore[assignment]
        assert (program, script, verb) == ("python", "lightning_cli.py", "fit")
        assert words == ["--config", str(config), "--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
        words = tuple(words[2:])
    assert shlex.split(anew)[2:] == [
        *("python", "lightning_cli.py", "fit", "--config", str(config)),
        f"--trainer.default_root_dir={folder}-2",
    ]
    assert {path.name for path in folder.iterdir()} & {"student", "eval", "finished.json"} == set()
    main(["fit", "--config", str(config), *words])
    assert (folder / "student").is_dir() and (folder / "finished.json").is_file()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, fit_config: FitConfig) -> None:
    script = tmp_path / "twice.py"
    script.write_text(
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from w2sr.cli import main\nfrom w2sr.modules.sft import SFTModule\n"
        "real = SFTModule.training_step\n"
        "def pressed(self, *given):\n"
        "    if self.trainer.global_step == 1:\n"
        "        signal.raise_signal(signal.SIGINT)\n        signal.raise_signal(signal.SIGINT)\n"
        "    real(self, *given)\n"
        "SFTModule.training_step = pressed\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, str(script), "fit", "--config", str(fit_config(tmp_path / "run"))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("Ctrl-C again ends at once") == 1 and "Stopped at" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_no_room_for_the_checkpoint_of_a_stop_is_told(
    tmp_path: Path, fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError("The checkpoint cannot be written: No space left on device.")

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", full)
    press_ctrl_c(monkeypatch, "training_step", 1)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(fit_config(tmp_path / "run"))])
    assert end.value.code == 2 and "No space left on device" in capfd.readouterr().err


def test_ctrl_c_before_training_says_that_nothing_was_saved(
    tmp_path: Path, fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SFTModule, "configure_model", lambda self: signal.raise_signal(signal.SIGINT))
    letter = stopped(fit_config(tmp_path / "run"), capfd)
    assert letter == "Stopped outside of training: no checkpoint is written. What lies in the run directory stays.\n"
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_ctrl_c_has_its_usual_handler_again_after_training(tmp_path: Path, fit_config: FitConfig) -> None:
    main(["fit", "--config", str(fit_config(tmp_path / "run", trainer__max_steps=2))])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_background_job_that_ignores_ctrl_c_goes_on_ignoring_it(
    tmp_path: Path, fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    press_ctrl_c(monkeypatch, "training_step", 1)
    main(["fit", "--config", str(fit_config(tmp_path / "run"))])
    assert (tmp_path / "run" / "finished.json").is_file()


GROUP = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from w2sr.cli import main
from w2sr.modules.sft import SFTModule
method = os.environ["PRESS_IN"]
real = getattr(SFTModule, method)
def pressed(self, *given):
    if self.trainer.global_step == 3 and self.global_rank == 0:
        os.killpg(0, signal.SIGINT)  # what a terminal does
        setattr(SFTModule, method, real)
    return real(self, *given)
setattr(SFTModule, method, pressed)
main()
"""


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("training_step", {"data__num_workers": 2}),
        ("validation_step", {"trainer__devices": 2, "trainer__strategy": "ddp", "data__num_workers": 2}),
    ],
)
def test_all_processes_of_a_terminal_get_the_signal(
    method: str,
    settings: dict[str, Any],
    tmp_path: Path,
    fit_config: FitConfig,
    scalars: Scalars,
    changes: dict[str, Any],
) -> None:
    """Ranks stop in the same step, with one letter."""
    changes = {**changes, "trainer__val_check_interval": 3, "trainer__callbacks": [EXPORT], **settings}
    (tmp_path / "press.py").write_text(GROUP)
    config = fit_config(tmp_path / "run", **changes)

    def run(name: str, *words: str) -> tuple[int, str]:
        command = [sys.executable, str(tmp_path / "press.py"), "fit", "--config", str(config), *words]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PRESS_IN": name}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                errors = process.communicate(timeout=HANG_S)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail("hangs")
        return process.returncode, errors

    code, errors = run(method)
    assert code == 130, errors[-3000:]
    done = 4 if method == "training_step" else 3
    assert errors.count("Stopped at optimizer step ") == 1 and f"Stopped at optimizer step {done} of 9" in errors
    assert "Traceback" not in errors and "exited unexpectedly" not in errors
    code, errors = run("on_test_start", "--ckpt_path", "last")  # a method that fit does not call
    assert code == 0, errors[-3000:]
    assert list(scalars(tmp_path / "run", "train/loss")) == list(range(9))
    assert (tmp_path / "run" / "student").is_dir()
