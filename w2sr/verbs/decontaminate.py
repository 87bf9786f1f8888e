"""`decontaminate TRAIN --against FILE ...`: training problems that are problems of benchmarks."""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

from w2sr.decontaminate import Overlap, decontaminate
from w2sr.rows import BadRows, Row, as_text, read_rows
from w2sr.traces import is_store, read_store
from w2sr.types import Problem


def main(argv: Sequence[str]) -> None:
    """`decontaminate TRAIN --against FILE ...`: prints counts by benchmark and gate, with examples."""
    parser = argparse.ArgumentParser(
        prog="decontaminate",
        description="Compares training problems with benchmark problems: equal texts, and one problem inside another. "
        "TRAIN and FILE are .jsonl, .json, .csv, .tsv or .parquet, each also with .gz, or trace stores.",
    )
    parser.add_argument("train", type=Path, metavar="TRAIN")
    parser.add_argument("--against", type=Path, nargs="+", required=True, metavar="FILE", help="benchmarks")
    parser.add_argument("--column", default="problem", help="column of TRAIN that holds the problem")
    parser.add_argument("--against_column", default="problem", help="column of every FILE that holds the problem")
    parser.add_argument("--ngram", type=int, default=Overlap.ngram, help="words of an n-gram")
    parser.add_argument(
        "--max_overlap",
        type=float,
        default=Overlap.max_overlap,
        help="share of n-grams in common from which on two problems are compared",
    )
    parser.add_argument(
        "--out", type=Path, help="new file: of JSON lines, those that may stay; of other files, where these stand"
    )
    args = parser.parse_args(argv)

    overlap = Overlap(args.ngram, args.max_overlap)
    if args.out is not None and args.out.exists():
        raise ValueError(f"{args.out} is there already. Name a file that is not, or remove it.")
    benchmarks = {str(path): _problems(path, args.against_column) for path in args.against}
    found = decontaminate(_problems(args.train, args.column), benchmarks, overlap)
    print(found.format_table())
    if args.out is not None:
        kept = [problem.problem_id for problem in found.clean]
        args.out.write_bytes(_lines(args.train, kept))
        print(f"{args.out}: {len(kept):,} problems")


def _problems(path: Path, column: str) -> list[Problem]:
    """Problems under the names of their places ('train.jsonl:17'), or of a store under their ids."""
    if is_store(path):
        texts = {trace.problem_id: trace.problem for trace in read_store(path)}
    else:
        rows = read_rows(path, [column], BadRows("error"))
        texts = {row.where: _text(row, column) for row in rows}
    return [Problem(place, str(path), text, "") for place, text in texts.items()]


def _text(row: Row, column: str) -> str:
    try:
        return as_text(row.cells.get(column, ""))
    except ValueError as error:
        raise ValueError(f"{row.where}: column {column!r} {error}.") from error


def _lines(train: Path, kept: Sequence[str]) -> bytes:
    """The lines of a file of JSON lines that are kept, or the names of what is."""
    if not train.name.endswith((".jsonl", ".jsonl.gz")):
        return "".join(f"{place}\n" for place in kept).encode()
    data = gzip.decompress(train.read_bytes()) if train.suffix == ".gz" else train.read_bytes()
    lines = data.split(b"\n")
    return b"".join(lines[int(place.rpartition(":")[2]) - 1] + b"\n" for place in kept)
