"""Runs as one of two ranks: python rank_zero.py RANK FOLDER. What `from_first_rank` gives, and what it raises."""

from __future__ import annotations

import sys

import torch

from w2sr.ranks import from_first_rank, meet


def fail() -> None:
    raise ValueError("no such folder")


def main() -> None:
    rank = int(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
    meet()
    print(from_first_rank(lambda: f"made on {rank}"))
    try:
        from_first_rank(fail)
    except (ValueError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}")
    meet()


if __name__ == "__main__":
    main()
