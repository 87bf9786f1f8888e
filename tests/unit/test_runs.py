"""What is said of a run directory: how far its run came, its newest checkpoint, and the commands that follow."""

from __future__ import annotations

import io
import os
import sys
from datetime import date
from pathlib import Path

import pytest
import torch

from w2sr import __version__
from w2sr.modules.checkpoints import WholeCheckpointIO
from w2sr.runs import (
    Progress,
    add_label,
    check_checkpoint,
    mark_finished,
    mark_unfinished,
    newest_checkpoint,
    read_label,
    run_date,
    ways_on,
    where_it_stands,
)


def save(file: Path, step: int, age_s: int = 0) -> Path:
    """A checkpoint of 125 steps in all, written so many seconds before 2026-05-04 03:02:01 UTC."""
    WholeCheckpointIO().save_checkpoint({"global_step": step, "epoch": 3, "num_steps": 125, "w": torch.ones(9)}, file)
    os.utime(file, (1777863721 - age_s,) * 2)
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr(sys, "argv", ["lightning_cli.py"])
    (tmp_path / "demo").mkdir()
    return tmp_path / "demo"


def test_a_run_that_goes_on_keeps_its_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(date):
        @classmethod
        def today(cls) -> Clock:
            return cls(2026, 12, 1)

    monkeypatch.setattr("w2sr.runs.date", Clock)
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    (old / "config.yaml").write_text("model: {init_args: {template_date: 2026-11-30}}")  # YAML reads a date
    assert run_date(None, new, None) == run_date(None, new, "last") == "2026-12-01"
    assert run_date("2024-07-26", new, None) == "2024-07-26"
    assert run_date(None, old, None) == run_date(None, old, "last") == "2026-11-30"
    assert run_date(None, new, str(old / "checkpoints" / "step=4.ckpt")) == "2026-11-30"
    with pytest.raises(
        ValueError, match=r"model.template_date=2024-07-26, and the run in .*old that goes on has 2026-"
    ):
        run_date("2024-07-26", old, "last")
    (old / "config.yaml").write_text("model: {init_args: {student: a}}")  # of an older version
    assert run_date(None, old, "last") == "2026-12-01"


def test_a_label_is_read_without_the_weights_and_torch_passes_over_it(tmp_path: Path) -> None:
    file = save(tmp_path / "x.ckpt", 60)
    assert read_label(file) == Progress(step=60, num_steps=125, epoch=3)
    for mapped in (False, True):
        assert torch.equal(torch.load(file, weights_only=True, mmap=mapped)["w"], torch.ones(9))
    damaged = file.read_bytes().replace(torch.ones(9).numpy().tobytes(), b"\xff" * 36)
    (tmp_path / "damaged.ckpt").write_bytes(damaged)
    assert read_label(tmp_path / "damaged.ckpt") == Progress(60, 125, 3), "guard: the weights are not looked at"


def test_a_run_that_was_sharded_goes_on_in_one_process_and_saves_under_the_same_name(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    last.mkdir()
    (last / "__0_0.distcp").write_bytes(b"half of the weights")
    save(last, 60)
    assert read_label(last) == Progress(60, 125, 3) and [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_was_saved_otherwise_has_no_label(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "plain.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(save(tmp_path / "x.ckpt", 60).read_bytes()[:-40])
    (tmp_path / "sharded.ckpt").mkdir()
    assert [read_label(tmp_path / f"{name}.ckpt") for name in ("plain", "cut", "sharded")] == [None] * 3
    archive = io.BytesIO()
    torch.save({}, archive)
    add_label(archive, Progress(7, None, 0))
    (tmp_path / "endless.ckpt").write_bytes(archive.getvalue())
    assert str(read_label(tmp_path / "endless.ckpt")) == "step 7 (epoch 0)"


def test_last_is_the_newest_file_of_that_name(folder: Path) -> None:
    """Two ModelCheckpoints in one directory write last.ckpt and last-v1.ckpt; either may be the newer one."""
    assert newest_checkpoint(folder) is None
    checkpoints = folder / "checkpoints"
    save(checkpoints / "epoch=0-step=4.ckpt", 4, age_s=9)
    save(checkpoints / "epoch=1-step=8.ckpt", 8, age_s=8)
    (checkpoints / ".last.ckpt.tmp").touch()
    assert newest_checkpoint(folder) == checkpoints / "epoch=1-step=8.ckpt"
    save(checkpoints / "last.ckpt", 20, age_s=5)
    save(checkpoints / "last-v1.ckpt", 40, age_s=3)
    save(checkpoints / "best-step=41.ckpt", 41)
    assert newest_checkpoint(folder) == checkpoints / "last-v1.ckpt"
    save(checkpoints / "last.ckpt", 60, age_s=1)
    assert newest_checkpoint(folder) == checkpoints / "last.ckpt"


def test_a_checkpoint_that_is_not_whole_is_refused_and_a_good_one_named(folder: Path) -> None:
    checkpoints = folder / "checkpoints"
    good = save(checkpoints / "best.ckpt", 20, age_s=9)
    cut = save(checkpoints / "last.ckpt", 60)
    check_checkpoint(cut)
    content = cut.read_bytes()
    cut.write_bytes(content[:-40])
    offer = rf"Name another one: {good} is good, at step 20 of 125 \(epoch 3\)\."
    with pytest.raises(ValueError, match=rf"last\.ckpt is not a whole checkpoint \(the file is cut off.*\)\. {offer}"):
        check_checkpoint(cut)
    with pytest.raises(ValueError, match=rf"There is no checkpoint .*other\.ckpt\. {offer}"):
        check_checkpoint(checkpoints / "other.ckpt")
    good.unlink()
    with pytest.raises(ValueError, match=r"Name another one, or start anew\."):
        check_checkpoint(cut)


def test_a_checkpoint_of_newer_code_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("w2sr.runs.FORMAT", 2)
        newer.setattr("w2sr.runs.__version__", "0.9.7")
        file = save(folder / "checkpoints" / "last.ckpt", 60)
    with pytest.raises(
        ValueError, match=f"w2sr 0.9.7 wrote it, in format 2; this is w2sr {__version__}, which reads formats up to 1"
    ):
        WholeCheckpointIO().load_checkpoint(file)


def test_a_run_that_is_not_finished(folder: Path) -> None:
    assert where_it_stands(folder) == f"The run directory {folder} holds a run without a checkpoint."
    last = save(folder / "checkpoints" / "last.ckpt", 60)
    assert where_it_stands(folder) == (
        f"The run directory {folder} holds a run, stopped at step 60 of 125 (epoch 3); checkpoint {last}, "
        "written 2026-05-04 03:02:01."
    )


def test_a_finished_run_is_not_gone_on_with(folder: Path) -> None:
    save(folder / "checkpoints" / "last.ckpt", 125)
    mark_finished(folder, Progress(125, 125, 4))
    assert where_it_stands(folder) == f"The run directory {folder} holds a finished run of 125 optimizer steps."
    assert ways_on(folder, ["fit"]) == f"Start anew: python lightning_cli.py fit --trainer.default_root_dir={folder}-2"
    mark_unfinished(folder)
    assert "Go on:" in ways_on(folder, ["fit"])


@pytest.mark.parametrize("old", [["--ckpt_path", "x.ckpt"], ["--ckpt_path=x.ckpt"], []])
@pytest.mark.parametrize("spelled", ["--trainer.default_root_dir={}", "--trainer.default_root_dir {}"])
def test_the_commands_are_the_same_command_with_one_change(folder: Path, old: list[str], spelled: str) -> None:
    save(folder / "checkpoints" / "last.ckpt", 60)
    folder.with_name("demo-2").mkdir()
    where = spelled.format(folder).split(" ")
    go_on, anew = ways_on(folder, ["fit", *where, *old, "--config", "a b.yaml"]).splitlines()
    command = "python lightning_cli.py fit"
    assert go_on == f"Go on:      {command} {' '.join(where)} --config 'a b.yaml' --ckpt_path last"
    assert anew == f"Start anew: {command} --config 'a b.yaml' --trainer.default_root_dir={folder}-3"


def test_the_installed_program_is_called_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/w2sr"])
    assert ways_on(folder, ["fit"]) == f"Start anew: w2sr fit --trainer.default_root_dir={folder}-2"
