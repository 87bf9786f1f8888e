"""What is counted of traces, and how it is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from w2sr.types import Trace

VERDICTS = ("correct", "incorrect", "no_answer", "timeout")


class Tally:
    """Counts of traces, their verdicts, their tokens, and those that met the token limit."""

    def __init__(self, traces: Iterable[Trace] = ()) -> None:
        self.num_traces = self.num_tokens = self.num_cut_off = self.longest = 0
        self.verdicts: Counter[str] = Counter()
        for trace in traces:
            self.add(trace)

    def add(self, trace: Trace) -> None:
        self.num_traces += 1
        self.num_tokens += trace.num_tokens
        self.num_cut_off += trace.finish_reason == "length"
        self.longest = max(self.longest, trace.num_tokens)
        self.verdicts[trace.verdict] += 1

    @property
    def correct_frac(self) -> float:
        return self._frac(self.verdicts["correct"])

    @property
    def cut_off_frac(self) -> float:
        return self._frac(self.num_cut_off)

    @property
    def mean_tokens(self) -> float:
        """Tokens of a trace on average; NaN without traces."""
        return self.num_tokens / self.num_traces if self.num_traces else float("nan")

    def _frac(self, count: int) -> float:
        return count / self.num_traces if self.num_traces else float("nan")

    def verdict_text(self) -> str:
        """`correct 578 (57.8 %), incorrect 400 (40.0 %), no answer 22 (2.2 %)`: what there is of each verdict."""
        said = [label for label in VERDICTS if self.verdicts[label]]
        counts = [(label.replace("_", " "), self.verdicts[label]) for label in said]
        return ", ".join(f"{label} {count:,} ({100 * self._frac(count):.1f} %)" for label, count in counts)
