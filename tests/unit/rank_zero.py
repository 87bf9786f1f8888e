"""Runs as one of two ranks: python rank_zero.py RANK FOLDER. What ranks do together, and what they raise."""

from __future__ import annotations

import socket
import sys
from typing import Any

import torch

from w2sr.ranks import from_first_rank, meet, on_all_ranks, together
from w2sr.rollouts.weight_sync import machine_folder


def fail() -> None:
    raise ValueError("no such folder")


def fail_on_rank_1() -> int:
    if torch.distributed.get_rank() == 1:
        raise OSError("no room")
    return 0


def machine() -> str:
    """How many folders for weights there are on all ranks, and which ranks write one."""
    policy: Any = torch.nn.Linear(2, 2)  # as much of a policy as has a size
    with machine_folder(policy) as (folder, writes):
        assert folder.is_dir()
        folders, writers = on_all_ranks(folder), on_all_ranks(writes)
    meet()
    assert not folder.exists()
    return f"{len(set(folders))} folders, written by {writers}"


def main() -> None:
    rank = int(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
    meet()
    print(from_first_rank(lambda: f"made on {rank}"))
    for make in (lambda: from_first_rank(fail), lambda: together(fail_on_rank_1)):
        try:
            make()
        except (ValueError, OSError, RuntimeError) as error:
            print(f"{type(error).__name__}: {error}")
    print(machine())
    socket.gethostname = lambda: f"machine-{rank}"
    print(machine())
    meet()


if __name__ == "__main__":
    main()
