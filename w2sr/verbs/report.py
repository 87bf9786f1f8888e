"""`report RESULT ...`: one table of result files; RGR and PGR where a ceiling is named."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from w2sr.results import read_arms


def main(argv: Sequence[str]) -> None:
    """`report RESULT ...`: one table of result files, with RGR and PGR where a ceiling is named.

    An arm that several runs evaluated alike, as every `fit` does with the plain student, is one line.
    """
    parser = argparse.ArgumentParser(prog="report", description="One table of result.json files.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="result.json, or a folder of them")
    parser.add_argument("--plain", help="arm of the plain student: the floor of RGR")
    parser.add_argument("--teacher", help="arm of the weak teacher: the floor of PGR")
    parser.add_argument("--ceiling", help="arm of the reinforcement-learned student")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)

    from w2sr.report import to_markdown, to_text  # here, because it imports torch

    render = to_markdown if args.markdown else to_text
    print(render(read_arms(args.results), plain=args.plain, teacher=args.teacher, ceiling=args.ceiling), end="")
