"""Does a run that was stopped go on bit for bit? Each stop is beside the run that nobody stopped.

A step's loss and learning rate are written to a file as they are logged, so that the steps of a killed run count too.
Every line of the stopped and of the resumed run must equal that of the uninterrupted one, all steps must be there, and
the exported weights must be the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from common import head, table, write

from w2sr.cli import main as command_line
from w2sr.modules.sft import SFTModule
from w2sr.runs import newest_checkpoint, read_label

ROOT = Path(__file__).resolve().parent.parent
MINIATURE = ROOT / "w2sr" / "miniature"
EPOCHS = 3


class Setting(NamedTuple):
    """How steps are made: loader workers, and optimizer steps that are packed together."""

    workers: int
    window: int


class Stop(NamedTuple):
    """Where a run is stopped: in which method, after how many whole steps, by which signal."""

    place: str
    method: str
    step: int
    signal: signal.Signals


def config(folder: Path, setting: Setting, num_traces: int) -> Path:
    """Writes the configuration of a run beside its folder."""
    checkpoint = {"every_n_train_steps": 2, "save_last": True, "save_top_k": 1}
    made: dict[str, Any] = {
        "model": {
            "class_path": "w2sr.modules.SFTModule",
            "init_args": {"student": str(MINIATURE / "student"), "learning_rates": {"sft": 5e-4}, "warmup_frac": 0.2},
        },
        "data": {
            "class_path": "w2sr.datamodules.TraceDataModule",
            "init_args": {
                "traces": [{"path": str(MINIATURE / "traces"), "limit": num_traces}],
                "held_out_frac": 0.1,
                "max_tokens": 400,
                "step_sequences": 8,
                "num_workers": setting.workers,
                "window": setting.window,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(folder),
            "max_epochs": EPOCHS,
            "check_val_every_n_epoch": None,
            "val_check_interval": 5,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint},
                {"class_path": "w2sr.callbacks.ExportStudent"},
            ],
        },
    }
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(made))
    return file


def run(file: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """`fit` in a process of its own, forked so that nothing is imported again. Its exit status, negative for a signal.

    `prepare` is called in that process first.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        record(file.with_suffix(".lines"))
        prepare()
        with file.with_suffix(".log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                command_line(["fit", "--config", str(file), *words])
            except SystemExit as end:
                log.flush()
                os._exit(int(end.code or 0))
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def record(file: Path) -> None:
    """Appends a line to the file for each step: its number, its loss and its learning rate, exactly."""
    real = SFTModule._log_step

    def log_step(self: Any, step: Any, loss: Any, grad_norm: Any, learning_rate: float) -> None:
        with file.open("a") as lines:
            line = [self.trainer.global_step, float(loss).hex(), float(learning_rate).hex(), len(step.rows)]
            lines.write(json.dumps(line) + "\n")
        real(self, step, loss, grad_norm, learning_rate)

    SFTModule._log_step = log_step  # type: ignore[method-assign]


def press(stop: Stop) -> None:
    """Sends the signal to the whole process group, as a terminal does, in the middle of the method."""
    real: Callable[..., Any] = getattr(SFTModule, stop.method)
    sent: list[bool] = []

    def pressed(self: Any, *given: Any) -> Any:
        if self.trainer.global_step == stop.step and not sent:
            sent.append(True)
            os.killpg(0, stop.signal)
        return real(self, *given)

    setattr(SFTModule, stop.method, pressed)


def lines_of(file: Path) -> list[list[Any]]:
    return [json.loads(line) for line in file.with_suffix(".lines").read_text().splitlines()]


def stops(num_steps: int, rng: random.Random) -> list[Stop]:
    """Both epoch ends, a random step and a validation by Ctrl-C, and a random step by `kill -9`."""
    epoch = num_steps // EPOCHS
    ends = [Stop(f"end of epoch {index}", "training_step", (index + 1) * epoch - 1, signal.SIGINT) for index in (0, 1)]
    return [
        *ends,
        Stop("in a step", "training_step", rng.randrange(1, num_steps - 1), signal.SIGINT),
        Stop("in validation", "validation_step", 5 * rng.randrange(1, num_steps // 5), signal.SIGINT),
        Stop("in a step", "training_step", rng.randrange(3, num_steps), signal.SIGKILL),
    ]


def measure(folder: Path, setting: Setting, num_traces: int, rng: random.Random) -> Iterator[list[str]]:
    """A line of the table for each stop of one setting."""
    whole = folder / f"whole-{setting.workers}-{setting.window}"
    file = config(whole, setting, num_traces)
    assert run(file, []) == 0, file.with_suffix(".log").read_text()[-2000:]
    expected = lines_of(file)
    assert len({line[1] for line in expected}) == len(expected) > 15, "guard: every step has another loss"
    assert max(line[3] for line in expected) > 1, "guard: steps of several rows"
    for number, stop in enumerate(stops(len(expected), rng)):
        stopped = folder / f"{whole.name}-stop-{number}"
        file = config(stopped, setting, num_traces)
        code = run(file, [], partial(press, stop))
        assert code == (130 if stop.signal is signal.SIGINT else -signal.SIGKILL), file.with_suffix(".log").read_text()
        last = newest_checkpoint(stopped)
        label = read_label(last) if last is not None else None
        assert label is not None, "every run here has a labelled checkpoint"
        num_before = len(lines_of(file))
        assert run(file, ["--ckpt_path", "last"]) == 0, file.with_suffix(".log").read_text()[-2000:]
        lines = lines_of(file)
        yield [
            str(setting.workers),
            str(setting.window),
            "Ctrl-C" if stop.signal is signal.SIGINT else "kill -9",
            stop.place,
            f"{label.step} of {label.num_steps}",
            str(num_before - label.step),
            *equal(lines, expected),
            yes((stopped / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()),
        ]


WEIGHTS = "student/model.safetensors"


def equal(lines: list[list[Any]], expected: list[list[Any]]) -> list[str]:
    """Whether all losses, and all learning rates, are those of the uninterrupted run, and none is missing."""
    by_step = {line[0]: line for line in expected}
    complete = {line[0] for line in lines} == set(by_step)
    return [yes(complete and all(line[at] == by_step[line[0]][at] for line in lines)) for at in (1, 2)]


def yes(equal_bits: bool) -> str:
    return "equal" if equal_bits else "NOT EQUAL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--num-traces", type=int, default=110, help="of the miniature's traces")
    parser.add_argument("--seed", type=int, default=0, help="of the random steps")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for setting in (Setting(workers, window) for workers in (0, 2) for window in (1, 3)):
            for line in measure(Path(folder), setting, arguments.num_traces, rng):
                print(" | ".join(line), flush=True)
                lines.append(line)
    note = (
        "\nThe miniature's student on a few of its traces, 3 epochs, 8 traces a step in rows of 400 tokens, validation "
        "every 5 steps, a checkpoint every 2. Ctrl-C is SIGINT to all processes of the run, in the middle of a step or "
        "of a validation; the run saves when the step is complete. `kill -9` leaves the last checkpoint as it was: the "
        "steps after it are done again. Then the same command with `--ckpt_path last`. Equal means bit for bit, over "
        "all steps of both parts, with the run that nobody stopped.\n"
    )
    columns = ["workers", "window", "signal", "where", "checkpoint at step", "steps done again"]
    num_unequal = sum("NOT EQUAL" in line for line in lines)
    page = head("Stopped and resumed against uninterrupted", ["torch", "lightning"], note)
    page += "\n" + table([*columns, "losses", "rates", "weights"], lines)
    page += f"\n{len(lines)} stops, {num_unequal} of them not equal.\n"
    write(arguments.out, page)
    sys.exit(num_unequal > 0)


if __name__ == "__main__":
    main()
