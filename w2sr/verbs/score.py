"""`score STORE`: structure, difficulty and likelihood of a store's traces, computed once and kept beside them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from w2sr.locations import locate
from w2sr.policy import DTypeName
from w2sr.rows import nearest
from w2sr.scores import (
    COLUMNS,
    Score,
    compute_missing,
    difficulty_score,
    likelihood_score,
    load_student,
    stored_values,
    structure_score,
)
from w2sr.templates import Template
from w2sr.traces import read_store
from w2sr.types import Trace

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def main(argv: Sequence[str]) -> None:
    """`score STORE`: computes what is not there yet and prints how each score is distributed. Goes on after a kill."""
    parser = argparse.ArgumentParser(
        prog="score", description="Scores of a store's traces, kept in STORE/scores; what is there is not done again."
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--scores", default="structure,difficulty", help=f"comma-separated: {', '.join(COLUMNS)}")
    parser.add_argument("--student", action="extend", nargs="+", default=[], help="who judges the likelihood")
    parser.add_argument("--template", choices=get_args(Template), default="auto", help="the students' chat template")
    parser.add_argument("--stop_token", help="the students' stop token, where it is not the template's")
    parser.add_argument("--template_date", help="the day that a template with a date shows, as 2026-11-30")
    parser.add_argument("--dtype", choices=get_args(DTypeName), default="float32")
    parser.add_argument("--max_tokens", type=int, default=8192, help="tokens of a packed row")
    args = parser.parse_args(argv)

    names = _checked(args.scores, args.student)
    store = locate(args.store)
    traces = read_store(store)
    lines: list[list[str]] = []
    for label, score in _scores(names, traces, args):
        done = before = -1
        for done, total in compute_missing(store, score, traces):
            before = done if before < 0 else before
            if score.chunk < total and done < total:
                print(f"{label}: {done:,} of {total:,}", flush=True)
        print(f"{label}: {done - before:,} computed, {before:,} there already", flush=True)
        values = stored_values(store, score, traces)
        for column in score.columns:
            name = label if label.startswith(f"{column} by") else column
            lines.append([name, *_summary([one[column] for one in values.values()])])
    print()
    width = max(len(name) for name, *_ in lines)
    for name, *cells in [["score", "traces", *(f"{100 * q:.0f} %" for q in QUANTILES)], *lines]:
        print("  ".join([name.ljust(width), *(f"{cell:>8}" for cell in cells)]))


def _checked(scores: str, students: Sequence[str]) -> list[str]:
    names = [name.strip() for name in scores.split(",") if name.strip()]
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"--scores {name!r} is unknown.{nearest(name, COLUMNS)} Known: {', '.join(COLUMNS)}.")
    if ("likelihood" in names) != bool(students):
        raise ValueError(
            "--student names who judges the likelihood, and --scores likelihood needs one: give both or none. For "
            "example: score STORE --scores likelihood --student w2sr/miniature/student."
        )
    return list(dict.fromkeys(names))


def _scores(names: Sequence[str], traces: Sequence[Trace], args: argparse.Namespace) -> Iterator[tuple[str, Score]]:
    """Each score with its name for people. A student is loaded when its turn has come."""
    for name in names:
        if name == "structure":
            yield name, structure_score()
        elif name == "difficulty":
            yield name, difficulty_score(traces)
        else:
            for student_name in dict.fromkeys(args.student):
                student = load_student(
                    student_name,
                    template=args.template,
                    stop_token=args.stop_token,
                    template_date=args.template_date,
                    dtype=args.dtype,
                )
                yield f"likelihood by {student_name}", likelihood_score(student, args.max_tokens)


def _summary(values: Sequence[float]) -> list[str]:
    """How many values there are, and their quantiles."""
    known = np.array([value for value in values if not np.isnan(value)])
    quantiles = np.quantile(known, QUANTILES) if len(known) else [float("nan")] * len(QUANTILES)
    return [f"{len(known):,}", *(f"{value:.3f}" for value in quantiles)]
