"""`puzzles KIND --num N --out FILE`: a file of generated logic puzzles with worked solutions."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from w2sr.problems import read_problems
from w2sr.puzzles import Puzzle, generate_puzzles


def main(argv: Sequence[str]) -> None:
    """`puzzles knights|ordering`: writes JSON lines that read as problems, and as traces by their worked solutions."""
    parser = argparse.ArgumentParser(
        prog="puzzles",
        description="Logic puzzles with exactly one solution, for `kind: logic`. Each row is a problem and, by "
        "its worked solution, a trace: name the file under benchmarks, traces, or both (then with another seed "
        "and --without).",
    )
    parser.add_argument("kind", choices=("knights", "ordering"))
    parser.add_argument("--num", type=int, default=200, help="how many puzzles (200)")
    parser.add_argument("--people", type=int, default=3, help="people in each puzzle (3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without", type=Path, action="append", default=[], metavar="FILE", help="no puzzle of this file"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .jsonl file")
    args = parser.parse_args(argv)

    if args.out.suffix != ".jsonl":
        raise ValueError(f"--out {args.out} must end in .jsonl.")
    if args.out.exists():
        raise ValueError(f"{args.out} is there already. Remove it, or name another file with --out.")
    without = {problem.problem_id for file in args.without for problem in read_problems(file)}
    puzzles = generate_puzzles(args.kind, num=args.num, size=args.people, seed=args.seed, without=without)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(_row(one), ensure_ascii=False) + "\n" for one in puzzles), encoding="utf-8")
    print(f"{args.out}: {len(puzzles):,} puzzles")
    for stratum, count in sorted(Counter(puzzle.problem.stratum for puzzle in puzzles).items()):
        print(f"  {stratum}: {count:,}")


def _row(puzzle: Puzzle) -> dict[str, str]:
    """A problem under the names of Problem, its solution under those of Trace."""
    solution = {"teacher": "puzzle-solver", "completion": puzzle.solution, "finish_reason": "stop"}
    return {**puzzle.problem._asdict(), **solution}
