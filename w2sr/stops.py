"""A stop that a signal asks of a run in training, and the places where it is obeyed at once."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from w2sr.runs import Stopped
from w2sr.slurm import REQUEUE

SIGNALS = (signal.SIGINT, signal.SIGTERM, REQUEUE)
"""Ctrl-C; the end that SLURM or a container announces; the same with a requeue. Where processes of one run get
different ones, the later in this order counts."""


class StopRequest:
    """What a signal's handler notes, for whoever comes to a place where the run can end.

    Attributes:
        asked: the signal; None where no stop is asked for.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._at_once = False

    def note(self, signum: int) -> None:
        """Called by the handler. Raises `Stopped` inside of `at_once`."""
        self.asked = signal.Signals(signum)
        if self._at_once:
            raise Stopped(self.asked)

    @contextmanager
    def at_once(self, allowed: bool = True) -> Iterator[None]:
        """Inside, a stop interrupts whatever is done: nothing there changes what a checkpoint holds.

        `allowed=False` switches that off for a part of the block: where ranks must stop together.
        """
        before, self._at_once = self._at_once, allowed
        try:
            if allowed and self.asked is not None:
                raise Stopped(self.asked)
            yield
        finally:
            self._at_once = before


STOP = StopRequest()
"""Of this process, as signals are."""


def strongest(asked: Iterable[signal.Signals | None]) -> signal.Signals | None:
    """The signal that counts where processes got different ones.

    >>> strongest([None, signal.SIGTERM, signal.SIGINT]).name
    'SIGTERM'
    """
    return max((signum for signum in asked if signum is not None), key=SIGNALS.index, default=None)
