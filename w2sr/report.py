"""Results as one table: for the terminal and for Markdown. The only place where fractions become per cent."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from w2sr.metrics.pass_at_k import AVERAGE, POOLED
from w2sr.metrics.rgr import FLOOR_OF, GapKind, GapRecovered, rgr_from_results
from w2sr.results import Estimate, RunResult
from w2sr.rows import printable

Rows = list[list[str]]

ABSENT = "-"
_METHODS = {"wilson": "Wilson", "bootstrap": "Poisson bootstrap over problems"}
_WORDS = ("arm", "benchmark", "gap")  # columns of words are flush left, numbers flush right


def to_text(
    results: Sequence[RunResult], *, plain: str | None = None, teacher: str | None = None, ceiling: str | None = None
) -> str:
    """The results as aligned plain text, one line an arm (and one a benchmark where there are several).

    With a `ceiling` arm, every other arm's RGR (if the `plain` student is named) and PGR (if the `teacher` is) follow.

    Args:
        results: the arms, in the order of the lines.
        plain: name of the plain student's arm.
        teacher: name of the weak teacher's arm.
        ceiling: name of the reinforcement-learned student's arm.

    Raises:
        ValueError: if two arms share a name, a named arm is missing, or an arm has no Pass@1.
    """
    tables, notes = _tables(results, plain, teacher, ceiling)
    return "\n\n".join([*(_aligned(table) for table in tables), "\n".join(notes)]) + "\n"


def to_markdown(
    results: Sequence[RunResult], *, plain: str | None = None, teacher: str | None = None, ceiling: str | None = None
) -> str:
    """The same tables as `to_text`, as Markdown."""
    tables, notes = _tables(results, plain, teacher, ceiling)
    return "\n\n".join([*(_markdown(table) for table in tables), "  \n".join(notes)]) + "\n"


def _tables(
    results: Sequence[RunResult], plain: str | None, teacher: str | None, ceiling: str | None
) -> tuple[list[Rows], list[str]]:
    by_name = {result.name: result for result in results}
    if len(by_name) != len(results):
        raise ValueError(f"Arms share a name: {[result.name for result in results]}. Give every arm its own.")
    methods = {_pass_at_1(result, POOLED).method for result in results} - {"none"}
    notes = ["Pass@1 and its 95 % interval in per cent; " + " or ".join(_METHODS[m] for m in sorted(methods)) + "."]
    if missing := [f"{result.name} {result.num_missing_samples:,}" for result in results if result.num_missing_samples]:
        notes.append(printable(f"Samples that are missing and counted as wrong: {', '.join(missing)}."))
    notes += [_training_note(result) for result in results if result.cost.train_seconds is not None]
    gaps = recovered_gaps(by_name, plain=plain, teacher=teacher, ceiling=ceiling)
    if not gaps:
        return [_score_rows(results)], notes
    floors = {"RGR": plain, "PGR": teacher}
    for kind in dict.fromkeys(gap.kind for _, gap in gaps):
        notes.append(printable(f"{kind}: floor = {FLOOR_OF[kind]} ({floors[kind]}), ceiling = {ceiling}, in per cent."))
    notes.append("gap ≤ 0: the share of bootstrap replicates whose ceiling is not above the floor.")
    notes += [printable(f"{gap.kind} of {arm} is undefined: {gap.reason}.") for arm, gap in gaps if gap.reason]
    return [_score_rows(results), _gap_rows(gaps)], notes


def _training_note(result: RunResult) -> str:
    tokens = result.cost.num_train_tokens
    on = "" if tokens is None else f" on {tokens:,} tokens"
    return printable(f"Training of {result.name}: {result.cost.train_seconds:,.1f} s{on}.")


def recovered_gaps(
    results: dict[str, RunResult], *, plain: str | None, teacher: str | None, ceiling: str | None
) -> list[tuple[str, GapRecovered]]:
    """RGR and PGR, by arm, of every arm that is neither floor nor ceiling."""
    named = {role: name for role, name in (("plain", plain), ("teacher", teacher), ("ceiling", ceiling)) if name}
    for role, name in named.items():
        if name not in results:
            raise ValueError(f"The {role} arm {name!r} is not among {list(results)}. Name one of these.")
    if not named:
        return []
    if not ceiling or len(named) < 2:
        raise ValueError(f"A gap needs a ceiling and a floor (plain or teacher); named were {named}.")
    floors: dict[GapKind, str | None] = {"RGR": plain, "PGR": teacher}
    gaps = []
    for arm in (name for name in results if name not in named.values()):
        for kind, floor in floors.items():
            if floor:
                ends = results[floor], results[arm], results[ceiling]
                gap = rgr_from_results(floor=ends[0], achieved=ends[1], ceiling=ends[2], kind=kind)
                gaps.append((arm, gap))
    return gaps


def _score_rows(results: Sequence[RunResult]) -> Rows:
    by_source = any(len(result.sources) > 1 for result in results)
    rows = [["arm", *(["benchmark"] if by_source else []), "Pass@1", "95 % interval", "problems"]]
    rows[0] += ["cut off", "tokens", "seconds"]
    for result in results:
        several = len(result.sources) > 1
        for part in [*result.sources, POOLED, AVERAGE] if several else [POOLED]:
            estimate = _pass_at_1(result, part)
            row = [
                printable(result.name),
                *([printable(part if several else result.sources[0])] if by_source else []),
            ]
            row += [_per_cent(estimate.value), _interval(estimate.low, estimate.high), f"{estimate.num_problems:,}"]
            rows.append(row + (_of_whole_run(result) if part == POOLED else [""] * 3))
    return rows


def _of_whole_run(result: RunResult) -> list[str]:
    tokens = ABSENT if isnan(result.mean_completion_tokens) else f"{result.mean_completion_tokens:,.1f}"
    return [_per_cent(result.cut_off_frac, " %"), tokens, f"{result.cost.seconds:,.1f}"]


def _gap_rows(gaps: Sequence[tuple[str, GapRecovered]]) -> Rows:
    rows = [["arm", "gap", "floor", "achieved", "ceiling", "recovered", "95 % interval", "gap ≤ 0"]]
    for arm, gap in gaps:
        ends = [_per_cent(value) for value in (gap.floor, gap.achieved, gap.ceiling, gap.value)]
        share = _per_cent(gap.nonpositive_frac, " %")
        rows.append([printable(arm), gap.kind, *ends, _interval(gap.low, gap.high), share])
    return rows


def _pass_at_1(result: RunResult, part: str) -> Estimate:
    if f"pass@1/{part}" not in result.estimates:
        raise ValueError(
            f"Result {result.name!r} has no 'pass@1/{part}', only {list(result.estimates)}. Evaluate with 1 in ks."
        )
    return result.estimates[f"pass@1/{part}"]


def _per_cent(fraction: float, unit: str = "") -> str:
    return ABSENT if isnan(fraction) else f"{100 * fraction:.1f}{unit}"


def _interval(low: float, high: float) -> str:
    return ABSENT if isnan(low) else f"[{100 * low:.1f}, {100 * high:.1f}]"


def _aligned(rows: Rows) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if name in _WORDS else cell.rjust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _markdown(rows: Rows) -> str:
    rule = [":---" if name in _WORDS else "---:" for name in rows[0]]
    escaped = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [escaped[0], rule, *escaped[1:]])
