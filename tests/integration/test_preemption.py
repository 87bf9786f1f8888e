"""SLURM asks a job to make room: a whole checkpoint, a requeue, and the loss curve of a run that nobody asked.

No SLURM runs here: its environment is one variable, and its `scontrol` a script that writes down what it is told.
`benchmarks/preemption.py` sends 20 signals at random times; `tests/real_slurm` has SLURM send them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from w2sr.cli import main
from w2sr.modules.sft import SFTModule
from w2sr.runs import read_label
from w2sr.traces import TraceWriter, read_store

FitConfig = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 240
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is job 71, as far as our program looks at it. Returns the file of what `scontrol` was told."""
    programs, told = tmp_path / "bin", tmp_path / "scontrol.log"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    (programs / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    return told


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of the test process are afterwards what they were."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    assert {signum: signal.getsignal(signum) for signum in before} == before


def asked(
    config: Path, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], signum: signal.Signals, method: str
) -> tuple[int, str]:
    """Exit status and letter of a fit that gets the signal in the first call of a method from the third step on."""
    real, sent = getattr(SFTModule, method), list[bool]()

    def pressed(self: Any, *given: Any) -> Any:
        if not sent and (method == "configure_model" or self.trainer.global_step >= 2):
            sent.append(True)
            signal.raise_signal(signum)
        return real(self, *given)

    with patch.context() as context, pytest.raises(SystemExit) as end:
        context.setattr(SFTModule, method, pressed)
        main(["fit", "--config", str(config)])
    assert sent, "guard: the signal was sent"
    return int(end.value.code or 0), capfd.readouterr().err


def test_it_saves_and_is_requeued(
    tmp_path: Path,
    job: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, letter = asked(fit_config(tmp_path / "run"), monkeypatch, capfd, signal.SIGUSR1, "training_step")
    assert code == 0, "for SLURM it has not failed"
    assert "Stopped at optimizer step 3 of 8 (epoch 0). Checkpoint: " in letter and "Go on: " not in letter
    assert "SLURM is asked to requeue job 71." in letter and job.read_text() == "requeue 71\n"
    label = read_label(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert label is not None and label.step == 3


def test_in_validation_too(
    tmp_path: Path,
    job: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = fit_config(tmp_path / "run", data__held_out_frac=0.2)
    code, letter = asked(config, monkeypatch, capfd, signal.SIGUSR1, "validation_step")
    assert code == 0 and "Stopped at optimizer step 3 of 6" in letter and job.read_text() == "requeue 71\n"


def test_a_cancelled_job_saves_and_is_not_requeued(
    tmp_path: Path,
    job: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`scancel`, and pre-emption by SLURM itself, announce SIGKILL with SIGTERM: who wants a requeue does it."""
    code, letter = asked(fit_config(tmp_path / "run"), monkeypatch, capfd, signal.SIGTERM, "training_step")
    assert code == 128 + signal.SIGTERM
    assert "Stopped at optimizer step 3 of 8" in letter and "Go on: " in letter and "Ctrl-C" not in letter
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file() and not job.exists()


def test_a_requeue_that_slurm_refuses_is_told(
    tmp_path: Path, fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho Operation is presently disabled >&2; exit 1\n")
    code, letter = asked(fit_config(tmp_path / "run"), monkeypatch, capfd, signal.SIGUSR1, "training_step")
    assert code == 2
    assert "error: SLURM does not requeue job 71 (scontrol requeue 71: Operation is presently disabled)." in letter
    assert "submit it again with --ckpt_path last" in letter
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_outside_of_slurm_nothing_is_requeued(
    tmp_path: Path,
    job: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    code, letter = asked(fit_config(tmp_path / "run"), monkeypatch, capfd, signal.SIGUSR1, "training_step")
    assert code == 128 + signal.SIGUSR1
    assert "Stopped at optimizer step 3 of 8" in letter and "Go on: " in letter and not job.exists()


def test_before_training_there_is_nothing_to_save(
    tmp_path: Path,
    job: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """So it is in `predict`, whose store is whole at any moment. One task of an array is requeued, not the array."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    code, letter = asked(fit_config(tmp_path / "run"), monkeypatch, capfd, signal.SIGUSR1, "configure_model")
    assert code == 0 and "Stopped outside of training" in letter and job.read_text() == "requeue 70_3\n"


def test_while_the_program_imports_the_signal_waits(tmp_path: Path, job: Path, fit_config: FitConfig) -> None:
    """A process that gets it while torch is loaded, long before anything of ours could listen."""
    command = [sys.executable, "lightning_cli.py", "fit", "--config", str(fit_config(tmp_path / "run"))]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        proc = Path(f"/proc/{process.pid}")
        while "libtorch" not in (proc / "maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        (pending,) = re.findall(r"^ShdPnd:\s*(\w+)$", (proc / "status").read_text(), re.MULTILINE)
        assert int(pending, 16) == 1 << (signal.SIGUSR1 - 1), "guard: nobody listens yet"
        letter = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == 0, letter
    assert "Stopped outside of training" in letter and "SLURM is asked to requeue job 71." in letter
    assert job.read_text() == "requeue 71\n" and not (tmp_path / "run" / "checkpoints").exists()


def test_a_library_that_catches_the_stop_delays_it_by_one_step(
    tmp_path: Path,
    job: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real = SFTModule.setup

    def catches(self: SFTModule, stage: str) -> None:
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGUSR1)
        real(self, stage)

    monkeypatch.setattr(SFTModule, "setup", catches)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(fit_config(tmp_path / "run"))])
    assert not end.value.code and job.read_text() == "requeue 71\n"
    assert "Stopped at optimizer step 1 of 8 (epoch 0). Checkpoint: " in capfd.readouterr().err


def test_a_second_signal_while_the_checkpoint_is_written_changes_nothing(
    tmp_path: Path,
    job: Path,
    fit_config: FitConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real, sent = torch.save, list[bool]()

    def signalled(*given: Any, **named: Any) -> None:
        sent.append(True)
        signal.raise_signal(signal.SIGUSR1)
        real(*given, **named)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(torch, "save", signalled)
    code, letter = asked(fit_config(tmp_path / "run"), monkeypatch, capfd, signal.SIGUSR1, "training_step")
    assert sent and code == 0 and job.read_text() == "requeue 71\n"
    assert letter.count("Stopped at optimizer step 3 of 8") == 1 and letter.count("Stopping: ") == 1
    label = read_label(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert label is not None and label.step == 3


def test_predict_is_requeued_where_it_stands_and_goes_on(
    tmp_path: Path,
    job: Path,
    tiny_world: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    module = {"teacher": str(tiny_world.teacher), "sampling": {"max_new_tokens": 9}}
    problems = {"quiz": {"path": str(tiny_world.benchmark)}, "more": {"path": str(tiny_world.validation)}}
    config = {
        "model": {"class_path": "w2sr.modules.DistillModule", "init_args": module},
        "data": {"class_path": "w2sr.datamodules.ProblemDataModule", "init_args": {"problems": problems}},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "store"), "logger": False},
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(config))
    append = TraceWriter.append

    def signalled_at_the_fourth(self: TraceWriter, trace: Any) -> None:
        append(self, trace)
        if len(self.done()) == 4:
            signal.raise_signal(signal.SIGUSR1)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(TraceWriter, "append", signalled_at_the_fourth)
        main(["predict", "--config", str(tmp_path / "distill.yaml")])
    assert not end.value.code and job.read_text() == "requeue 71\n"
    assert "Stopped outside of training" in capfd.readouterr().err
    assert len(read_store(tmp_path / "store")) == 4
    main(["predict", "--config", str(tmp_path / "distill.yaml")])
    assert len(read_store(tmp_path / "store")) == 11


SLOW = """
import time
from w2sr.cli import main
from w2sr.modules.sft import SFTModule
real = SFTModule.training_step
def slow(self, *given):
    time.sleep(0.05)
    print("step", self.trainer.global_step, flush=True)
    return real(self, *given)
SFTModule.training_step = slow
main()
"""
"""A fit whose steps take long enough for a signal to meet them, and say when they begin."""


def signalled(config: Path, script: Path, step: int, after_s: float, *words: str) -> str:
    """The letter of a fit all of whose processes get SIGUSR1, as SLURM sends it, some seconds after a step began."""
    command = [sys.executable, str(script), "fit", "--config", str(config), *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == f"step {step}\n":
                break
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGUSR1)
        try:
            letter = process.communicate(timeout=HANG_S)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("hangs")
    assert process.returncode == 0, letter
    return letter


def test_signals_at_random_times_to_all_processes(
    tmp_path: Path, job: Path, fit_config: FitConfig, scalars: Scalars, tiny_world: Any
) -> None:
    """Graders outlive the signal, and the curve is the uninterrupted run's bit for bit."""
    changes: dict[str, Any] = {
        "data__max_tokens": 120,
        "data__num_workers": 2,
        "data__held_out_frac": 0.2,
        "data__validation": {"five": {"path": str(tiny_world.validation)}},
        "trainer__max_epochs": 3,
        "trainer__val_check_interval": 2,
        "trainer__callbacks": [EXPORT],
    }
    main(["fit", "--config", str(fit_config(tmp_path / "whole", **changes))])
    (tmp_path / "slow.py").write_text(SLOW)
    rng, run = random.Random(7), tmp_path / "run"
    config, words = fit_config(run, **changes), []
    for step in (1, 5):
        letter = signalled(config, tmp_path / "slow.py", step, rng.uniform(0, 0.2), *words)
        assert letter.count("Stopped at optimizer step ") == 1 and "Traceback" not in letter
        assert letter.count("Stopping: ") == 1, "nobody else takes the signal for his own"
        label = read_label(run / "checkpoints" / "last.ckpt")
        assert label is not None and f"step {label.step} of 9" in letter
        words = ["--ckpt_path", "last"]
    assert job.read_text() == "requeue 71\nrequeue 71\n"
    main(["fit", "--config", str(config), *words])
    for tag in ("train/loss", "train/grad_norm", "val/loss", "val/pass@1"):
        assert scalars(run, tag) == scalars(tmp_path / "whole", tag), tag
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (run, tmp_path / "whole")]
    torch.testing.assert_close(*weights, atol=0, rtol=0)
