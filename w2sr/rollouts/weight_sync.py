"""How the weights of a policy reach an engine that holds a copy of them: as files, in memory where there is room.

A stamp such as '9f86d081/12' names the weights of one update of one run. An engine keeps it beside its weights and
loses both when it is started anew, so whoever reads the stamp back knows which weights are there.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.distributed.tensor import DTensor

from w2sr.policy import Policy

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory."""
ROOM_TO_SPARE = 1.1
"""So many times the weights' own size must be free there."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def new_run() -> str:
    """The first part of a run's stamps, such as '9f86d081': another run with the same engine has another one."""
    return secrets.token_hex(4)


@contextmanager
def sync_folder(policy: Policy, parent: str | Path | None = None) -> Iterator[Path]:
    """A new folder for the policy's weights, which goes with the `with` block. All ranks call it together.

    Args:
        policy: its size says whether it fits into memory.
        parent: where to make the folder; None takes memory, or the folder for temporary files where memory is short.

    Raises:
        ValueError: the policy's weights are spread over ranks, or `parent` is no folder.
    """
    if any(isinstance(parameter, DTensor) for parameter in policy.parameters()):
        raise ValueError(
            "The policy's weights are sharded over ranks, and an engine with a copy of its own is given whole ones. "
            "Use the engine w2sr.rollouts.Embedded, or a strategy that does not shard (ddp)."
        )
    if parent is not None and not Path(parent).is_dir():
        raise ValueError(f"sync_folder={parent} is no folder here. Make it, on a disk that the server sees too.")
    folder = Path(tempfile.mkdtemp(prefix="w2sr-weights-", dir=parent or _roomy(policy)))
    folder.chmod(0o755)  # a server may run as somebody else
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _roomy(policy: Policy) -> Path:
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    wanted, found = ROOM_TO_SPARE * num_bytes, tempfile.gettempdir()
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= wanted:
        found = str(MEMORY)
    _log.info("Weights of %.2f GiB reach the engine through files in %s.", num_bytes / 2**30, found)
    return Path(found)


@contextmanager
def written(policy: Policy, folder: Path) -> Iterator[None]:
    """The policy's present weights in `folder` as safetensors, adapters merged, for as long as the block lasts.

    Untied: vLLM 0.32 for CPUs packs the output embedding once more, and reloads only the input's where they are one.
    """
    policy.save_untied(folder)
    try:
        yield
    finally:
        for file in folder.glob("*.safetensors*"):
            file.unlink()


def meet() -> None:
    """Waits until every rank is here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def from_first_rank(make: Callable[[], _T]) -> _T:
    """What `make` returns on rank 0, on every rank; where it raises there, every rank raises.

    So nobody waits at a barrier for a rank that has ended.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return make()
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            torch.distributed.broadcast_object_list([None, f"{type(error).__name__}: {error}"], src=0)
            raise
    torch.distributed.broadcast_object_list(outcome, src=0)
    made, failure = outcome
    if failure is not None:
        raise RuntimeError(f"Rank 0 ended with {failure}")
    return cast(_T, made)
