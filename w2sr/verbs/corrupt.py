"""`corrupt STORE OUT`: a new trace store with systematic errors of a known kind and rate."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from w2sr.corruption import Corruption, Kind, corrupt_traces
from w2sr.traces import read_store, write_store
from w2sr.types import DataFile, Trace


def main(argv: Sequence[str]) -> None:
    """`corrupt STORE OUT --kind KIND --rate RATE`: prints what was chosen, changed and judged, and writes OUT."""
    parser = argparse.ArgumentParser(
        prog="corrupt",
        description="Writes a store's traces into a new store, some of them with an error from which the chain of "
        "equations goes on. What was changed stands with each trace (column corruption, JSON); its answer and verdict "
        "are found anew.",
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of the new store")
    parser.add_argument("--kind", required=True, help=", ".join(get_args(Kind)))
    parser.add_argument("--rate", type=float, required=True, help="share of the traces that are chosen, in [0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="of the choice; a smaller rate chooses a subset")
    parser.add_argument("--whole_to", type=int, help="new numbers must be whole, from 0 to this (miniature: 199)")
    parser.add_argument(
        "--rules", nargs="+", default=["boxed"], help="how answers are found in traces that were never verified"
    )
    args = parser.parse_args(argv)

    from w2sr.datamodules.sources import verify_by_rules  # here, because it imports Lightning

    corruption = Corruption(args.kind, args.rate, args.seed, args.whole_to)
    if args.out.exists():
        raise ValueError(f"{args.out} is there already. Name a directory that is not, or remove it.")
    before = read_store(args.store)
    after, report = corrupt_traces(before, corruption, args.rules)
    corrupted = [trace for trace in after if trace.corruption]
    judged, _ = verify_by_rules(corrupted, DataFile(str(args.store), rules=tuple(args.rules)), "error")
    by_id = {trace.trace_id: trace for trace in judged}
    manifest = write_store(args.out, [by_id.get(trace.trace_id, trace) for trace in after])
    print(report)
    if judged:
        print(
            f"verdicts of the corrupted: {_verdicts(t for t in before if t.trace_id in by_id)} -> {_verdicts(judged)}"
        )
    print(f"{args.out}: {manifest.num_traces:,} traces")


def _verdicts(traces: Iterable[Trace]) -> str:
    counts = Counter(trace.verdict or "unverified" for trace in traces)
    return ", ".join(f"{verdict} {count:,}" for verdict, count in counts.most_common())
