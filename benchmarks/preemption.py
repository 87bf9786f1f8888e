"""Are checkpoints of jobs that had to make room ever torn? Twenty signals at random times, each beside the whole run.

The signal is SIGUSR1 to all processes of a run in its own process group, as SLURM sends it to a job step; `scontrol` is
a script that writes down its arguments. It comes up to 0.2 s after a random
step began, so that steps, validation and the writing of ordinary checkpoints are met as they come. After each signal: is every
checkpoint of the run directory whole, was the job requeued once, did the program end with 0? Then the run goes on, and
its losses and weights are held against those of the run that nobody signalled, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import head, table, write
from resume import WEIGHTS, Lines, Setting, config, run, yes

from w2sr.modules.sft import SFTModule
from w2sr.runs import newest_checkpoint, read_label

REQUEUED = "requeue 71\n"
MAX_DELAY_S = 0.2
"""A step takes about 50 ms."""
NOTE = """
The miniature's student, 3 epochs, 8 traces a step in rows of 400 tokens, validation every 5 steps, a checkpoint every 2.
SIGUSR1 goes to all processes of the run up to 0.2 s after a random step began, as SLURM sends it to a job step; `scontrol` is a script that
writes down what it is told. Every run ended with 0 and had itself requeued exactly once; then the same command went on
with `--ckpt_path last`. Equal means bit for bit, over all steps and validations of both parts, with the run that got no
signal; of the traces, the order in every row of every step.
"""


def pretend_job(folder: Path) -> Path:
    """This process and its children are job 71. Returns the file of what `scontrol` is told."""
    told = folder / "scontrol.log"
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    (folder / "scontrol").chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    os.environ["SLURM_JOB_ID"] = "71"
    return told


def signal_in(step: int, seconds: float) -> None:
    """Sends SIGUSR1 to the process group of this process so many seconds after a training step began."""
    real, told = SFTModule.training_step, list[bool]()

    def timed(self: Any, *given: Any) -> None:
        if self.trainer.global_step == step and not told:
            told.append(True)
            later = f"sleep {seconds}; kill -s USR1 -- -{os.getpgid(0)}"
            subprocess.Popen(["sh", "-c", later], start_new_session=True)
        real(self, *given)

    SFTModule.training_step = timed  # type: ignore[method-assign, assignment]


def is_whole(checkpoint: Path) -> bool:
    """Whether torch reads every tensor of a checkpoint. The bytes are checked by the archive's own sums."""
    try:
        return bool(torch.load(checkpoint, weights_only=True)["state_dict"])
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return False


def measure(
    folder: Path, setting: Setting, num_traces: int, num_signals: int, rng: random.Random
) -> Iterator[list[str]]:
    """A line of the table for each signal."""
    told = pretend_job(folder)
    file = config(folder / f"whole-{setting.workers}", setting, num_traces)
    assert run(file, []) == 0, file.with_suffix(".log").read_text()[-2000:]
    expected = Lines.of(file)
    expected.guard()
    weights = (file.with_suffix("") / WEIGHTS).read_bytes()
    for number in range(num_signals):
        step, after_s = rng.randrange(len(expected.steps) - 2), rng.uniform(0, MAX_DELAY_S)
        file = config(folder / f"run-{setting.workers}-{number}", setting, num_traces)
        stopped = file.with_suffix("")
        told.write_text("")
        code = run(file, [], before=partial(signal_in, step, after_s))
        log, requeued = file.with_suffix(".log").read_text(), told.read_text()
        last = newest_checkpoint(stopped)
        label = None if last is None else read_label(last)
        checkpoints = [] if last is None else [is_whole(path) for path in last.parent.iterdir()]
        assert (code, requeued) == (0, REQUEUED), log[-2000:]
        assert run(file, ["--ckpt_path", "last"]) == 0, file.with_suffix(".log").read_text()[-2000:]
        yield [
            str(setting.workers),
            f"{1000 * after_s:.0f} ms into step {step + 1}",
            "none" if label is None else f"{label.step} of {label.num_steps}",
            f"{sum(checkpoints)} of {len(checkpoints)}",
            *expected.beside(Lines.of(file)),
            yes((stopped / WEIGHTS).read_bytes() == weights),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--num-signals", type=int, default=20)
    parser.add_argument("--num-traces", type=int, default=110, help="of the miniature's traces")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    arguments = parser.parse_args()
    rng, lines = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, 2):
            setting, half = Setting(workers, window=3), arguments.num_signals // 2
            for line in measure(Path(folder), setting, arguments.num_traces, half, rng):
                print(" | ".join(line), flush=True)
                lines.append(line)
    num_torn = sum(len(set(line[3].split(" of "))) > 1 for line in lines)
    num_unequal = sum("NOT EQUAL" in line for line in lines)
    columns = ["workers", "signal", "checkpoint at step", "whole checkpoints"]
    page = head("Jobs that must make room, against uninterrupted ones", ["torch", "lightning"], NOTE)
    page += "\n" + table([*columns, "traces", "losses", "rates", "validations", "weights"], lines)
    page += f"\n{len(lines)} signals; {num_torn} runs with a torn checkpoint, {num_unequal} that are not equal.\n"
    write(arguments.out, page)
    sys.exit(num_torn + num_unequal > 0)


if __name__ == "__main__":
    main()
