"""Several teachers' traces of one problem as one set. With T teachers and n_t traces of teacher t on the problem:

- `union`: all of them.
- `vote`: those whose answer class c has the most of the Σ n_t traces, alone, and at least `min_share` of them; a
  problem without such a class (a tie, too few) keeps none.
- `agreement`: likewise with one vote a teacher, which is the answer that most of its own traces give: the class with
  the most of the T teachers, alone, and at least `min_share` of them.
- `best`: those of the teacher argmax_t mean(score of t's traces on the problem); ties by seed.
- `round_robin`: those of one teacher. The problems are taken in the order of their seed-hash; before each one, every
  teacher who has a trace of it gains its share of one credit (shares are renormalised over these), and the one with
  the most credit gets the problem for one credit. So over any stretch the problems follow the shares to within about
  one.

`vote` and `agreement` count all verified traces, right or wrong, before `keep` takes its part of them, and by the
extracted answers alone: no reference answer is looked at. The other two choose among what `keep` and the gates left.
"""

from __future__ import annotations

import math
from collections import defaultdict

from w2sr.selection.gates import Context, NamedGate, by_problem, only
from w2sr.selection.strategy import Gates
from w2sr.types import Trace
from w2sr.verify import Verifier
from w2sr.votes import By, count_votes


def voting_gate(gates: Gates) -> list[NamedGate]:
    """The gate of `vote` and `agreement`; none for the other ensembles."""
    if gates.ensemble not in ("vote", "agreement"):
        return []

    by: By = "teachers" if gates.ensemble == "agreement" else "samples"

    def majority(traces: list[Trace]) -> list[Trace]:
        with Verifier(kind=gates.answer_kind) as verifier:
            ballots = count_votes(traces, verifier, by=by, min_share=gates.min_share, min_votes=1)
        return [trace for trace in traces if ballots[trace.problem_id].elects(trace)]

    return [(f"ensemble={gates.ensemble} (min_share {gates.min_share:g})", majority)]


def choosing_gate(gates: Gates, context: Context) -> list[NamedGate]:
    """The gate of `best` and `round_robin`; none for the other ensembles."""
    if gates.ensemble == "best":
        name = gates.ensemble_score
        return [(f"ensemble=best ({name})", lambda traces: _best(traces, name, context))]
    if gates.ensemble == "round_robin":
        shares = gates.teacher_shares
        said = ", ".join(f"{teacher} {share:g}" for teacher, share in (shares or {}).items()) or "equal shares"
        return [(f"ensemble=round_robin ({said})", lambda traces: _round_robin(traces, shares, context))]
    return []


def _by_teacher(traces: list[Trace]) -> dict[str, list[Trace]]:
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.teacher].append(trace)
    return groups


def _best(traces: list[Trace], name: str, context: Context) -> list[Trace]:
    chosen: list[Trace] = []
    for problem_id, group in by_problem(traces).items():
        means: dict[str, float] = {}
        for teacher, mine in _by_teacher(group).items():
            values = [value for trace in mine if not math.isnan(value := context.value(name, trace))]
            if values:
                means[teacher] = math.fsum(values) / len(values)
        if means:
            first = min(
                means, key=lambda teacher: (-means[teacher], context.draw("best_teacher", f"{problem_id}@{teacher}"))
            )
            chosen += [trace for trace in group if trace.teacher == first]
    return only(traces, chosen)


def _round_robin(traces: list[Trace], shares: dict[str, float] | None, context: Context) -> list[Trace]:
    teachers = {trace.teacher for trace in traces}
    if shares is None:
        shares = dict.fromkeys(teachers, 1.0)
    if unknown := sorted(shares.keys() - teachers):
        raise ValueError(
            f"teacher_shares names {', '.join(unknown)}, of whom no trace is left here. There are traces of: "
            f"{', '.join(sorted(teachers))}."
        )
    credits = dict.fromkeys(sorted(shares), 0.0)
    chosen: list[Trace] = []
    groups = by_problem(traces)
    for problem_id in sorted(groups, key=lambda name: context.draw("round_robin", name)):
        mine = _by_teacher(groups[problem_id])
        present = [teacher for teacher in credits if teacher in mine]
        if not present:
            continue
        total = math.fsum(shares[teacher] for teacher in present)
        for teacher in present:
            credits[teacher] += shares[teacher] / total
        # rounded, because 0.7 + 0.7 + … leaves ties that only rounding errors decide
        turn = min(
            present, key=lambda one: (-round(credits[one], 9), context.draw("round_robin_tie", f"{problem_id}@{one}"))
        )
        credits[turn] -= 1
        chosen += mine[turn]
    return only(traces, chosen)
