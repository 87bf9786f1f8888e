"""The options with which `traces` and `audit` are told how a file of traces is read and graded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Literal, get_args

import yaml

from w2sr.locations import locate
from w2sr.rows import OnBadRow, Where
from w2sr.traces import is_store, read_traces
from w2sr.types import Kind, RowFormat, Tolerance, Trace
from w2sr.verify import Verifier


def both(flag: str) -> tuple[str, str]:
    """The flag with hyphens, and with underscores as the keys of a configuration are spelled."""
    return flag, "--" + flag[2:].replace("-", "_")


def add_entry_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_entry` and `entry_verifier` read."""
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="FIELD=COLUMN",
        help="which column is which: problem=question completion=response reference_answer=gold teacher==my-teacher "
        "(== is a text for every row); name the file before it",
    )
    parser.add_argument("--format", choices=get_args(RowFormat), default="columns")
    parser.add_argument("--where", nargs="+", metavar="COLUMN=VALUE", help="keep the rows with these values")
    parser.add_argument("--source", help="source of every trace")
    parser.add_argument("--teacher", help="teacher of every trace")
    parser.add_argument(
        *both("--stop-text"), nargs="+", default=(), metavar="TEXT", help="the completion ends before it"
    )
    parser.add_argument(*both("--reference-rule"), metavar="RULE", help="how the answer is found in a reference: hash")
    parser.add_argument("--kind", choices=get_args(Kind), help="how answers are compared (math)")
    parser.add_argument(
        "--tolerance", nargs=2, type=float, metavar=("ABSOLUTE", "RELATIVE"), help="of kind number (0 0)"
    )
    parser.add_argument(*both("--on-bad-row"), choices=get_args(OnBadRow), default="error")


def read_entry(
    path: str, args: argparse.Namespace, on_bad_reference: Literal["error", "skip"]
) -> tuple[list[Trace], int]:
    """The traces of a store or a file as the options say, and how many bad rows were skipped."""
    data = locate(path)
    if args.reference_rule and is_store(data):
        raise ValueError(f"{path} is a trace store, whose reference answers are final. Remove --reference_rule.")
    traces, num_skipped = read_traces(
        data,
        _columns(args.columns),
        format=args.format,
        source=args.source,
        teacher=args.teacher,
        stop_text=args.stop_text,
        where=_where(args.where),
        on_bad_row=args.on_bad_row,
    )
    if args.reference_rule:
        from w2sr.datamodules.sources import by_reference_rule  # here, because it imports Lightning

        traces = by_reference_rule(traces, args.reference_rule, on_bad_reference)
    return traces, num_skipped


def entry_verifier(rules: Sequence[str], kind: Kind | None, args: argparse.Namespace) -> Verifier:
    """A verifier by these rules and this kind, `math` by default, with the tolerance of the options."""
    return Verifier(rules, kind or "math", tolerance=Tolerance(*args.tolerance or (0.0, 0.0)))


def _columns(entries: Sequence[str] | None) -> dict[str, str] | None:
    """FIELD=COLUMN, each field once."""
    return _pairs("columns", entries, "FIELD=COLUMN. For example --columns problem=question")


def _where(entries: Sequence[str] | None) -> Where | None:
    """COLUMN=VALUE, with the value as YAML: a text, a number, true, null, or a list in brackets."""
    pairs = _pairs("where", entries, "COLUMN=VALUE. For example --where task=dyck_languages")
    return None if pairs is None else {column: yaml.safe_load(value) for column, value in pairs.items()}


def _pairs(option: str, entries: Sequence[str] | None, form: str) -> dict[str, str] | None:
    pairs: dict[str, str] = {}
    for entry in entries or ():
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--{option} {entry!r} is not {form}.")
        if name in pairs:
            raise ValueError(f"--{option} names {name} twice, as {pairs[name]} and as {value}. Remove one of them.")
        pairs[name] = value
    return pairs or None
