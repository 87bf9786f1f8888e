"""The scripts of `slurm/` under a SLURM that runs: pre-emption and requeue, and an array with a shard that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from w2sr.traces import read_store

from .conftest import Slurm

pytestmark = pytest.mark.slurm
FitConfig = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]

JOB_S = 240
"""A job takes 15 s to begin to train and less to end; on a busy machine several times that."""
SAVE = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 5, "save_top_k": 1, "filename": "latest-{step}"},
}


SMALL = ("--cpus-per-task=1", "--mem=0")
"""The scripts ask for what a node with GPUs has."""


def submit(slurm: Slurm, script: str, config: Path, *options: str) -> str:
    """The number of a job that the command line submits, its output beside the configuration."""
    words = ["submit", f"slurm/{script}", *options, *SMALL, f"--output={config}-%j.log", "--", f"--config={config}"]
    words.append(f"--trainer.default_root_dir={config.with_suffix('')}")
    done = slurm.run("python", "lightning_cli.py", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def log(config: Path, job: str) -> str:
    return Path(f"{config}-{job}.log").read_text()


def test_a_job_on_two_nodes_is_requeued_and_ends_as_one_on_two_tasks_that_was_not(
    slurm: Slurm, tmp_path: Path, fit_config: FitConfig, scalars: Scalars
) -> None:
    """SIGUSR1 comes from SLURM, to the tasks of both nodes; the requeue is SLURM's own."""
    changes: dict[str, Any] = {
        "trainer__devices": "auto",
        "trainer__max_epochs": 60,
        "trainer__callbacks": [SAVE],
        "data__num_workers": 1,
        "data__max_tokens": 120,
    }
    config = fit_config(tmp_path / "stopped", **changes)
    job = submit(slurm, "sft.sbatch", config, "--nodes=2", "--tasks=1")
    saved = tmp_path / "stopped" / "checkpoints"
    slurm.wait(job, JOB_S, lambda state: bool(list(saved.glob("latest-*.ckpt"))))
    assert slurm.run("scancel", "--signal=USR1", job).returncode == 0
    state = slurm.wait(job, JOB_S, lambda state: state["Restarts"] == "1")
    state = slurm.wait(job, JOB_S, lambda state: state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"))
    said = log(config, job)
    assert state["JobState"] == "COMPLETED" and state["ExitCode"] == "0:0", said
    assert state["NodeList"] == "first,localhost" and state["NumTasks"] == "2", state
    (stop,) = re.findall(r"Stopped at optimizer step (\d+) of 240 .* Checkpoint: ", said)
    assert f"SLURM is asked to requeue job {job}." in said and "killed by signal" not in said
    assert 5 <= int(stop) < 240, "guard: the signal met the training"

    config = fit_config(tmp_path / "whole", **changes)
    job = submit(slurm, "sft.sbatch", config, "--tasks=2")
    slurm.wait(job, JOB_S, lambda state: state["JobState"] == "COMPLETED")
    assert "Stopped" not in log(config, job)
    for tag in ("train/loss", "train/grad_norm"):
        curve = scalars(tmp_path / "whole", tag)
        assert len(curve) == 240 and scalars(tmp_path / "stopped", tag) == curve, tag


def test_an_array_with_a_failed_shard_is_filled_by_a_second_one(slurm: Slurm, tmp_path: Path, tiny_world: Any) -> None:
    """Shard 2 of 3 fails. `merge` names it, with the submission that makes it, and that is then submitted."""
    store, config = tmp_path / "store", tmp_path / "distill.yaml"
    module = {"teacher": str(tiny_world.teacher), "sampling": {"max_new_tokens": 9}}
    problems = {"quiz": {"path": str(tiny_world.benchmark)}, "more": {"path": str(tiny_world.validation)}}
    written = {
        "model": {"class_path": "w2sr.modules.DistillModule", "init_args": module},
        "data": {"class_path": "w2sr.datamodules.ProblemDataModule", "init_args": {"problems": problems}},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(store), "logger": False},
    }
    config.write_text(yaml.safe_dump(written))
    failing = tmp_path / "python"
    failing.write_text(f'#!/bin/sh\n[ "$SLURM_ARRAY_TASK_ID" = 2 ] && exit 1\nexec {_python(slurm)} "$@"\n')
    failing.chmod(0o755)

    def array(numbers: str, **environment: str) -> dict[str, str]:
        options = [f"--array={numbers}", *SMALL, "--gpus-per-node=0", f"--output={tmp_path}/%a.log"]
        command = ["sbatch", "--parsable", *options, "slurm/distill.sbatch", f"--config={config}"]
        job = slurm.run(*command, SHARDS="3", **environment).stdout.strip()
        names = [f"{job}_{number}" for number in numbers.split(",")]
        over = ("COMPLETED", "FAILED")
        return {name[-1]: slurm.wait(name, JOB_S, lambda s: s["JobState"] in over)["JobState"] for name in names}

    path = {"PATH": f"{tmp_path}:{slurm.environment['PATH']}"}
    assert array("1,2,3", **path) == {"1": "COMPLETED", "2": "FAILED", "3": "COMPLETED"}
    refused = slurm.run("python", "lightning_cli.py", "merge", store)
    assert refused.returncode == 2 and "1 of 3 shards lack traces." in refused.stderr
    (again,) = re.findall(r"SHARDS=3 sbatch --array=(\S+) slurm/distill.sbatch", refused.stderr)
    assert again == "2" and array(again) == {"2": "COMPLETED"}
    merged = slurm.run("python", "lightning_cli.py", "merge", store)
    assert merged.returncode == 0 and "11 traces of 11 problems, 3 of 3 shards" in merged.stdout
    asked = [
        json.loads(line)["problem_id"] for file in (tiny_world.benchmark, tiny_world.validation) for line in file.open()
    ]
    assert sorted(trace.problem_id for trace in read_store(store)) == sorted(asked)


def _python(slurm: Slurm) -> str:
    return slurm.run("which", "python").stdout.strip()
