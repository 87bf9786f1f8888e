"""Training sets against benchmarks: how many training problems each gate of decontamination finds.

    python benchmarks/decontamination.py --data ../shared/data --out docs/results/decontamination.md

Reads `problems/*.jsonl.gz` under --data and writes one Markdown page.
"""

from __future__ import annotations

import time
from pathlib import Path

import common

from w2sr.decontaminate import Decontamination, Match, Overlap, decontaminate
from w2sr.problems import read_problems
from w2sr.types import Problem

COLUMNS = {"problem_id": "id", "problem": "problem", "reference_answer": "answer"}
TRAIN = {"MATH levels 3-5 (the paper's)": "math_lvl3to5_8k", "MATH train": "math_train", "GSM8K train": "gsm8k_train"}
BENCHMARKS = {
    "MATH test": "math_test",
    "MATH-500": "math500",
    "GSM8K test": "gsm8k_test",
    "AIME24": "aime24",
    "AMC23": "amc23",
    "OlympiadBench": "olympiadbench_math_en_text",
    "AQuA": "aqua",
    "SAT": "sat_math",
}
NUM_CHARS = 160


def main() -> None:
    args = common.parser(__doc__).parse_args()
    benchmarks = {name: problems(args.data, file) for name, file in BENCHMARKS.items()}
    lines: list[list[str]] = []
    examples: list[Match] = []
    for name, file in TRAIN.items():
        train = problems(args.data, file)
        for benchmark, others in benchmarks.items():
            began = time.perf_counter()
            found = decontaminate(train, {benchmark: others})
            lines.append(line(name, len(train), benchmark, len(others), found, time.perf_counter() - began))
            examples += examples_of(found)
            print(", ".join(lines[-1]), flush=True)
    common.write(args.out, page(lines, examples))


def problems(data: Path, file: str) -> list[Problem]:
    return read_problems(data / "problems" / f"{file}.jsonl.gz", COLUMNS, source=file)


def line(
    train: str, num_train: int, benchmark: str, num_others: int, found: Decontamination, seconds: float
) -> list[str]:
    counts = {"exact": 0, "overlap": 0, **found.counts().get(benchmark, {})}
    numbers = [num_others, counts["exact"], counts["overlap"], len(found.clean)]
    return [train, f"{num_train:,}", benchmark, *(f"{number:,}" for number in numbers), f"{seconds:.1f}"]


def examples_of(found: Decontamination) -> list[Match]:
    """The first match of either gate, and that with the least overlap: the nearest to be let through."""
    exact = [match for match in found.matches if match.gate == "exact"]
    others = [match for match in found.matches if match.gate == "overlap"]
    return [*exact[:1], *others[:1], *sorted(others[1:], key=lambda match: match.share)[:1]]


def page(lines: list[list[str]], examples: list[Match]) -> str:
    """The Markdown page."""
    overlap = Overlap()
    head = common.head(
        "Decontamination: training sets against benchmarks",
        ("numpy",),
        "Seconds are wall time of one comparison on a machine that does other work too.",
    )
    shown = [
        [match.benchmark, match.gate, f"{match.share:.2f}", text(match.problem), text(match.other)]
        for match in examples
    ]
    return f"""{head}
*Exact*: equal text after NFKC, case folding and collapsing white space; operators stay. *Overlap*: of the others, at least
{overlap.max_overlap:.0%} of the {overlap.ngram}-grams of words stand in one benchmark problem too. *Clean* may stay. Training problems are counted
with their copies.

{common.table(["training set", "problems", "benchmark", "problems", "exact", "overlap", "clean", "s"], lines)}
## Examples

Of each pair of sets the first match of either gate, and the one that overlaps least. By overlap are found twins with other
numbers, and problems that share a long preamble: read them before you raise or lower `max_overlap`.

{common.table(["benchmark", "gate", "share", "training problem", "benchmark problem"], shown)}"""


def text(problem: Problem) -> str:
    """A problem on one line, as code, so that its LaTeX stays as it is."""
    flat = " ".join(problem.problem.split()).replace("`", "'")
    return f"`{flat if len(flat) <= NUM_CHARS else flat[: NUM_CHARS - 3] + '...'}`"


if __name__ == "__main__":
    main()
