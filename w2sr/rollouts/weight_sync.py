"""How the weights of a policy reach an engine that holds a copy of them: as files, in memory where there is room.

A stamp such as '9f86d081/12' names the weights of one update of one run. An engine keeps it beside its weights and
loses both when it is started anew, so whoever reads the stamp back knows which weights are there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from w2sr.policy import Policy
from w2sr.ranks import on_all_ranks, rank, together
from w2sr.sharding import save_copy

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory."""
PREFIX, LOCK = "w2sr-weights-", ".owner"
"""How such folders are called, and the file in them that their run has locked for as long as it lives."""
ROOM_TO_SPARE = 1.1
"""So many times the weights' own size must be free there."""

_log = logging.getLogger(__name__)


def new_run() -> str:
    """The first part of a run's stamps, such as '9f86d081': another run with the same engine has another one."""
    return secrets.token_hex(4)


@contextmanager
def sync_folder(policy: Policy, parent: str | Path | None = None) -> Iterator[Path]:
    """A new folder for the policy's weights, which goes with the `with` block.

    A run that was killed leaves its folder, in memory with the size of a model: those in the same place are removed.

    Args:
        policy: its size says whether it fits into memory.
        parent: where to make the folder; None takes memory, or the folder for temporary files where memory is short.

    Raises:
        ValueError: `parent` is no folder.
    """
    if parent is not None and not Path(parent).is_dir():
        raise ValueError(f"sync_folder={parent} is no folder here. Make it, on a disk that the server sees too.")
    place = Path(parent or _roomy(policy))
    remove_leftovers(place)
    folder, lock = _locked_folder(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def _locked_folder(place: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock. Nobody sees it under its name before it is locked."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=place))
    lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        os.close(lock)
        shutil.rmtree(hidden)
        raise ValueError(
            f"{place} is on a disk without file locks ({error.strerror}), by which a run that was killed is known. Set "
            "engine.init_args.sync_folder to a folder on another disk that the server sees too."
        ) from error
    hidden.chmod(0o755)  # a server may run as somebody else
    return hidden.rename(hidden.with_name(hidden.name[1:])), lock


def remove_leftovers(place: Path) -> None:
    """Removes the folders of weights in `place` that belong to this user, and whose run is gone.

    A lock goes with its process, however that ended; a number of a process may be given to another one.
    """
    for folder in place.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except (FileNotFoundError, PermissionError):  # its run removes it just now, or it is another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(lock)
            if found.st_nlink and found.st_uid == os.geteuid():  # without a name, another run has removed it
                shutil.rmtree(folder)
                _log.warning("Removed %s: a run that was killed had left it.", folder)
        except BlockingIOError:  # its run lives
            continue
        finally:
            os.close(lock)


def _roomy(policy: Policy) -> Path:
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    wanted, found = ROOM_TO_SPARE * num_bytes, tempfile.gettempdir()
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= wanted:
        found = str(MEMORY)
    _log.info("Weights of %.2f GiB reach the engine through files in %s.", num_bytes / 2**30, found)
    return Path(found)


@contextmanager
def machine_folder(policy: Policy) -> Iterator[tuple[Path, bool]]:
    """One `sync_folder` for all ranks of a machine, and whether this rank writes it: the machine's first one does."""
    machines = on_all_ranks(socket.gethostname())
    place = machines.index(socket.gethostname())
    writes = place == rank()
    with ExitStack() as stack:
        own = together(lambda: stack.enter_context(sync_folder(policy)) if writes else None)
        yield on_all_ranks(own)[place], writes


@contextmanager
def written(policy: Policy, folder: Path | None) -> Iterator[None]:
    """The policy's present weights in `folder` as safetensors, adapters merged, for as long as the block lasts.

    All ranks enter it together, those with None to take part in gathering a sharded policy.

    Untied: vLLM 0.32 for CPUs packs the output embedding once more, and reloads only the input's where they are one.
    """
    together(lambda: save_copy(policy, folder))
    try:
        yield
    finally:
        for file in folder.glob("*.safetensors*") if folder else ():
            file.unlink()
