"""What ranks tell each other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

PATIENCE = timedelta(days=30)
"""Ranks that generate end hours apart; a process group gives up after 30 minutes by default."""


def patient_group() -> Any:
    """A process group whose members may keep each other waiting for days; None in a single process."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if _distributed() else None


def on_all_ranks(value: Any, group: Any = None) -> list[Any]:
    """The value of every rank, on every rank."""
    if not _distributed():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def _distributed() -> bool:
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())
