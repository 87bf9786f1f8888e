"""What ranks tell each other. A single process is the first rank of one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch

PATIENCE = timedelta(days=30)
"""Ranks that generate end hours apart; a process group gives up after 30 minutes by default."""

_T = TypeVar("_T")


def patient_group() -> Any:
    """A process group whose members may keep each other waiting for days; None in a single process."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if _distributed() else None


def rank() -> int:
    """This process's number."""
    return torch.distributed.get_rank() if _distributed() else 0


def meet() -> None:
    """Waits until every rank is here."""
    if _distributed():
        torch.distributed.barrier()


def on_all_ranks(value: Any, group: Any = None) -> list[Any]:
    """The value of every rank, on every rank."""
    if not _distributed():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def together(make: Callable[[], _T]) -> _T:
    """What `make` returns here, after every rank's has returned. Where it raises on one, every rank raises.

    So nobody goes on to wait for a rank that has ended.
    """
    if not _distributed():
        return make()
    made = failure = None
    try:
        made = make()
    except Exception as error:
        failure = error
    said = on_all_ranks(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for other, text in enumerate(said):
        if text is not None:
            raise RuntimeError(f"Rank {other} ended with {text}")
    return cast(_T, made)


def from_first_rank(make: Callable[[], _T]) -> _T:
    """What `make` returns on rank 0, on every rank; where it raises there, every rank raises."""
    return cast(_T, on_all_ranks(together(lambda: make() if rank() == 0 else None))[0])


def _distributed() -> bool:
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())
