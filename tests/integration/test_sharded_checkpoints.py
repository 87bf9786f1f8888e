"""Sharded checkpoints: stopped on two processes, gone on from on one and back; half ones and foreign ones refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from w2sr import __version__
from w2sr.cli import main
from w2sr.modules.checkpoints import WholeCheckpointIO
from w2sr.modules.sharded_checkpoints import REST, read_tensors
from w2sr.runs import LABEL_FILE, Progress, newest_checkpoint, read_label, where_it_stands

FitConfig = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 240
LOSS_ATOL = 2e-5
"""Losses of 6 to 8 in float32 (5e-7 an ulp), summed in another order, after up to 8 optimizer steps."""
WEIGHT_ATOL = 1e-5
SHARDED = {"trainer__strategy": "fsdp2", "trainer__devices": 2}
ONE_SHARD = {"trainer__strategy": "fsdp2", "trainer__devices": 1}
WHOLE: dict[str, Any] = {}
LAST_TWO = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "step", "mode": "max", "every_n_train_steps": 1, "save_top_k": 2, "filename": "at-{step}"},
}
BEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "val/pass@1", "mode": "max", "save_top_k": 1, "filename": "best-{step}"},
}
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}

DRIVER = """
import os, signal, sys
import torch
from torch.distributed.checkpoint import FileSystemWriter
signal.signal(signal.SIGINT, signal.default_int_handler)
from w2sr.cli import main
from w2sr.modules import sft
real_step = sft.SFTModule.training_step
def pressed(self, *given):
    if os.environ.get("PRESS_AT") == str(self.trainer.global_step) and self.global_rank == 0:
        os.killpg(0, signal.SIGINT)  # what a terminal does
    return real_step(self, *given)
sft.SFTModule.training_step = pressed
real_write = FileSystemWriter.write_data
def full(self, *given):
    if os.environ.get("FULL_AT", "nothing") in str(self.path) and torch.distributed.get_rank() == 1:
        raise OSError(28, "No space left on device")
    return real_write(self, *given)
FileSystemWriter.write_data = full
main()
"""


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, fit_config: FitConfig, tiny_world: Any
) -> Callable[..., tuple[int, str]]:
    """Runs `fit` as a user does: (folder, settings, words, environment) → exit status, what it said on stderr."""
    driver = tmp_path_factory.mktemp("driver") / "drive.py"
    driver.write_text(DRIVER)

    def start(folder: Path, settings: dict[str, Any], *words: str, **environment: str) -> tuple[int, str]:
        config = fit_config(
            folder,
            data__max_tokens=120,
            data__validation={"five": {"path": str(tiny_world.validation)}},
            trainer__callbacks=[LAST_TWO, BEST, EXPORT],
            **settings,
        )
        command = [sys.executable, str(driver), "fit", "--config", str(config), *words]
        both = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        with subprocess.Popen(
            command, env=both, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                errors = process.communicate(timeout=HANG_S)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail("hangs")
        return process.returncode, errors

    return start


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, run: Any) -> Path:
    """The folder of a run in one process that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, errors = run(folder, WHOLE)
    assert code == 0, errors[-3000:]
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, run: Any) -> tuple[Path, str]:
    """The folder of a run on two processes that Ctrl-C stopped in its sixth step, and its letter."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    code, errors = run(folder, SHARDED, PRESS_AT="5")
    assert code == 130, errors[-3000:]
    return folder, errors


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "run", symlinks=True)
    return to / "run"


def test_ctrl_c_on_two_processes_leaves_a_sharded_checkpoint(stopped: tuple[Path, str]) -> None:
    folder, letter = stopped
    last = folder / "checkpoints" / "last.ckpt"
    assert letter.count(f"Stopped at optimizer step 6 of 8 (epoch 1). Checkpoint: {last}\n") == 1
    assert "Traceback" not in letter
    assert newest_checkpoint(folder) == last and read_label(last) == Progress(6, 8, 1)
    files = {path.name for path in last.iterdir()}
    assert files == {".metadata", "__0_0.distcp", "__1_0.distcp", REST, LABEL_FILE}
    sizes = [(last / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1)]
    assert 0.8 < sizes[0] / sizes[1] < 1.25, "each rank wrote its half"
    assert f"stopped at step 6 of 8 (epoch 1); checkpoint {last}, written " in where_it_stands(folder)


def test_the_last_two_and_the_best_are_kept(stopped: tuple[Path, str]) -> None:
    """Every step is saved. Pass@1 is 0 throughout, so the first validation (after step 3) stays the best."""
    names = {path.name for path in (stopped[0] / "checkpoints").iterdir()}
    assert names == {"at-step=5.ckpt", "at-step=6.ckpt", "best-step=3.ckpt", "last.ckpt"}, "and no leftover"


@pytest.mark.parametrize("settings", [WHOLE, ONE_SHARD], ids=["one process", "fsdp2 on one process"])
def test_from_two_processes_to_one(
    settings: dict[str, Any], stopped: tuple[Path, str], whole: Path, run: Any, tmp_path: Path, scalars: Scalars
) -> None:
    folder = copied(stopped[0], tmp_path)
    code, errors = run(folder, settings, "--ckpt_path", "last")
    assert code == 0, errors[-3000:]
    assert_same_run(folder, whole, scalars)


def test_from_one_process_to_two(whole: Path, run: Any, tmp_path: Path, scalars: Scalars) -> None:
    folder = tmp_path / "run"
    code, errors = run(folder, WHOLE, PRESS_AT="5")
    assert code == 130 and (folder / "checkpoints" / "last.ckpt").is_file(), errors[-3000:]
    code, errors = run(folder, SHARDED, "--ckpt_path", "last")
    assert code == 0, errors[-3000:]
    assert_same_run(folder, whole, scalars)


def assert_same_run(folder: Path, whole: Path, scalars: Scalars) -> None:
    for tag in ("train/loss", "train/grad_norm"):
        assert scalars(folder, tag) == pytest.approx(scalars(whole, tag), abs=LOSS_ATOL, rel=1e-4), tag
    assert list(scalars(folder, "train/loss")) == list(range(8))
    assert scalars(folder, "train/learning_rate") == scalars(whole, "train/learning_rate")
    weights = [load_file(each / "student" / "model.safetensors") for each in (folder, whole)]
    torch.testing.assert_close(*weights, atol=WEIGHT_ATOL, rtol=0)


def test_a_shard_that_is_absent_or_cut_is_refused_and_the_previous_checkpoint_named(
    stopped: tuple[Path, str], tmp_path: Path
) -> None:
    folder = copied(stopped[0], tmp_path)
    last, before = (folder / "checkpoints" / name for name in ("last.ckpt", "at-step=6.ckpt"))
    offer = rf"Name another one: {before} is good, at step 6 of 8 \(epoch 1\)\."
    shard = last / "__1_0.distcp"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=rf"__1_0\.distcp has [\d,]+ bytes of [\d,]+\)\. {offer}"):
        WholeCheckpointIO().load_checkpoint(last)
    shard.unlink()
    with pytest.raises(ValueError, match=rf"its file __1_0\.distcp is absent\)\. {offer}"):
        WholeCheckpointIO().load_checkpoint(last)
    shard.write_bytes(content)
    WholeCheckpointIO().load_checkpoint(last)
    (last / LABEL_FILE).unlink()
    with pytest.raises(ValueError, match=rf"it has no {LABEL_FILE}, which is written last\)\. {offer}"):
        WholeCheckpointIO().load_checkpoint(last)


def test_a_checkpoint_of_newer_code_or_of_no_run_of_ours_is_refused(stopped: tuple[Path, str], tmp_path: Path) -> None:
    folder = copied(stopped[0], tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    label = json.loads((last / LABEL_FILE).read_text())
    (last / LABEL_FILE).write_text(json.dumps({**label, "format": 2, "w2sr": "0.9.7"}))
    letter = rf"\(w2sr 0\.9\.7 wrote it, in format 2; this is w2sr {__version__}, .* up to 1\)\. Name another"
    with pytest.raises(ValueError, match=letter):
        WholeCheckpointIO().load_checkpoint(last)
    (last / LABEL_FILE).write_text(json.dumps(label))
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"lies in no run directory of w2sr.*can hold code"):
        WholeCheckpointIO().load_checkpoint(last)


def test_a_run_that_died_while_a_checkpoint_was_replaced(stopped: tuple[Path, str], tmp_path: Path) -> None:
    """Killed while the next one is written; and between the two renames."""
    folder = copied(stopped[0], tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    shutil.copytree(last, last.with_name(".last.ckpt.tmp"))
    (last.with_name(".last.ckpt.tmp") / LABEL_FILE).unlink()
    assert newest_checkpoint(folder) == last
    last.rename(before := last.with_name(".last.ckpt.before"))
    assert newest_checkpoint(folder) == before and read_label(before) == Progress(6, 8, 1)


def test_a_disk_that_one_rank_finds_full_is_told_and_the_checkpoint_before_it_stays(
    stopped: tuple[Path, str], run: Any, tmp_path: Path
) -> None:
    folder = copied(stopped[0], tmp_path)
    code, errors = run(folder, SHARDED, "--ckpt_path", "last", FULL_AT="at-step=7")
    assert code == 2, errors[-3000:]
    place = folder / "checkpoints" / "at-step=7.ckpt"
    assert f"The checkpoint {place} cannot be written: " in errors and "No space left on device" in errors
    assert "go on: --ckpt_path last" in errors and "Traceback" not in errors
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert "at-step=7.ckpt" not in names and not [name for name in names if name.startswith(".")]
    assert newest_checkpoint(folder) == folder / "checkpoints" / "last.ckpt"


FILL = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from w2sr.modules.sharded_checkpoints import read_tensors, write_sharded
from w2sr.runs import Progress, flaw
rank, folder, meeting = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
distributed.init_process_group("gloo", f"file://{meeting}", timedelta(seconds=60), rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
place, filler = folder / "last.ckpt", folder / "filler"
log = open(f"{meeting}.{rank}", "w", buffering=1)
def write(step):
    shard = DTensor.from_local(torch.full((10_000,), float(step)), mesh, [Shard(0)])
    write_sharded(place, {"w": shard}, {"global_step": step}, Progress(step, None, 0))
write(1)
size = sum(path.stat().st_size for path in place.iterdir())
pages = 0
while True:
    if rank == 0:
        filler.write_bytes(b"")
        free = __import__("shutil").disk_usage(folder).free
        filler.write_bytes(bytes(free - 4096 * pages))
    distributed.barrier()
    try:
        write(2)
        break
    except OSError as error:
        letter = str(error)
    kept = float(read_tensors(place)["w"].unique()) if flaw(place) is None else flaw(place)
    names = sorted(path.name for path in folder.iterdir())
    said = "cannot be written: " in letter and " (0." in letter and " MiB were free)" in letter and "\\n" not in letter
    print(rank, pages, kept, names == ["filler", "last.ckpt"], said, repr(letter), file=log)
    distributed.barrier()
    pages += 1
print(rank, "done", float(read_tensors(place)["w"].unique()), 4096 * pages >= size, file=log)
"""


def test_a_disk_that_is_full_after_any_number_of_pages(tmp_path: Path) -> None:
    """A real file system with room for 0, 1, 2 ... pages: whatever file of the checkpoint is the one that does not fit,
    both ranks say so, and the checkpoint before it is whole."""
    (tmp_path / "fill.py").write_text(FILL)
    (disk := tmp_path / "disk").mkdir()
    both = 'mount -t tmpfs -o size=400k tmpfs "$1" && { "$2" "$3" 1 "$1" "$4" & "$2" "$3" 0 "$1" "$4"; wait $!; }'
    words = ["unshare", "-rm", "sh", "-c", both, "sh", str(disk), sys.executable, str(tmp_path / "fill.py")]
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*words, str(tmp_path / "meeting")], env=environment, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = "".join((tmp_path / f"meeting.{rank}").read_text() for rank in (0, 1))
    lines = [line.split(" ", 5) for line in said.splitlines()]
    ends = sorted(line for line in lines if line[1] == "done")
    assert ends == [["0", "done", "2.0", "True"], ["1", "done", "2.0", "True"]]
    tries = [line for line in lines if line[1] != "done"]
    assert len(tries) == 2 * len({line[1] for line in tries}) > 40, "both ranks, for more than 20 sizes of the disk"
    for _, _, kept, nothing_left, is_told, letter in tries:
        assert (kept, nothing_left, is_told) == ("1.0", "True", "True"), letter


def test_a_sharded_checkpoint_is_exported_tensor_by_tensor(
    stopped: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_world: Any
) -> None:
    main(["export", str(stopped[0]), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "at step 6 of 8 (epoch 1); log-probabilities of " in said and "agree within 0 nats" in said
    saved = read_tensors(stopped[0] / "checkpoints" / "last.ckpt")["state_dict"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == load_file(tiny_world.student / "model.safetensors").keys()
    for name, weight in written.items():
        torch.testing.assert_close(saved[f"policy.lm.{name}"], weight, atol=0, rtol=0)
