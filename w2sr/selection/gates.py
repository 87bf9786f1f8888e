"""Gates: each takes traces in the order of their ids and gives those that pass, in the same order."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

from w2sr import chance
from w2sr.chance import Use
from w2sr.selection.loops import is_looping
from w2sr.selection.strategy import Band, Choose, Gates, Portion, TopWithin
from w2sr.types import Keep, Trace
from w2sr.votes import has_answer

Gate = Callable[[list[Trace]], list[Trace]]
NamedGate = tuple[str, Gate]
Scores = Mapping[str, Mapping[str, float]]
"""Name of a score → trace_id → its value; NaN where the trace has none."""


class TooFewError(ValueError):
    """A control asks for more than there is."""


@dataclass(frozen=True)
class Context:
    """What gates know besides the traces.

    Attributes:
        seed: of every random choice.
        scores: those that were given.
        part: which part of a mixture chooses, from 1; 0 for the gates of the whole. Parts choose independently of each
            other and of the whole: a part's lucky traces must not be lucky again when the whole is cut.
    """

    seed: int = 0
    scores: Scores = field(default_factory=dict)
    part: int = 0

    def draw(self, use: Use, name: str) -> int:
        """A random number for a name, which depends on the use, the seed, the part and the name alone."""
        return chance.integer(use, self.seed, self.part, name)

    def in_turn(self, use: Use, traces: Iterable[Trace]) -> list[Trace]:
        """By sample index, the teachers in a random order for each problem: no name always comes first."""
        return sorted(
            traces,
            key=lambda t: (t.problem_id, t.sample_index, self.draw(use, f"{t.problem_id}@{t.teacher}"), t.teacher),
        )

    def value(self, name: str, trace: Trace) -> float:
        """The trace's score, NaN where it has none.

        Raises:
            ValueError: no such score was given, or not for this trace.
        """
        if name not in self.scores:
            known = ", ".join(sorted(self.scores)) or "none"
            raise ValueError(f"The selection asks for the score {name!r}, which was not given. Given: {known}.")
        if trace.trace_id not in self.scores[name]:
            raise ValueError(f"Trace {trace.trace_id!r} has no score {name!r}. Score its store again: `score STORE`.")
        return self.scores[name][trace.trace_id]


def is_kept(trace: Trace, keep: Keep) -> bool:
    """Whether the trace's verdict is what `keep` asks for."""
    if keep == "all":
        return True
    if keep == "N_paper":
        return trace.verdict != "correct"
    return trace.verdict == ("correct" if keep == "P" else "incorrect")


def keep_gate(keep: Keep) -> NamedGate:
    return f"keep={keep}", rule(lambda trace: is_kept(trace, keep))


def rule(accept: Callable[[Trace], bool]) -> Gate:
    """The gate that judges each trace by itself."""
    return lambda traces: [trace for trace in traces if accept(trace)]


def quality_gates(gates: Gates) -> list[NamedGate]:
    """The gates on how a completion ended."""
    rows: list[NamedGate] = []
    if gates.finish != "any":
        accepted = ("stop",) if gates.finish == "stop" else ("stop", "unknown")
        rows.append((f"finish={gates.finish}", rule(lambda trace: trace.finish_reason in accepted)))
    if gates.has_answer:
        rows.append(("has_answer", rule(has_answer)))
    if gates.not_looping:
        rows.append(("not_looping", rule(lambda trace: not is_looping(trace.completion))))
    return rows


def band_gates(asked: Gates | Portion, context: Context) -> list[NamedGate]:
    """The gates on a trace's length and scores."""
    rows: list[NamedGate] = []
    if (least := asked.min_tokens) is not None:
        rows.append((f"min_tokens={least}", rule(lambda trace: known_tokens(trace) >= least)))
    if (most := asked.max_tokens) is not None:
        rows.append((f"max_tokens={most}", rule(lambda trace: known_tokens(trace) <= most)))
    for name, band in (asked.score or {}).items():
        ends = ", ".join("null" if end is None else f"{end:g}" for end in band)
        rows.append((f"score.{name} in [{ends}]", rule(partial(_in_band, name=name, band=band, context=context))))
    return rows


def _in_band(trace: Trace, *, name: str, band: Band, context: Context) -> bool:
    value = context.value(name, trace)
    least, most = band
    return not math.isnan(value) and (least is None or value >= least) and (most is None or value <= most)


def set_gates(asked: Gates | Portion, context: Context) -> list[NamedGate]:
    """The gates that judge a trace by the others, from the best by score to the controls of count and tokens."""
    rows: list[NamedGate] = []
    for name, share in (asked.top_frac or {}).items():
        gate = partial(_top, name=name, share=share, within=asked.top_within, context=context)
        rows.append((f"top_frac.{name}={share:g} (within {asked.top_within})", gate))
    if (limit := asked.max_per_problem) is not None:
        capped = partial(_capped, limit=limit, choose=asked.choose, context=context)
        rows.append((f"max_per_problem={limit} ({asked.choose})", capped))
    if asked.num_traces is not None:
        counted = partial(_counted, num_traces=asked.num_traces, context=context)
        like = asked.match_count_of if isinstance(asked, Gates) else None
        why = f"seed {context.seed}" if like is None else f"match_count_of={like}, seed {context.seed}"
        rows.append((f"num_traces={asked.num_traces} ({why})", counted))
    if asked.num_tokens is not None:
        budget = partial(_budgeted, num_tokens=asked.num_tokens, context=context)
        rows.append((f"num_tokens={asked.num_tokens} (seed {context.seed})", budget))
    return rows


def known_tokens(trace: Trace) -> int:
    """The trace's number of tokens. Raises ValueError where its source does not say."""
    if trace.num_tokens < 0:
        raise ValueError(
            f"Trace {trace.trace_id!r} has no token count, which min_tokens, max_tokens, num_tokens and "
            "choose=shortest or longest need. Map columns.num_tokens, or count tokens before selecting."
        )
    return trace.num_tokens


def only(traces: list[Trace], chosen: Iterable[Trace]) -> list[Trace]:
    """The chosen of the traces, in the order of the traces."""
    ids = {trace.trace_id for trace in chosen}
    return [trace for trace in traces if trace.trace_id in ids]


def by_problem(traces: Iterable[Trace]) -> dict[str, list[Trace]]:
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.problem_id].append(trace)
    return groups


def deduped(traces: list[Trace], context: Context) -> list[Trace]:
    """One of a problem's completions that differ only in white space."""
    unique: dict[tuple[str, str], Trace] = {}
    for trace in context.in_turn("dedupe", traces):
        text = " ".join(unicodedata.normalize("NFC", trace.completion).split())
        unique.setdefault((trace.problem_id, text), trace)
    return only(traces, unique.values())


def _top(traces: list[Trace], *, name: str, share: float, within: TopWithin, context: Context) -> list[Trace]:
    groups = by_problem(traces).values() if within == "problem" else [traces]
    chosen: list[Trace] = []
    for group in groups:
        valued = [(context.value(name, trace), trace) for trace in group]
        valued = [(value, trace) for value, trace in valued if not math.isnan(value)]
        valued.sort(key=lambda pair: (-pair[0], context.draw("top_frac", pair[1].trace_id)))
        # as the fraction that was written: 0.07 of 100 is 7, and not the 8 that 7.000000000000001 rounds up to
        number = math.ceil(Fraction(str(share)) * len(valued))
        chosen += [trace for _, trace in valued[:number]]
    return only(traces, chosen)


def _capped(traces: list[Trace], *, limit: int, choose: Choose, context: Context) -> list[Trace]:
    groups = by_problem(context.in_turn("first", traces)).values()
    return only(traces, [trace for group in groups for trace in _preferred(group, choose, context)[:limit]])


def _preferred(group: list[Trace], choose: Choose, context: Context) -> list[Trace]:
    if choose == "first":
        return group
    if choose == "random":
        return sorted(group, key=lambda trace: context.draw("choose", trace.trace_id))
    return sorted(group, key=known_tokens, reverse=choose == "longest")


def _counted(traces: list[Trace], *, num_traces: int, context: Context) -> list[Trace]:
    if not 1 <= num_traces <= len(traces):
        raise TooFewError(f"{len(traces):,} traces are there, so the number asked for cannot be given. Ask for fewer.")
    drawn = sorted(traces, key=lambda trace: context.draw("num_traces", trace.trace_id))
    return only(traces, drawn[:num_traces])


def _budgeted(traces: list[Trace], *, num_tokens: int, context: Context) -> list[Trace]:
    total = sum(map(known_tokens, traces))
    if total < num_tokens:
        raise TooFewError(f"{total:,} tokens are there, so the number asked for cannot be given. Ask for fewer.")
    chosen: list[Trace] = []
    used = 0
    for trace in sorted(traces, key=lambda trace: context.draw("num_tokens", trace.trace_id)):
        used += known_tokens(trace)
        # To stop at the first that does not fit, rather than to look for smaller ones, keeps budgets nested and
        # does not favour short traces.
        if used > num_tokens:
            break
        chosen.append(trace)
    return only(traces, chosen)
