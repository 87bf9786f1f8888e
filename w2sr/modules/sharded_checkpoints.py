"""Checkpoints of a sharded run: a directory with a file of tensors from every rank, whole or not there.

The tensors (weights, optimizer state) are torch's distributed checkpoint, which any number of ranks can read; numbers,
names and counters are in `rest.pt`, and the label says how far the run was and how large each file is (`w2sr.runs`).
The index of a distributed checkpoint is a pickle: it is read from run directories only.
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from w2sr.ranks import on_all_ranks
from w2sr.runs import Progress, check_checkpoint, holds_a_run, write_label

REST = "rest.pt"


def write_sharded(path: Path, tensors: Mapping[str, Any], rest: Mapping[str, Any], progress: Progress) -> None:
    """Writes a checkpoint beside its place, then renames it there. Every rank must call it.

    Args:
        path: the directory that the checkpoint becomes.
        tensors: nested dictionaries of tensors, each rank with its shards.
        rest: what `torch.load(weights_only=True)` reads; rank 0's is written.
        progress: for the label.

    Raises:
        OSError: a rank could not write. All ranks raise it; what lay there before is as it was.
    """
    aside = path.with_name(f".{path.name}.tmp")

    def finish() -> None:
        content = io.BytesIO()  # torch.save to a full disk raises an error that does not say so
        torch.save(dict(rest), content)
        with (aside / REST).open("wb") as stream:
            stream.write(content.getbuffer())
            stream.flush()
            os.fsync(stream.fileno())
        write_label(aside, progress)
        put_in_place(aside, path)

    try:
        _on_rank_0(lambda: _empty(aside))
        try:
            dcp.save(dict(tensors), checkpoint_id=aside)
        except CheckpointException as error:  # all ranks raise it where one could not write
            raise OSError(_reasons(failure[0] for failure in error.failures.values())) from error
        _on_rank_0(finish)
    except OSError as error:
        free_mib = shutil.disk_usage(path.parent).free / 2**20
        _on_rank_0(lambda: shutil.rmtree(aside, ignore_errors=True))
        raise OSError(
            f"The checkpoint {path} cannot be written: {error} ({free_mib:,.1f} MiB were free). What lay there before "
            "is as it was. Make room, then go on: --ckpt_path last."
        ) from error


def read_rest(path: Path) -> dict[str, Any]:
    """What a sharded checkpoint holds beside its tensors. Raises a ValueError where it is not whole, or not ours."""
    check_checkpoint(path)
    if not holds_a_run(path.parent.parent):
        raise ValueError(
            f"{path} lies in no run directory of w2sr: there is no {path.parent.parent / 'config.yaml'}. Sharded "
            "checkpoints can hold code, so only those of your own runs are read. Copy the run directory as a whole."
        )
    rest: dict[str, Any] = torch.load(path / REST, weights_only=True)
    return rest


def read_tensors(path: Path) -> dict[str, Any]:
    """All tensors of a sharded checkpoint, whole, in the memory of this process."""
    metadata = dcp.FileSystemReader(path).read_metadata()
    flat = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
        dcp.load(flat, checkpoint_id=path, no_dist=True)
    nested: dict[str, Any] = {}
    for name, tensor in flat.items():
        *outer, last = metadata.planner_data[name]
        level = nested
        for key in outer:
            level = level.setdefault(key, {})
        level[last] = tensor
    return nested


def as_one_process(rest: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint that one process would have written, from the two parts of a sharded one.

    One process counts its optimizer's parameters, in the order of their groups, where a sharded run names them.
    """
    states = []
    for index, groups in enumerate(rest.pop("param_groups")):
        names = [name for group in groups for name in group["params"]]
        number = {name: place for place, name in enumerate(names)}
        by_name = tensors.get(f"optimizer_{index}", {})
        states.append(
            {
                "state": {number[name]: state for name, state in by_name.items()},
                "param_groups": [{**group, "params": [number[name] for name in group["params"]]} for group in groups],
            }
        )
    return {**rest, "state_dict": tensors["state_dict"], "optimizer_states": states}


def by_name(optimizer_state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """One process's optimizer state with the parameters' names, in the order of its groups, for their numbers."""
    return {
        "state": {names[number]: state for number, state in optimizer_state["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in optimizer_state["param_groups"]
        ],
    }


def remove(path: Path) -> None:
    """Removes a checkpoint. It is renamed first, so that no half of one keeps the name."""
    away = path.with_name(f".{path.name}.removed")
    path.rename(away)
    _delete(away)


def _reasons(failures: Iterable[BaseException]) -> str:
    """What the ranks ran into, each thing once. Where the disk fills up while torch ends a file, it says no more of it
    than that the file is shorter than expected, in a RuntimeError."""
    told = [error.strerror if isinstance(error, OSError) and error.strerror else str(error) for error in failures]
    return "; ".join(dict.fromkeys(told))


def put_in_place(aside: Path, path: Path) -> None:
    """Renames a checkpoint to its name, in two steps, because a directory cannot be replaced in one.

    Between them the old one has a name that `runs` knows.
    """
    before = path.with_name(f".{path.name}.before")
    _delete(before)
    if os.path.lexists(path):
        path.rename(before)
    aside.rename(path)
    _delete(before)


def _empty(folder: Path) -> None:
    _delete(folder)
    folder.mkdir(parents=True)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _on_rank_0(act: Callable[[], None]) -> None:
    """Rank 0 acts while the others wait. Where it cannot, all raise its OSError."""
    refusal: OSError | None = None
    if torch.distributed.get_rank() == 0:
        try:
            act()
        except OSError as error:
            refusal = error
    for letter in filter(None, on_all_ranks(refusal and (refusal.strerror or str(refusal)))):
        raise OSError(letter) from refusal
