"""What a run directory holds: how far its run came, its newest checkpoint, and the commands that lead on from there."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import yaml

from w2sr import __version__

LABEL = "archive/w2sr-progress.json"
"""The member of a checkpoint that says how far it is; no weight is touched to read it. torch writes zip archives, in
memory with all members in the folder `archive`, and reads none that has one elsewhere."""
LABEL_FILE = "w2sr-progress.json"
"""The same of a sharded checkpoint, which is a directory. It is written last, and names all files with their sizes."""
FORMAT = 1
"""What checkpoints are written as. Code that does not know a newer one refuses it."""
FINISHED = "finished.json"
"""The file of a run directory that says that its run came to its end, and with how many steps."""
UNNAMED = "runs/unnamed"
"""The run directory where the configuration names none."""


OUTSIDE = "Stopped outside of training: no checkpoint is written. What lies in the run directory stays."


class Stopped(Exception):
    """The run was asked to stop. The message says where it did, and how to go on.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: signal.Signals, *message: str) -> None:
        super().__init__(*message)
        self.signum = signum


class StopOutside:
    """A signal's handler outside of training: raises `Stopped` where nothing has to be saved first.

    Attributes:
        asked: whether it was called. A library may catch whatever is raised while it works, and go on.
        pass_on: called with the signal first, where it is set.
    """

    def __init__(self) -> None:
        self.asked = False
        self.pass_on: Callable[[int], None] | None = None

    def __call__(self, signum: int, frame: Any) -> NoReturn:
        self.asked = True
        if self.pass_on is not None:
            self.pass_on(signum)
        raise Stopped(signal.Signals(signum), OUTSIDE)


class RefusedByAll(ValueError):
    """What all processes raise together, with one message: the first one says it."""


class Progress(NamedTuple):
    """How far a run is: optimizer steps done, of how many (None: not known), and the epoch, counted from 0."""

    step: int
    num_steps: int | None
    epoch: int

    def __str__(self) -> str:
        of = "" if self.num_steps is None else f" of {self.num_steps:,}"
        return f"step {self.step:,}{of} (epoch {self.epoch})"


def add_label(archive: IO[bytes], progress: Progress) -> None:
    """Adds the progress to a checkpoint that torch has just written. torch passes over the additional member."""
    with zipfile.ZipFile(archive, "a") as members:
        members.writestr(LABEL, json.dumps({**progress._asdict(), "format": FORMAT, "w2sr": __version__}))


def write_label(checkpoint: Path, progress: Progress) -> None:
    """Labels a sharded checkpoint whose other files are all there."""
    files = {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir())}
    label = {**progress._asdict(), "format": FORMAT, "w2sr": __version__, "files": files}
    with (checkpoint / LABEL_FILE).open("w") as stream:
        stream.write(json.dumps(label, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_label(checkpoint: Path) -> Progress | None:
    """The progress that a checkpoint was labelled with; None for one that was saved otherwise, or is cut off."""
    label = _label(checkpoint)
    return Progress(label["step"], label["num_steps"], label["epoch"]) if label else None


def _label(checkpoint: Path) -> dict[str, Any]:
    if checkpoint.is_dir():
        file = checkpoint / LABEL_FILE
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    if not zipfile.is_zipfile(checkpoint):
        return {}
    with zipfile.ZipFile(checkpoint) as members:
        return dict(json.loads(members.read(LABEL))) if LABEL in members.namelist() else {}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest `checkpoints/last*.ckpt` of a run directory; the newest of its checkpoints where none is so named.

    Where `last.ckpt` is not its own, a ModelCheckpoint calls its file `last-v1.ckpt`: the name does not say the age.
    """
    found = _checkpoints(folder / "checkpoints")
    return next((path for path in found if path.name.lstrip(".").startswith("last")), found[0] if found else None)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a directory, the newest first. What is still being written, or is half removed, is none.

    A sharded one that was to be replaced has another name for a moment; if the run died then, that name stays.
    """
    found = [path for path in folder.glob("*.ckpt") if not path.name.startswith(".") and path.exists()]
    for before in folder.glob(".*.ckpt.before"):
        if not before.with_name(before.name[1:].removesuffix(".before")).exists():
            found.append(before)
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def flaw(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be gone on from, as far as it can be seen without loading it; None where it can."""
    label = _label(checkpoint)
    if label.get("format", 0) > FORMAT:
        return (
            f"w2sr {label.get('w2sr')} wrote it, in format {label['format']}; this is w2sr {__version__}, which reads "
            f"formats up to {FORMAT}"
        )
    if checkpoint.is_dir():
        if not label:
            return f"it has no {LABEL_FILE}, which is written last"
        for name, size in label["files"].items():
            if not (checkpoint / name).is_file():
                return f"its file {name} is absent"
            if (there := (checkpoint / name).stat().st_size) != size:
                return f"its file {name} has {there:,} bytes of {size:,}"
        return None
    return None if zipfile.is_zipfile(checkpoint) else "the file is cut off or is no checkpoint"


def check_checkpoint(checkpoint: Path) -> None:
    """Raises a ValueError, which names the newest good one beside it, unless a checkpoint is there and whole."""
    if not checkpoint.exists():
        raise ValueError(f"There is no checkpoint {checkpoint}. {_instead_of(checkpoint)}")
    if reason := flaw(checkpoint):
        raise ValueError(f"{checkpoint} is not a whole checkpoint ({reason}). {_instead_of(checkpoint)}")


def _instead_of(checkpoint: Path) -> str:
    good = [path for path in _checkpoints(checkpoint.parent) if path != checkpoint and flaw(path) is None]
    if not good:
        return "Name another one, or start anew."
    at = f", at {label}" if (label := read_label(good[0])) else ""
    return f"Name another one: {good[0]} is good{at}."


def mark_finished(folder: Path, progress: Progress) -> None:
    """Writes down that the run of this directory came to its end."""
    (folder / FINISHED).write_text(json.dumps(progress._asdict()) + "\n")


def mark_unfinished(folder: Path) -> None:
    """Takes the mark away: a finished run goes on."""
    (folder / FINISHED).unlink(missing_ok=True)


def holds_a_run(folder: Path) -> bool:
    """Whether a run has begun in this directory."""
    return (folder / "config.yaml").exists()


def set_run_date(model: Any, trainer: Any, checkpoint: str | None) -> None:
    """Writes the day that chat templates show into a configuration: a run and a trace store have one. See `run_date`.

    Args:
        model, trainer: the configuration's, as it is saved with the run.
        checkpoint: its `ckpt_path`.
    """
    options = (model or {}).get("init_args") or {}
    if "template_date" in options:
        folder = Path((trainer or {}).get("default_root_dir") or UNNAMED)
        options["template_date"] = run_date(options["template_date"], folder, checkpoint)


def run_date(wanted: str | None, folder: Path, checkpoint: str | None) -> str:
    """The day that the chat templates of a run show: as wanted, else that of the run that goes on, else today.

    Args:
        wanted: `model.template_date` of the configuration.
        folder: the run directory. A run that goes on there, and a trace store that is completed, keep their day.
        checkpoint: `ckpt_path`; a run that goes on in another directory keeps the day too.

    Raises:
        ValueError: the run that goes on has another day than the wanted one.
    """
    folders = [folder] if checkpoint in (None, "last") else [folder, Path(str(checkpoint)).parent.parent]
    for place in folders:
        kept = _kept_date(place / "config.yaml")
        if kept and wanted and kept != wanted and checkpoint:
            raise ValueError(
                f"model.template_date={wanted}, and the run in {place} that goes on has {kept}: its prompts would "
                f"change. Set model.template_date={kept}, or leave it out."
            )
        if kept and not wanted:
            return kept
    return wanted or date.today().isoformat()


def _kept_date(config: Path) -> str | None:
    """The `model.template_date` of a run's configuration."""
    content = (yaml.safe_load(config.read_text()) if config.is_file() else None) or {}
    kept = ((content.get("model") or {}).get("init_args") or {}).get("template_date")
    return None if kept is None else str(kept)


def where_it_stands(folder: Path) -> str:
    """One sentence about the run of a directory: finished, or at which step its newest checkpoint is. Loads nothing."""
    mark, newest = folder / FINISHED, newest_checkpoint(folder)
    if mark.exists():
        num_steps = Progress(**json.loads(mark.read_text())).step
        return f"The run directory {folder} holds a finished run of {num_steps:,} optimizer steps."
    if newest is None:
        return f"The run directory {folder} holds a run without a checkpoint."
    label, written = read_label(newest), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(newest.stat().st_mtime))
    at = f", stopped at {label}" if label else ", not finished"
    return f"The run directory {folder} holds a run{at}; checkpoint {newest}, written {written}."


def ways_on(folder: Path, words: Sequence[str]) -> str:
    """The commands that go on with the run of a directory, where it can go on, and that start anew, a line each.

    Args:
        folder: the run directory.
        words: the command line without the program.
    """
    lines = []
    if newest_checkpoint(folder) is not None and not (folder / FINISHED).exists():
        lines.append(f"Go on:      {_command([*_without(words, '--ckpt_path'), '--ckpt_path', 'last'])}")
    anew = _without(_without(words, "--ckpt_path"), "--trainer.default_root_dir")
    lines.append(f"Start anew: {_command([*anew, f'--trainer.default_root_dir={_free_name(folder)}'])}")
    return "\n".join(lines)


def _command(words: Sequence[str]) -> str:
    program = sys.argv[0] if sys.argv[0].endswith(".py") else Path(sys.argv[0]).name
    return shlex.join([*(["python"] if program.endswith(".py") else []), program, *words])


def _without(words: Sequence[str], option: str) -> list[str]:
    """The words without an option and its value, spelled `--option value` or `--option=value`."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option and not skip
    return kept


def _free_name(folder: Path) -> Path:
    """The folder's name with the first number from 2 on that is not taken."""
    number = 2
    while (free := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return free
