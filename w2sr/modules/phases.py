"""Where the seconds of a round go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Phases:
    """Seconds by the name of what was done, since the last `take`.

    Args:
        clock: wall seconds by default. `time.process_time` counts CPU seconds, which other processes hardly change.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = self.clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - began

    def take(self) -> dict[str, float]:
        """The seconds so far; counting begins anew."""
        seconds, self.seconds = self.seconds, {}
        return seconds
