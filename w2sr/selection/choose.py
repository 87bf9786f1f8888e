"""`select`: the gates in their order, and the table of what each removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from w2sr.selection.ensembles import choosing_gate, voting_gate
from w2sr.selection.gates import (
    Context,
    NamedGate,
    Scores,
    TooFewError,
    band_gates,
    deduped,
    keep_gate,
    only,
    quality_gates,
    rule,
    set_gates,
)
from w2sr.selection.strategy import Gates, Portion, check_choice, gates_of
from w2sr.selection.table import GateRow, Selection, format_table
from w2sr.types import Keep, Trace


def select(traces: Iterable[Trace], *, keep: Keep, scores: Scores | None = None, **gates: Any) -> Selection:
    """Selects traces by verdict, gates and scores.

    Args:
        traces: verified traces, each named by its trace_id once.
        keep: `P` the answer is right; `N` an answer was given and is wrong; `N_paper` everything that is not right,
            with missing answers and timeouts, as the authors did it; `all`.
        scores: name → trace_id → value, for the gates that ask for scores.
        **gates: fields of `Gates`; the parts of `mix` are `Portion`s or mappings of their fields.

    Raises:
        ValueError: a trace without verdict or given twice, tokens or scores that are needed but unknown, too few
            traces for num_traces, num_tokens or match_count_of, or nothing left.
    """
    wanted = gates_of(gates)
    check_choice("keep", keep)
    context = Context(wanted.seed, scores or {})
    table: list[GateRow] = []
    first = _source_gate(wanted) + voting_gate(wanted)
    voted = _applied(_ordered(traces), first, table)
    if wanted.match_count_of is not None:
        free = replace(wanted, num_tokens=None)
        like = _kept(voted, wanted.match_count_of, free, context, [])
        if not like:
            raise ValueError(f"match_count_of={wanted.match_count_of}: these gates keep no trace under it to count.")
        wanted = replace(wanted, num_traces=len(like))
    kept = _kept(voted, keep, wanted, context, table)
    if not kept:
        raise ValueError(f"The selection keeps no trace; relax the gate that removed them.\n{format_table(table)}")
    return Selection(kept, table)


def _kept(traces: list[Trace], keep: Keep, gates: Gates, context: Context, table: list[GateRow]) -> list[Trace]:
    """What is left after every gate but the first ones. Adds a row a gate to the table."""
    single = [keep_gate(keep), *quality_gates(gates), *band_gates(gates, context)]
    if gates.dedupe:
        single.append(("dedupe", lambda traces: deduped(traces, context)))
    traces = _applied(traces, single + choosing_gate(gates, context), table)
    if gates.mix:
        traces = _mixed(traces, gates.mix, context, table)
    return _applied(traces, set_gates(gates, context), table)


def _mixed(traces: list[Trace], portions: Sequence[Portion], context: Context, table: list[GateRow]) -> list[Trace]:
    """The union of the portions, each a selection of its own, with a row for each of its gates."""
    chosen: list[Trace] = []
    for number, portion in enumerate(portions, 1):
        own = replace(context, part=number)
        gates = [keep_gate(portion.keep), *band_gates(portion, own), *set_gates(portion, own)]
        chosen += _applied(traces, [(f"mix {number}: {name}", gate) for name, gate in gates], table)
    return _applied(traces, [(f"mix of {len(portions)}", lambda traces: only(traces, chosen))], table)


def _source_gate(gates: Gates) -> list[NamedGate]:
    if gates.verdicts == "any":
        return []
    label_free = gates.verdicts == "label-free"
    return [(f"verdicts={gates.verdicts}", rule(lambda trace: trace.is_label_free == label_free))]


def _applied(traces: list[Trace], gates: Sequence[NamedGate], table: list[GateRow]) -> list[Trace]:
    for name, gate in gates:
        num_in = len(traces)
        try:
            traces = gate(traces)
        except TooFewError as error:
            raise ValueError(f"{name}: {error}\n{format_table(table)}") from error
        table.append(GateRow(name, num_in, num_in - len(traces), len(traces)))
    return traces


def _ordered(traces: Iterable[Trace]) -> list[Trace]:
    """The traces in the order of their ids, verified and each there once."""
    ordered = sorted(traces, key=lambda trace: (trace.problem_id, trace.sample_index, trace.teacher))
    unverified = [trace.trace_id for trace in ordered if not trace.verdict]
    if unverified:
        raise ValueError(
            f"{len(unverified):,} of {len(ordered):,} traces have no verdict, the first {unverified[0]!r}. Verify them "
            "before they are selected: every rule of keep asks for the verdict."
        )
    for trace, following in pairwise(ordered):
        if trace.trace_id == following.trace_id:
            raise ValueError(
                f"Trace {trace.trace_id!r} was given twice (sources {trace.source!r}, {following.source!r}). Ids must "
                "be unique: leave one out, or map a problem_id or teacher that tells them apart. Where one teacher's "
                "samples lie in several files, number them through: map sample_index."
            )
    return ordered
