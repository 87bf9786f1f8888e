"""What is in a set of traces, in numbers: verdicts, lengths, loops, and what the default gates would remove."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from w2sr import chance
from w2sr.selection import GateRow, is_looping, select
from w2sr.types import Keep, Trace

UNVERIFIED = "unverified"
VERDICTS = ("correct", "incorrect", "no_answer", "timeout", UNVERIFIED)
"""The verdicts in the order in which they are shown; a trace without one is `unverified`."""

LABEL_FREE = "label-free:"
"""A grader's name begins so where it judged without a reference answer."""

NUM_BINS = 12
TAIL_FRAC = 0.02
"""Where this share of the longest traces takes up half of the axis or more, they share one bin without an end."""

Unit = Literal["tokens", "characters"]
Bin = tuple[int, int | None]
"""Lengths from the first number up to, and without, the second; None: without an end."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the completions are, in `unit`. `counts` has one number a bin."""

    unit: Unit
    median: int
    longest: int
    bins: tuple[Bin, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """Counts of traces, by what they are. Names map to counts, the greatest first.

    `gates` maps P and N to what the default gates of `select` would do to the verified traces: the table, or the
    sentence with which `select` refuses. It is empty where no trace is verified.
    """

    num_traces: int
    num_problems: int
    by_verdict: dict[str, int]
    verdicts_by_teacher: dict[str, Counter[str]]
    verdicts_by_source: dict[str, Counter[str]]
    lengths: Lengths
    by_finish: dict[str, int]
    num_looping: int
    by_rule: dict[str, int]
    by_label_free_grader: dict[str, Counter[str]]
    gates: dict[Keep, list[GateRow] | str]

    @property
    def num_unverified(self) -> int:
        return self.by_verdict.get(UNVERIFIED, 0)

    @property
    def cut_off_frac(self) -> float:
        """Share of cut-off completions among those whose source says how they ended; NaN where none does."""
        num_cut, num_known = self.by_finish.get("length", 0), self.num_traces - self.by_finish.get("unknown", 0)
        return num_cut / num_known if num_known else float("nan")


def summarize(traces: Sequence[Trace]) -> TraceSummary:
    """Counts what is in the traces. Takes a few milliseconds for each long trace: loops are searched for."""
    if not traces:
        raise ValueError("There is no trace to summarize.")
    verified = [trace for trace in traces if trace.verdict]
    label_free = [trace for trace in traces if trace.grader.startswith(LABEL_FREE)]
    return TraceSummary(
        num_traces=len(traces),
        num_problems=len({trace.problem_id for trace in traces}),
        by_verdict=_counted(map(verdict_name, traces)),
        verdicts_by_teacher=_verdicts_by(traces, lambda trace: trace.teacher),
        verdicts_by_source=_verdicts_by(traces, lambda trace: trace.source),
        lengths=count_lengths(traces),
        by_finish=_counted(trace.finish_reason for trace in traces),
        num_looping=sum(is_looping(trace.completion) for trace in traces),
        by_rule=_counted(trace.answer_rule for trace in traces if trace.answer is not None),
        by_label_free_grader=_verdicts_by(label_free, lambda trace: trace.grader),
        gates={"P": gate_losses(verified, "P"), "N": gate_losses(verified, "N")} if verified else {},
    )


def verdict_name(trace: Trace) -> str:
    return trace.verdict or UNVERIFIED


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _verdicts_by(traces: Sequence[Trace], name: Callable[[Trace], str]) -> dict[str, Counter[str]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for trace in traces:
        counts[name(trace)][verdict_name(trace)] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1].total(), item[0])))


def gate_losses(traces: Sequence[Trace], keep: Keep) -> list[GateRow] | str:
    """What each default gate would remove, or the sentence with which `select` refuses these traces."""
    try:
        return select(traces, keep=keep).table
    except ValueError as error:
        return str(error)  # shown in place of the table: that nothing is left is what a reader must know


def length_unit(traces: Sequence[Trace]) -> Unit:
    """Tokens where every trace knows its number of them, else characters: one axis has one unit."""
    return "tokens" if all(trace.num_tokens >= 0 for trace in traces) else "characters"


def length_of(trace: Trace, unit: Unit) -> int:
    return trace.num_tokens if unit == "tokens" else len(trace.completion)


def count_lengths(traces: Sequence[Trace]) -> Lengths:
    """The histogram of the completions' lengths. The median is the lower one of two."""
    unit = length_unit(traces)
    lengths = sorted(length_of(trace, unit) for trace in traces)
    bins = length_bins(lengths)
    starts = [low for low, _ in bins]
    counts = Counter(bisect_right(starts, length) - 1 for length in lengths)
    return Lengths(
        unit=unit,
        median=lengths[(len(lengths) - 1) // 2],
        longest=lengths[-1],
        bins=bins,
        counts=tuple(counts[number] for number in range(len(bins))),
    )


def length_bins(lengths: Sequence[int]) -> tuple[Bin, ...]:
    """At most NUM_BINS bins of one round width over all lengths, which must be sorted, and one more for a long tail.

    >>> length_bins([3, 7, 12, 18, 24])
    ((2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14), (14, 16), (16, 18), (18, 20), (20, 22), (22, 24), (24, 26))
    """
    usual = lengths[max(0, int(len(lengths) * (1 - TAIL_FRAC)) - 1)]
    has_tail = lengths[-1] - lengths[0] > 2 * (usual - lengths[0])
    last = usual if has_tail else lengths[-1]
    width = next(step for step in _round_numbers() if last // step - lengths[0] // step < NUM_BINS)
    starts = range(lengths[0] // width * width, last + 1, width)
    bins: list[Bin] = [(low, low + width) for low in starts]
    end = starts[-1] + width
    return (*bins, (end, None)) if lengths[-1] >= end else tuple(bins)


def _round_numbers() -> Iterable[int]:
    """1, 2, 5, 10, 20, 50, ..."""
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def stratified_sample(traces: Sequence[Trace], num_wanted: int) -> list[Trace]:
    """So many traces, of each verdict its share, in the order in which they were given.

    Shares are rounded by the largest remainder, after every verdict that occurs got one trace while there was room.
    Which traces of a verdict are taken depends on the hash of their ids alone.

    Raises:
        ValueError: num_wanted is below 1.
    """
    if num_wanted < 1:
        raise ValueError(f"--limit {num_wanted} asks for no trace; give a number from 1, or leave it out.")
    if num_wanted >= len(traces):
        return list(traces)
    strata: defaultdict[str, list[int]] = defaultdict(list)
    for at, trace in enumerate(traces):
        strata[verdict_name(trace)].append(at)
    sizes = {name: len(strata[name]) for name in VERDICTS if name in strata}
    chosen: list[int] = []
    for name, share in _shares(sizes, num_wanted).items():
        chosen += sorted(strata[name], key=lambda at: (_place(traces[at]), at))[:share]
    return [traces[at] for at in sorted(chosen)]


def _shares(sizes: dict[str, int], num_wanted: int) -> dict[str, int]:
    """How many of each stratum: one each while there is room, the larger strata first, the rest in proportion."""
    shares = dict.fromkeys(sorted(sizes, key=lambda name: -sizes[name])[:num_wanted], 1)
    left, total = num_wanted - len(shares), sum(sizes.values()) - len(shares)
    exact = {name: left * (sizes[name] - 1) / max(total, 1) for name in shares}
    for name in shares:
        shares[name] += int(exact[name])
    by_remainder = sorted(shares, key=lambda name: int(exact[name]) - exact[name])
    for name in by_remainder[: num_wanted - sum(shares.values())]:
        shares[name] += 1
    return shares


def _place(trace: Trace) -> int:
    return chance.integer("shown", trace.trace_id)
