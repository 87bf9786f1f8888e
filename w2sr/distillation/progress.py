"""How far a run is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from w2sr.distillation.tally import Tally
from w2sr.types import Trace


class TraceProgress:
    """Shows traces and tokens a second, and the shares that are correct and cut off so far.

    Args:
        num_done: traces that were there before this run.
        num_all: traces that there will be.
        label: which share of the work this is, or "".
        every_s: seconds between two lines where there is no terminal.
        console: where it is shown; None shows nothing.
    """

    def __init__(
        self, num_done: int, num_all: int, label: str = "", every_s: float = 30.0, console: Console | None = None
    ) -> None:
        self.num_done, self.num_all, self.label, self.every_s = num_done, num_all, label, every_s
        self.console = console
        self.tally = Tally()
        self.seconds = 0.0
        self._began_s = self._said_s = time.monotonic()
        self._bar = _bar(console) if console is not None and console.is_terminal else None
        self._task = self._bar.add_task(self.line(), total=num_all, completed=num_done) if self._bar else None

    def __enter__(self) -> TraceProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began_s
        if self._bar is not None:
            self._bar.stop()

    def add(self, trace: Trace) -> None:
        """Counts a trace, and shows it where it is time."""
        self.tally.add(trace)
        now_s = time.monotonic()
        self.seconds = now_s - self._began_s
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.num_done + self.tally.num_traces, description=self.line())
        elif self.console is not None and now_s - self._said_s >= self.every_s:
            self._said_s = now_s
            self.console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """`1,234 of 8,523 traces, 3.2/s, 1,532 tokens/s, 61 % correct, 4 % cut off`: fits into 80 characters."""
        tally, seconds = self.tally, max(self.seconds, 1e-9)
        line = f"{self.label}{self.num_done + tally.num_traces:,} of {self.num_all:,} traces"
        if not tally.num_traces:
            return line
        rates = f"{tally.num_traces / seconds:.1f}/s, {tally.num_tokens / seconds:,.0f} tokens/s"
        return f"{line}, {rates}, {100 * tally.correct_frac:.0f} % correct, {100 * tally.cut_off_frac:.0f} % cut off"


def _bar(console: Console) -> Progress:
    """The line first, whole; the bar gets what is left of the terminal's width."""
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
    return Progress(text, bar, TimeRemainingColumn(compact=True), console=console, expand=True)
