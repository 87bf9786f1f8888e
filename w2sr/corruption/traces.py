"""Which traces are corrupted, and what is stored with them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from w2sr import chance
from w2sr.corruption.errors import Change, Corrupted, Kind, corrupt_text
from w2sr.supervision import answer_span, no_loss_spans
from w2sr.types import Trace
from w2sr.verify.extraction import NamedRule, Span, extract, parse_rules


@dataclass(frozen=True)
class Corruption:
    """Errors that are put into traces.

    Attributes:
        kind: what goes wrong; see `w2sr.corruption.errors`.
        rate: share of the traces that are chosen, in [0, 1]. Each is chosen by the seed and its id, so a smaller rate
            chooses a subset of a larger one, and what is chosen depends on no other trace and on no other use of the
            seed: among the traces that a selection keeps the share is the same.
        seed: of the choice of traces, and of places in them.
        whole_to: new numbers must be whole, from 0 to this: for a tokenizer that knows no others, such as the
            miniature's (199). A trace that has no such error counts as one with nothing to corrupt.
    """

    kind: Kind
    rate: float
    seed: int = 0
    whole_to: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"corruption.kind={self.kind!r} is unknown. Choose one of {', '.join(get_args(Kind))}.")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"corruption.rate={self.rate} must be a share in [0, 1].")

    def chooses(self, trace: Trace) -> bool:
        """Whether a trace is to be corrupted."""
        return chance.uniform("corrupted", self.seed, trace.trace_id) < self.rate

    def corrupt(self, trace: Trace, answer: Span | None) -> Corrupted | None:
        """The completion with its error, whether or not it is chosen; None where nothing in it can err so."""
        turns = itertools.count()

        def pick(count: int) -> int:
            return chance.integer("corruption_site", self.seed, trace.trace_id, next(turns)) % count

        return corrupt_text(
            trace.completion, self.kind, pick, problem=trace.problem, answer=answer, whole_to=self.whole_to
        )


@dataclass(frozen=True, slots=True)
class CorruptionReport:
    """What became of the traces. `num_inconsistent` of the corrupted say that their chain does not go on."""

    corruption: Corruption
    num_traces: int
    num_chosen: int
    num_corrupted: int
    num_inconsistent: int

    def __str__(self) -> str:
        share = self.num_corrupted / self.num_traces if self.num_traces else 0.0
        nothing = self.num_chosen - self.num_corrupted
        return (
            f"corruption {self.corruption.kind}, rate {self.corruption.rate:g}, seed {self.corruption.seed}: "
            f"{self.num_chosen:,} of {self.num_traces:,} traces chosen, {nothing:,} of them hold nothing to corrupt; "
            f"{self.num_corrupted:,} corrupted ({100 * share:.1f} %), {self.num_inconsistent:,} not consistently"
        )


def corrupt_traces(
    traces: Sequence[Trace], corruption: Corruption, rules: Sequence[str] = ()
) -> tuple[list[Trace], CorruptionReport]:
    """The traces in their order, the chosen ones corrupted: without answer and verdict, which are to be found anew.

    Args:
        traces: what teachers wrote.
        corruption: which errors, and how many.
        rules: extraction rules of traces that were not verified, and so do not say where their answer stands.

    Raises:
        ValueError: a trace is corrupted already.
    """
    twice = next((trace for trace in traces if trace.corruption), None)
    if twice is not None:
        raise ValueError(
            f"Trace {twice.trace_id!r} is corrupted already ({twice.corruption[:60]}...). Start from others."
        )
    parsed = parse_rules(rules) if rules else ()
    made: list[Trace] = []
    num_chosen = num_corrupted = num_inconsistent = 0
    for trace in traces:
        if not corruption.chooses(trace):
            made.append(trace)
            continue
        num_chosen += 1
        corrupted = corruption.corrupt(trace, _answer(trace, parsed))
        made.append(trace if corrupted is None else _with_error(trace, corruption.kind, corrupted))
        num_corrupted += corrupted is not None
        num_inconsistent += corrupted is not None and not corrupted.consistent
    return made, CorruptionReport(corruption, len(traces), num_chosen, num_corrupted, num_inconsistent)


def _answer(trace: Trace, rules: Sequence[NamedRule]) -> Span | None:
    return answer_span(trace) if trace.answer_rule or not rules else extract(trace.completion, rules).span


def _with_error(trace: Trace, kind: Kind, corrupted: Corrupted) -> Trace:
    """Rule and grader stay, so that the trace is verified as it was before."""
    truth = {"kind": kind, "consistent": corrupted.consistent, "changes": [c._asdict() for c in corrupted.changes]}
    spans = [(_moved(start, corrupted.changes), _moved(end, corrupted.changes)) for start, end in no_loss_spans(trace)]
    return replace(
        trace,
        completion=corrupted.text,
        num_tokens=-1,
        answer=None,
        verdict="",
        verdict_reason="",
        no_loss_spans=json.dumps(spans) if spans else "",
        corruption=json.dumps(truth, ensure_ascii=False),
    )


def _moved(position: int, changes: Sequence[Change]) -> int:
    """Where a character of the old text stands in the new one; inside of a change, where that begins."""
    shift = 0
    for change in changes:
        begin = change.span[0] - shift  # in the old text
        if position < begin + len(change.before):
            return change.span[0] if position > begin else position + shift
        shift += len(change.after) - len(change.before)
    return position + shift


def restored(trace: Trace) -> str:
    """The completion as it was before its corruption, from the ground truth that the trace bears."""
    text = trace.completion
    for change in reversed(json.loads(trace.corruption)["changes"] if trace.corruption else []):
        start, end = change["span"]
        assert text[start:end] == change["after"], f"{trace.trace_id}: the ground truth is not of this completion"
        text = text[:start] + change["before"] + text[end:]
    return text
