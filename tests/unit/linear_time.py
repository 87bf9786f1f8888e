"""Whether something takes linear time, by the CPU seconds of this process alone."""

from __future__ import annotations

import time
from collections.abc import Callable

GROWTH = 8
"""The long text has so many times the characters of the short one."""
LIMIT = 4 * GROWTH
"""Linear: 8 times the seconds, quadratic 64 times. Between the two, with as much room on either side as a factor."""
LEAST_S = 0.02
"""Shorter times are noise: a text that takes less is as good as one that takes so long."""


def assert_linear(work: Callable[[str], object], unit: str, characters: int) -> None:
    """Raises unless eight times the text takes at most 32 times the CPU seconds."""
    short, again, long = (
        _seconds(work, unit * (size // len(unit))) for size in (characters, characters, GROWTH * characters)
    )
    limit = LIMIT * max(min(short, again), LEAST_S)
    assert long < limit, f"{unit!r}: {short:.3f} s, and {long:.3f} s for {GROWTH} times the text"


def _seconds(work: Callable[[str], object], text: str) -> float:
    began = time.process_time()
    work(text)
    return time.process_time() - began
