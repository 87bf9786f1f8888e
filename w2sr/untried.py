"""Paths that only a GPU takes, and which of them have been run on one. The rest say so in the log, the first time."""

from __future__ import annotations

import logging
from functools import cache

_log = logging.getLogger(__name__)

RUN_ON_A_GPU: frozenset[str] = frozenset()
"""Names of paths, as `say_if_untried` is given them, that a page of docs/results/gpu/ measures: none so far."""


@cache
def say_if_untried(path: str) -> None:
    """Logs, once a process, that a path of the code has not been run on a GPU by its authors."""
    if path not in RUN_ON_A_GPU:
        _log.warning(
            "%s has never been run on a GPU by the authors of w2sr. Before you trust it: "
            "python benchmarks/gpu.py --part correctness (see docs/results/gpu/README.md).",
            path,
        )
