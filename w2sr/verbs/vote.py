"""`vote STORE OUT`: a new store whose verdicts come from the majority's answer, and say so."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from w2sr.locations import locate
from w2sr.traces import read_store, write_store
from w2sr.types import Kind, Trace
from w2sr.verify import Verifier, extract
from w2sr.verify.extraction import NamedRule
from w2sr.votes import By, Outcome, judge_by_vote, precision


def main(argv: Sequence[str]) -> None:
    """`vote STORE OUT`: majority over samples, or agreement of teachers, as label-free verdicts in a new store."""
    parser = argparse.ArgumentParser(
        prog="vote",
        description="Verdicts without reference answers: who gave the elected answer is correct. The traces of "
        "problems without an elected answer are left out.",
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet, or is empty")
    parser.add_argument("--by", choices=get_args(By), default="samples", help="who has one vote")
    parser.add_argument("--min-share", type=float, default=0.5, help="least share of the voters that an answer needs")
    parser.add_argument("--min-votes", type=int, default=3, help="least number of voters who gave an answer")
    parser.add_argument("--rules", nargs="+", default=["boxed"], help="extraction rules for traces without an answer")
    parser.add_argument("--kind", choices=get_args(Kind), default="math", help="how answers are compared")
    args = parser.parse_args(argv)

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"{args.out} is there already. Name a folder that is not there yet for OUT.")
    store = locate(args.store)
    traces = read_store(store)
    with Verifier(args.rules, args.kind) as verifier:
        answered = [_with_answer(trace, verifier.rules) for trace in traces]
        judged, ballots = judge_by_vote(
            answered, verifier, by=args.by, min_share=args.min_share, min_votes=args.min_votes
        )
        against = _verified(traces, verifier)
    outcomes = Counter(ballot.outcome for ballot in ballots.values())
    print(f"{store}: {len(traces):,} traces of {len(ballots):,} problems; one vote for each of the {args.by}")
    print("problems: " + ", ".join(f"{name} {outcomes[name]:,}" for name in get_args(Outcome)))
    if not judged:
        raise ValueError(
            f"No problem has an elected answer, so {args.out} was not written. Lower --min-share "
            f"({args.min_share:g}) or --min-votes ({args.min_votes}), or check --rules ({' '.join(args.rules)})."
        )
    write_store(args.out, judged)
    verdicts = ", ".join(f"{label} {count:,}" for label, count in Counter(t.verdict for t in judged).most_common())
    print(f"{args.out}: {len(judged):,} traces with grader {judged[0].grader}; {verdicts}")
    print(f"left out: {len(traces) - len(judged):,} traces of undecided problems")
    print(_against_references(judged, against))


def _with_answer(trace: Trace, rules: tuple[NamedRule, ...]) -> Trace:
    """The trace with its extracted answer, where none was extracted yet."""
    if trace.verdict or trace.answer is not None:
        return trace
    found = extract(trace.completion, rules)
    return replace(trace, answer=found.answer, answer_rule=found.rule)


def _verified(traces: Sequence[Trace], verifier: Verifier) -> list[Trace]:
    """The traces with a verdict from a reference: their own, or one found now where the reference can be used."""
    from w2sr.datamodules.sources import verify_traces  # here, because it imports Lightning

    own = [trace for trace in traces if trace.verdict and not trace.is_label_free]
    bare = [trace for trace in traces if not trace.verdict and trace.reference_answer]
    return own + verify_traces(bare, verifier, "skip")[0]


def _against_references(judged: Sequence[Trace], against: Sequence[Trace]) -> str:
    if not against:
        return "references: none, so how often the vote is right is not known"
    found = precision(judged, against)
    right = sum(trace.verdict == "correct" for trace in against)
    return (
        f"references: of the traces that the vote calls correct, {found.num_correct:,} of {found.num_elected:,} are "
        f"({100 * found.frac:.1f} %); of all traces with a reference, {right:,} of {len(against):,} are "
        f"({100 * right / len(against):.1f} %)"
    )
