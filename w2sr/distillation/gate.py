"""The format gate: a teacher whose answers cannot be found is stopped before it has written thousands of traces."""

from __future__ import annotations

from w2sr.types import Trace

NUM_SHOWN = 3
SHOWN_CHARACTERS = 240


class FormatGate:
    """Looks once, when a store holds `num_traces` traces, whether enough of them have an extractable answer.

    Args:
        num_traces: how many traces are looked at.
        min_answers: the share of them that must have an answer; 0 lets everything pass.
        advice: what the user can change, said at the end of the message.
    """

    def __init__(self, num_traces: int, min_answers: float, advice: str) -> None:
        if num_traces < 1 or not 0 <= min_answers <= 1:
            raise ValueError(
                f"model.gate_traces={num_traces} must be at least 1 and model.gate_min_answers={min_answers} in [0, 1]."
            )
        self.num_traces, self.min_answers, self.advice = num_traces, min_answers, advice
        self.has_passed = min_answers == 0
        self._num_seen = self._num_answers = self._num_cut_off = 0
        self._shown: list[Trace] = []

    def add(self, trace: Trace) -> None:
        """Counts one trace."""
        self._num_seen += 1
        self._num_answers += trace.answer is not None
        self._num_cut_off += trace.finish_reason == "length"
        if trace.answer is None and len(self._shown) < NUM_SHOWN:
            self._shown.append(trace)

    def check(self) -> None:
        """Raises a ValueError, with three of the traces, if too few of those counted so far have an answer."""
        if self.has_passed or self._num_seen < self.num_traces:
            return
        share = self._num_answers / self._num_seen
        self.has_passed = share >= self.min_answers
        if self.has_passed:
            return
        examples = "".join(
            f"\n  {escaped(trace.trace_id)}, {trace.num_tokens:,} tokens, finish reason {trace.finish_reason}: "
            f"{escaped(trace.completion)}"
            for trace in self._shown
        )
        raise ValueError(
            f"Of the first {self._num_seen:,} traces {self._num_answers:,} ({100 * share:.1f} %) have an answer that "
            f"can be extracted; model.gate_min_answers={self.min_answers:g} asks for {100 * self.min_answers:g} %. "
            f"{self._num_cut_off:,} were cut off. Without an answer:{examples}\n{self.advice}"
        )


def escaped(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    r"""The beginning of a model's text on one line, with every control character escaped.

    >>> print(escaped("a\x1b[2Jb\nc" + "d" * 9, limit=8))
    'a\x1b[2Jb\nc' and 9 characters more
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:limit])
    more = len(text) - limit
    return f"'{shown}'" + (f" and {more:,} characters more" if more > 0 else "")
