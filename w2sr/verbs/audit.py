"""`audit TRACES`: where two verifiers disagree, which wrong answers may be right, and what cannot be graded."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, get_args

from w2sr import audit
from w2sr.audit import Grading
from w2sr.types import Kind, Tolerance, Trace, VerdictLabel
from w2sr.verbs.entry import add_entry_options, both, read_entry
from w2sr.verify import Verifier

LABELS = (*get_args(VerdictLabel), audit.BAD_REFERENCE)
MAX_SHOWN_CHARS = 120
DESCRIPTION = """Compares two gradings of the same traces. Without --rules and --kind the first is what the traces bear.
Without --against-rules and --against-kind the second is what they bear if the first is fresh, else a fresh one by
`boxed` and `math`. Nothing is written: mend what is found in the rules or the references, and grade again."""


class Entry(NamedTuple):
    """A title, and facts below it: name and text."""

    title: str
    facts: list[tuple[str, str]]


def main(argv: Sequence[str]) -> None:
    """`audit TRACES`: prints the disagreements, the suspects and what cannot be graded."""
    args = _arguments(argv)
    if args.tolerance and "number" not in (args.kind, args.against_kind):
        raise ValueError(
            f"--tolerance {args.tolerance} is for kind number. Add --kind number or --against-kind number, or remove "
            "it."
        )
    traces, num_skipped = read_entry(args.traces, args, "skip")
    page = _Page(args.markdown)
    page.heading(f"Audit of {args.traces}: {len(traces):,} traces, {len({t.problem_id for t in traces}):,} problems")
    if num_skipped:
        page.line(f"{num_skipped:,} bad rows were skipped.")
    is_fresh = args.rules is not None or args.kind is not None
    against_fresh = args.against_rules is not None or args.against_kind is not None or not is_fresh
    one = _verifier(args, args.rules, args.kind)
    other = _verifier(args, args.against_rules or args.rules, args.against_kind or args.kind)
    with one, other:
        first = audit.fresh_grading(traces, one) if is_fresh else audit.stored_grading(traces)
        has_second = against_fresh or all(trace.verdict for trace in traces)
        if has_second:
            second = audit.fresh_grading(traces, other) if against_fresh else audit.stored_grading(traces)
            _show_disagreements(page, traces, first, second, args.limit)
        else:
            page.line(f"Only one grading ({first.name}): the traces bear no verdicts, and --against-kind is not given.")
        base = one if is_fresh else other
        _show_suspects(page, traces, first, base, args)
        _show_ungradable(page, traces, first, base, args.limit)
    print(page.text(), end="")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="audit", description=DESCRIPTION)
    parser.add_argument("traces", metavar="TRACES", help="a trace store, or a file of traces")
    add_entry_options(parser)
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="extraction rules of the first grading")
    parser.add_argument(*both("--against-rules"), nargs="+", metavar="RULE", help="likewise of the second")
    parser.add_argument(*both("--against-kind"), choices=get_args(Kind), help="likewise --kind of the second")
    parser.add_argument(*both("--prompt-opens-think"), action="store_true", help="the prompt ended with <think>")
    parser.add_argument(*both("--timeout-s"), type=float, default=5.0, help="seconds for one answer (5)")
    parser.add_argument("--limit", type=int, default=5, help="examples under each heading (5)")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args(argv)


def _verifier(args: argparse.Namespace, rules: Sequence[str] | None, kind: Kind | None) -> Verifier:
    tolerance = Tolerance(*args.tolerance) if args.tolerance and kind == "number" else Tolerance()
    return Verifier(
        rules or ["boxed"],
        kind or "math",
        args.timeout_s,
        prompt_opens_think=args.prompt_opens_think,
        tolerance=tolerance,
    )


def _show_disagreements(page: _Page, traces: Sequence[Trace], first: Grading, second: Grading, limit: int) -> None:
    differ = audit.disagreements(first, second)
    page.heading(f"Disagreements: {len(differ):,} of {len(traces):,}")
    page.line(f"first (lines): {first.name}")
    page.line(f"second (columns): {second.name}")
    counts = Counter(zip(first.labels, second.labels, strict=True))
    used = [label for label in LABELS if any(label in pair for pair in counts)]
    page.table([["first \\ second", *used], *([row, *(f"{counts[row, column]:,}" for column in used)] for row in used)])
    entries = []
    for index in differ[:limit]:
        trace = traces[index]
        facts = [("reference", trace.reference_answer)]
        facts += [(name, _said(grading, index)) for name, grading in (("first", first), ("second", second))]
        entries.append(Entry(trace.trace_id, facts))
    page.entries(entries, len(differ))


def _said(grading: Grading, index: int) -> str:
    verdict = grading.verdicts[index]
    if verdict is None:
        return "the reference answer cannot be used"
    answer = "no answer" if verdict.answer is None else f"{_cropped(verdict.answer)} ({verdict.rule or 'rule unknown'})"
    return f"{verdict.label}: {answer}; {verdict.reason or 'no reason stored'}"


def _show_suspects(
    page: _Page, traces: Sequence[Trace], first: Grading, base: Verifier, args: argparse.Namespace
) -> None:
    """Wrong answers that may be right, under three headings."""
    wrong = audit.judged_wrong(first)
    page.heading(f"Judged wrong or without answer, and perhaps right: {len(wrong):,} to look through")
    readings = audit.other_readings(traces, wrong, base, args.timeout_s)
    page.line(f"Another rule or kind would say correct: {len(readings):,}")
    by_reading = Counter(reading for readings_of_one in readings.values() for reading in readings_of_one)
    if by_reading:
        page.table([["reading", "traces"], *([name, f"{count:,}"] for name, count in by_reading.most_common())])
    suspects = sorted(readings, key=lambda index: -len(readings[index]))
    page.entries([_suspect(traces, first, i, ", ".join(readings[i])) for i in suspects[: args.limit]], len(suspects))

    ending = [i for i in wrong if audit.ends_with_reference(traces[i].completion, traces[i].reference_answer)]
    page.line(f"The reference stands in the last {audit.TAIL_CHARS} characters: {len(ending):,}")
    page.entries([_suspect(traces, first, index, "") for index in ending[: args.limit]], len(ending))

    majorities = audit.wrong_majorities(traces, first)
    page.line(f"Problems on which most answers agree and were judged wrong: {len(majorities):,}")
    entries = []
    for found in majorities[: args.limit]:
        agreed = f"{found.num_agreeing} of {found.num_answers} answer {_cropped(found.answer)}"
        entries.append(Entry(found.problem_id, [("reference", found.reference_answer), ("majority", agreed)]))
    page.entries(entries, len(majorities))


def _suspect(traces: Sequence[Trace], grading: Grading, index: int, readings: str) -> Entry:
    trace = traces[index]
    facts = [("reference", trace.reference_answer), ("judged", _said(grading, index))]
    facts += [("accepted by", readings)] if readings else []
    return Entry(trace.trace_id, [*facts, ("ends", trace.completion[-audit.TAIL_CHARS :])])


def _show_ungradable(page: _Page, traces: Sequence[Trace], first: Grading, base: Verifier, limit: int) -> None:
    page.heading("Not gradable")
    bad = audit.bad_references(traces, base)
    page.line(f"Problems whose reference answer cannot be used: {len(bad):,}")
    page.entries([Entry(name, [("reason", why)]) for name, why in list(bad.items())[:limit]], len(bad))
    missing = audit.unanswered(traces, first)
    by_finish = ", ".join(f"{reason} {count:,}" for reason, count in missing.most_common())
    page.line(f"Traces without answer: {missing.total():,}" + (f" (by finish reason: {by_finish})" if missing else ""))
    late = [index for index, label in enumerate(first.labels) if label == "timeout"]
    page.line(f"Timeouts: {len(late):,}")
    page.entries([_suspect(traces, first, index, "") for index in late[:limit]], len(late))


def _cropped(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def escaped(text: str) -> str:
    r"""Text of models and files on one line, its control and direction characters written out.

    >>> escaped("a\n\x1b[2J")
    'a\\n\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Page:
    """Collects the lines, as plain text or as Markdown. Whatever it is given is escaped."""

    def __init__(self, markdown: bool) -> None:
        self.markdown = markdown
        self._lines: list[str] = []

    def heading(self, text: str) -> None:
        text = escaped(text)
        level = "##" if self._lines else "#"
        self._lines += ["", f"{level} {text}", ""] if self.markdown else ["", text, "=" * len(text)]

    def line(self, text: str) -> None:
        self._lines += [_inert(escaped(text)), ""] if self.markdown else [escaped(text)]

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """The first row is the header, the first column words, the others numbers."""
        if self.markdown:
            rule = ["---", *("---:" for _ in rows[0][1:])]
            self._lines += [
                "| " + " | ".join(_inert(cell) for cell in row) + " |" for row in (rows[0], rule, *rows[1:])
            ]
            self._lines.append("")
            return
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            self._lines.append("  " + "  ".join(cells).rstrip())

    def entries(self, entries: Sequence[Entry], num_all: int) -> None:
        """Examples, and how many there are beside them."""
        for entry in entries:
            title = escaped(entry.title)
            self._lines.append(f"- {_code(title)}" if self.markdown else f"  {title}")
            for name, text in entry.facts:
                shown = escaped(text if name in ("first", "second", "judged") else _cropped(text))
                self._lines.append(f"  - {name}: {_code(shown)}" if self.markdown else f"    {name:<12}{shown}")
        if num_all > len(entries):
            self._lines.append(f"{'- ' if self.markdown else '  '}and {num_all - len(entries):,} more (--limit)")
        if self.markdown and num_all:
            self._lines.append("")

    def text(self) -> str:
        return "\n".join(self._lines).strip("\n") + "\n"


def _code(text: str) -> str:
    """Text as a Markdown code span, whatever backticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def _inert(text: str) -> str:
    r"""Markdown in which nothing of the text is markup: `|`, `<`, `*` and their kind are escaped."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)
