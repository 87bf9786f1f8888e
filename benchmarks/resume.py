"""Does a run that was stopped go on bit for bit? Each stop is beside the run that nobody stopped.

Of every step the traces in their order, the loss and the learning rate are written to a file as they are logged, so that
the steps of a killed run count too; of every validation the loss. Every line of the stopped and of the resumed run must
equal that of the uninterrupted one, all steps and validations must be there, and the exported weights must be the same
bytes.

`kill -9` comes from outside, to the whole process group: the run says through a pipe that a step, a validation or the
writing of a checkpoint begins, and is killed a random time later, within the time that it took in the uninterrupted run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from common import head, table, write

from w2sr.cli import main as command_line
from w2sr.modules.checkpoints import WholeCheckpointIO
from w2sr.modules.sft import SFTModule
from w2sr.runs import newest_checkpoint, read_label

ROOT = Path(__file__).resolve().parent.parent
MINIATURE = ROOT / "w2sr" / "miniature"
EPOCHS = 3
SAVE_EVERY = 2
VALIDATE_EVERY = 5
PLACES = {
    "training_step": "step",
    "validation_step": "validation after step",
    "save_checkpoint": "writing the checkpoint of step",
}


class Setting(NamedTuple):
    """How steps are made: loader workers, and optimizer steps that are packed together."""

    workers: int
    window: int


class Stop(NamedTuple):
    """Where a run is stopped: in which method, after how many whole steps, by which signal.

    `kill -9` comes later than the beginning of the method's `call` (counted from 0 in that step), by `delay_frac` of the
    time that it usually takes; a training step takes it to the beginning of the next one.
    """

    place: str
    method: str
    step: int
    signal: signal.Signals
    call: int = 0
    delay_frac: float = 0.0


METHODS: dict[str, Any] = {
    "training_step": SFTModule,
    "validation_step": SFTModule,
    "save_checkpoint": WholeCheckpointIO,
}
NUM_KILLS = {"training_step": 3, "save_checkpoint": 1, "validation_step": 1}
"""Of each setting, so 20 in all."""


def config(folder: Path, setting: Setting, num_traces: int) -> Path:
    """Writes the configuration of a run beside its folder."""
    checkpoint = {"every_n_train_steps": SAVE_EVERY, "save_last": True, "save_top_k": 1}
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
            "val_check_interval": VALIDATE_EVERY,
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


def run(
    file: Path,
    words: list[str],
    stop: Stop | None = None,
    seconds: float = 0.0,
    before: Callable[[], Any] | None = None,
) -> int:
    """`fit` in a process group of its own, forked so that nothing is imported again.

    Args:
        file: its configuration.
        words: more of the command line.
        stop: where it is stopped.
        seconds: by `kill -9` so long after the place was met.
        before: called in the new process before it begins.

    Returns:
        Its exit status, negative for a signal.
    """
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        record(file)
        if before is not None:
            before()
        if stop is not None:
            at(stop, lambda: os.killpg(0, signal.SIGINT) if stop.signal is signal.SIGINT else os.write(told, b"!"))
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
    os.close(told)
    if os.read(heard, 1):  # nothing when all who could write are gone
        time.sleep(seconds)
        os.killpg(child, signal.SIGKILL)
    os.close(heard)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def record(file: Path) -> None:
    """Appends a line to a file for each step and each validation, all numbers exactly; and when each method ran."""
    log_step, end_validation = SFTModule._log_step, SFTModule.on_validation_epoch_end

    def write_line(suffix: str, *line: Any) -> None:
        with file.with_suffix(suffix).open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    def step_and_line(self: Any, step: Any, loss: Any, grad_norm: Any, learning_rate: float) -> None:
        order = hashlib.sha256(json.dumps([step.trace_ids, [row.cu_seqlens.tolist() for row in step.rows]]).encode())
        numbers = float(loss).hex(), float(learning_rate).hex(), len(step.rows)
        write_line(".lines", self.trainer.global_step, order.hexdigest(), *numbers)
        log_step(self, step, loss, grad_norm, learning_rate)

    def validation_and_line(self: Any) -> None:
        end_validation(self)
        loss = float(self.trainer.callback_metrics["val/loss"])
        write_line(".validations", self.trainer.global_step, loss.hex())

    SFTModule._log_step = step_and_line  # type: ignore[method-assign]
    SFTModule.on_validation_epoch_end = validation_and_line  # type: ignore[method-assign]
    for method, owner in METHODS.items():
        real = getattr(owner, method)

        def timed(*given: Any, _real: Any = real, _method: str = method, **named: Any) -> Any:
            begun = time.monotonic()
            result = _real(*given, **named)
            write_line(".times", _method, begun, time.monotonic())
            return result

        setattr(owner, method, functools.wraps(real)(timed))


def usual_seconds(file: Path) -> dict[str, float]:
    """What each method takes: the median. A training step ends where the next one begins."""
    times = read_lines(file, ".times")
    begun = [begin for method, begin, _ in times if method == "training_step"]
    found = {method: statistics.median(end - begin for m, begin, end in times if m == method) for method in METHODS}
    return {**found, "training_step": statistics.median(b - a for a, b in itertools.pairwise(begun))}


def at(stop: Stop, act: Callable[[], Any]) -> None:
    """Acts where the method begins."""
    owner = METHODS[stop.method]
    real: Callable[..., Any] = getattr(owner, stop.method)
    calls: list[int] = []

    def acting(self: Any, *given: Any, **named: Any) -> Any:
        step = given[0]["global_step"] if owner is WholeCheckpointIO else self.trainer.global_step
        if step == stop.step:
            if len(calls) == stop.call:
                act()
            calls.append(step)
        return real(self, *given, **named)

    setattr(owner, stop.method, functools.wraps(real)(acting))


def read_lines(file: Path, suffix: str = ".lines") -> list[list[Any]]:
    return [json.loads(line) for line in file.with_suffix(suffix).read_text().splitlines()]


def stops(num_steps: int, rng: random.Random) -> list[Stop]:
    """Both epoch ends, a random step and a validation by Ctrl-C; random moments by `kill -9`."""
    draw: dict[str, Callable[[], int]] = {
        "training_step": lambda: rng.randrange(1, num_steps - 1),
        "validation_step": lambda: VALIDATE_EVERY * rng.randrange(1, num_steps // VALIDATE_EVERY),
        "save_checkpoint": lambda: SAVE_EVERY * rng.randrange(1, num_steps // SAVE_EVERY),
    }
    made = []
    for method, number in NUM_KILLS.items():
        for _ in range(number):
            step, call = draw[method](), rng.randrange(2) if method == "save_checkpoint" else 0
            made.append(Stop(f"{PLACES[method]} {step}", method, step, signal.SIGKILL, call, rng.random()))
    ends = [epoch * num_steps // EPOCHS - 1 for epoch in (1, 2)]
    ctrl_c = [Stop(f"step {step}, the last of its epoch", "training_step", step, signal.SIGINT) for step in ends]
    for method in ("training_step", "validation_step"):
        step = draw[method]()
        ctrl_c.append(Stop(f"{PLACES[method]} {step}", method, step, signal.SIGINT))
    return [*ctrl_c, *made]


def measure(folder: Path, setting: Setting, num_traces: int, rng: random.Random) -> Iterator[list[str]]:
    """A line of the table for each stop of one setting."""
    whole = folder / f"whole-{setting.workers}-{setting.window}"
    file = config(whole, setting, num_traces)
    assert run(file, []) == 0, file.with_suffix(".log").read_text()[-2000:]
    seconds = usual_seconds(file)
    expected = Lines.of(file)
    expected.guard()
    for number, stop in enumerate(stops(len(expected.steps), rng)):
        stopped = folder / f"{whole.name}-stop-{number}"
        file = config(stopped, setting, num_traces)
        code = run(file, [], stop, stop.delay_frac * seconds[stop.method])
        assert code == (130 if stop.signal is signal.SIGINT else -signal.SIGKILL), file.with_suffix(".log").read_text()
        last = newest_checkpoint(stopped)
        label = read_label(last) if last is not None else None
        assert last is None or label is not None, "every checkpoint here is whole and labelled"
        step = label.step if label else 0
        num_before = len(read_lines(file))
        assert run(file, ["--ckpt_path", "last"]) == 0, file.with_suffix(".log").read_text()[-2000:]
        yield [
            str(setting.workers),
            str(setting.window),
            "Ctrl-C" if stop.signal is signal.SIGINT else "kill -9",
            stop.place,
            "" if stop.signal is signal.SIGINT else f"{1000 * stop.delay_frac * seconds[stop.method]:.0f} ms",
            str(step) if label else "none",
            str(num_before - step),
            *expected.beside(Lines.of(file)),
            yes((stopped / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()),
        ]


WEIGHTS = "student/model.safetensors"


class Lines(NamedTuple):
    """What a run wrote down of its steps (number, traces, loss, rate, rows) and its validations (step, loss)."""

    steps: list[list[Any]]
    validations: list[list[Any]]

    @staticmethod
    def of(file: Path) -> Lines:
        return Lines(read_lines(file), read_lines(file, ".validations"))

    def guard(self) -> None:
        """Raises unless an inequality would be seen here."""
        assert len({step[1] for step in self.steps}) == len(self.steps) > 15, "every step has traces of its own"
        assert len({step[2] for step in self.steps}) == len(self.steps), "every step has another loss"
        assert statistics.median(step[4] for step in self.steps) > 1, "steps of several rows"
        assert len({loss for _, loss in self.validations}) == len(self.validations) >= 5

    def beside(self, other: Lines) -> list[str]:
        """Whether the traces, losses, rates and losses of validation of the other are ours, and none is missing."""
        by_step = {step[0]: step for step in self.steps}
        complete = {step[0] for step in other.steps} == set(by_step)
        steps = [complete and all(step[at] == by_step[step[0]][at] for step in other.steps) for at in (1, 2, 3)]
        validations = {tuple(line) for line in other.validations} == {tuple(line) for line in self.validations}
        return [yes(equal) for equal in (*steps, validations)]


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
        f"\nThe miniature's student on a few of its traces, {EPOCHS} epochs, 8 traces a step in rows of 400 tokens (several "
        f"rows a step), validation every {VALIDATE_EVERY} steps, a checkpoint every {SAVE_EVERY}. Ctrl-C is SIGINT to all "
        "processes of the run, in the middle of a step or of a validation; the run saves when the step is complete. "
        "`kill -9` is SIGKILL to all of them, a random time after a step, a validation or the writing of a checkpoint "
        "began; a step's time goes to the beginning of the next step. It leaves the last whole checkpoint, or none; the "
        "steps after it are done again. Then the same command with `--ckpt_path last`. Equal means bit for bit, over all "
        "steps and validations of both parts, with the run that nobody stopped; of the traces, the order in every row of "
        "every step.\n"
    )
    columns = ["workers", "window", "signal", "where", "after", "checkpoint at step", "steps done again"]
    columns += ["traces", "losses", "rates", "validations", "weights"]
    num_unequal = sum("NOT EQUAL" in line for line in lines)
    page = head("Stopped and resumed against uninterrupted", ["torch", "lightning"], note)
    page += "\n" + table(columns, lines)
    num_kills = sum("kill -9" in line for line in lines)
    page += f"\n{len(lines)} stops, {num_kills} by `kill -9`; {num_unequal} of them not equal.\n"
    write(arguments.out, page)
    sys.exit(num_unequal > 0)


if __name__ == "__main__":
    main()
