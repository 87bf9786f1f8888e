"""`traces STORE [--out page.html]`: what is in a set of traces, and a page to browse them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from w2sr.locations import locate
from w2sr.rows import printable
from w2sr.selection import GateRow
from w2sr.trace_page import render_page
from w2sr.trace_summary import VERDICTS, Lengths, TraceSummary, stratified_sample, summarize
from w2sr.traces import is_store
from w2sr.types import Keep, Trace
from w2sr.verbs.entry import add_entry_options, both, entry_verifier, read_entry

MAX_WIDTH = 100
MAX_ROWS = 12
"""So many teachers, sources or rules have a line of their own."""
MAX_NAME_CHARS = 80
BAR_CHARS = 40
_STYLES = {"correct": "green", "incorrect": "red", "timeout": "magenta"}


def main(argv: Sequence[str]) -> None:
    """`traces STORE`: prints what is in the traces; with `--out` writes the page to browse them."""
    args = _parser().parse_args(argv)
    if args.out:
        _check_out(args.out, locate(args.store))
    if args.limit is not None and not args.out:
        raise ValueError(f"--limit {args.limit} is for the page, and there is none. Add --out FILE.html.")
    if not args.rules and (args.kind or args.tolerance):
        raise ValueError(
            "--kind and --tolerance say how answers are compared, and nothing is verified. Add --rules boxed."
        )
    traces, notes = _read(args)
    summary = summarize(traces)
    console = Console(width=min(MAX_WIDTH, Console().width), highlight=False, emoji=False, markup=False)
    console.print(render_summary(summary, args.store, notes))
    if args.out:
        _write_page(args, traces)
    else:
        print("\nTo read them: add --out FILE.html for a page to browse.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="traces", description="What is in a set of traces, and one self-contained HTML page to browse them."
    )
    parser.add_argument(
        "store", metavar="STORE", help="a trace store, or a .jsonl, .json, .csv, .tsv or .parquet file, also with .gz"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write the page to browse the traces")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="at most so many traces on the page: of each verdict its share"
    )
    add_entry_options(parser)
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="verify the traces that have no verdict, as boxed")
    parser.add_argument(
        *both("--on-bad-reference"), choices=("error", "skip"), default="error", help="leave them out, or stop"
    )
    return parser


def _check_out(out: Path, store: Path) -> None:
    """Raises before minutes of reading where the page cannot be written."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a directory. Name a file in it: --out {out / 'traces.html'}.")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no directory {out.parent}. Make it first: mkdir -p {out.parent}.")
    if out.exists() and store.exists() and out.samefile(store):
        raise ValueError(f"--out {out} is the file of the traces. Name another one: --out {out.with_suffix('.html')}.")


def _read(args: argparse.Namespace) -> tuple[list[Trace], list[str]]:
    """The traces, verified where rules are given, and sentences on what was left out."""
    store = locate(args.store)
    if not store.exists():
        raise ValueError(
            f"there is no trace store or file '{args.store}' (working directory {Path.cwd()}). Give one that is there; "
            "w2sr/miniature/traces ships with w2sr."
        )
    traces, num_bad_rows = read_entry(args.store, args, args.on_bad_reference)
    notes = [f"Skipped: {_num(num_bad_rows, 'bad row')}."] if num_bad_rows else []
    if args.rules:
        from w2sr.datamodules.sources import verify_traces  # here, because it imports Lightning

        num_bare = sum(not trace.verdict for trace in traces)
        with entry_verifier(args.rules, args.kind, args) as verifier:
            traces, num_bad = verify_traces(traces, verifier, args.on_bad_reference)
        notes.append(f"Verified now, by the rules {', '.join(args.rules)}: {_num(num_bare - num_bad, 'trace')}.")
        if num_bad:
            notes.append(f"Left out, because the reference answer cannot be used: {_num(num_bad, 'trace')}.")
    if not traces:
        raise ValueError(f"{args.store}: no trace is left to look at. {' '.join(notes)}")
    return traces, notes


def _write_page(args: argparse.Namespace, traces: list[Trace]) -> None:
    from w2sr.scores import stored_table  # here, because it imports torch

    shown = traces if args.limit is None else stratified_sample(traces, args.limit)
    was_there = args.out.exists()
    store = locate(args.store)
    scores = stored_table(store, traces) if is_store(store) else {}
    page = render_page(shown, title=args.store, num_all=len(traces), scores=scores)
    args.out.write_text(page, encoding="utf-8", newline="\n")
    size = f"{args.out.stat().st_size / 2**20:,.1f} MiB"
    part = ("" if len(shown) == len(traces) else "a sample of ") + _num(len(shown), "trace")
    print(f"\n{'Replaced' if was_there else 'Wrote'} {args.out}: {part}, {size}. Open it in a browser.")


def render_summary(summary: TraceSummary, title: str, notes: Sequence[str] = ()) -> RenderableType:
    """The summary for a terminal or a log, as wide as the console. Names are shown without control characters."""
    parts: list[RenderableType] = [Text(printable(title), "bold")]
    parts.append(Text(f"{_num(summary.num_traces, 'trace')} of {_num(summary.num_problems, 'problem')}"))
    parts += [Text(printable(note)) for note in notes]
    if summary.num_unverified:
        parts.append(
            Text(f"Without a verdict: {_num(summary.num_unverified, 'trace')}; --rules boxed verifies them first.")
        )
    parts += ["", _verdicts("teacher", summary.verdicts_by_teacher)]
    parts += ["", _verdicts("source", summary.verdicts_by_source)]
    parts += ["", _histogram(summary.lengths), "", *_endings(summary)]
    if summary.by_rule:
        parts += ["", _counts("answer found by", {rule or "(not recorded)": n for rule, n in summary.by_rule.items()})]
    if summary.by_label_free_grader:
        parts += ["", Text("Judged without reference answers:"), _verdicts("grader", summary.by_label_free_grader)]
    for keep, rows in summary.gates.items():
        parts += ["", *_gates(keep, rows)]
    return Group(*parts)


def _table(*names: str) -> Table:
    """Words flush left, on several lines where the console is narrow; numbers flush right and never cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(names[0], overflow="fold")
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _verdicts(what: str, counts: Mapping[str, Counter[str]]) -> Table:
    """A line each of the largest, and one of the rest; verdicts that nobody got have no column."""
    verdicts = [verdict for verdict in VERDICTS if any(count[verdict] for count in counts.values())]
    table = _table(what, "traces", *(verdict.replace("_", " ") for verdict in verdicts), "right")
    lines = [(_named(name), count) for name, count in list(counts.items())[:MAX_ROWS]]
    if len(counts) > MAX_ROWS:
        rest = sum((count for count in list(counts.values())[MAX_ROWS:]), Counter[str]())
        lines.append((f"({len(counts) - MAX_ROWS:,} more)", rest))
    for name, count in lines:
        numbers = [Text(f"{count[verdict]:,}", _STYLES.get(verdict, "")) for verdict in verdicts]
        num_judged = count.total() - count["unverified"]
        table.add_row(Text(name), f"{count.total():,}", *numbers, _per_cent(count["correct"], num_judged))
    return table


def _named(name: str) -> str:
    short = name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"
    return printable(short) or "(none)"


def _num(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def _per_cent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _histogram(lengths: Lengths) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(lengths.unit, justify="right", no_wrap=True)
    table.add_column("traces", justify="right", no_wrap=True)
    table.add_column(f"median {lengths.median:,}, longest {lengths.longest:,}", no_wrap=True)
    most = max(lengths.counts)
    for (low, high), count in zip(lengths.bins, lengths.counts, strict=True):
        span = f"from {low:,}" if high is None else f"{low:,}" if high == low + 1 else f"{low:,}-{high - 1:,}"
        # what is there is seen: the smallest bar has one character
        table.add_row(span, f"{count:,}", Text("#" * max(round(BAR_CHARS * count / most), count > 0), "cyan"))
    return table


def _endings(summary: TraceSummary) -> list[RenderableType]:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.by_finish.items())
    share = summary.cut_off_frac
    if isnan(share):
        told = "none is known to have stopped by itself, which the default gate finish=stop wants; with it at "
        told += "stop_or_unknown they are kept"
    else:
        told = f"{100 * share:.1f} % of those that are known were cut off"
    loops = f"Loops: {summary.num_looping:,} ({_per_cent(summary.num_looping, summary.num_traces)})"
    return [Text(f"How they ended: {reasons}; {told}."), Text(f"{loops} end in a repetition.")]


def _counts(what: str, counts: Mapping[str, int]) -> Table:
    table = _table(what, "traces")
    for name, count in list(counts.items())[:MAX_ROWS]:
        table.add_row(Text(_named(name)), f"{count:,}")
    if len(counts) > MAX_ROWS:
        table.add_row(f"({len(counts) - MAX_ROWS:,} more)", f"{sum(list(counts.values())[MAX_ROWS:]):,}")
    return table


def _gates(keep: Keep, rows: list[GateRow] | str) -> list[RenderableType]:
    if isinstance(rows, str):
        shown = "\n".join(printable(line) for line in rows.splitlines())
        return [Text(f"Gates of keep={keep}, at their defaults: refused."), Text(shown)]
    table = _table(f"gates of keep={keep}, at their defaults", "in", "removed", "out")
    for row in rows:
        table.add_row(Text(printable(row.gate)), f"{row.num_in:,}", f"{row.num_removed:,}", f"{row.num_out:,}")
    return [table]
