r"""Right verdicts of ours and of plain math-verify on pairs with known verdicts, and what the algebra saves.

    OMP_NUM_THREADS=1 python benchmarks/verify_pairs.py --data ../shared/data --out docs/results/verify_pairs.md

The pairs are those of tests/unit/adversarial_pairs.py and tests/unit/grading_pairs.py. Plain math-verify reads
`\boxed{answer}` and `\boxed{reference}` in its default settings.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import random
import resource
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common

from w2sr.verify import Verifier, algebra
from w2sr.verify.comparison import open_pairs

TESTS = Path(__file__).resolve().parent.parent / "tests" / "unit"
TIMEOUT_S = 5
SHOWN = 6

WHY = {
    "Unicode": "It does not read `½`, `√`, superscripts, dashes and digits of other scripts.",
    "Currency": "It does not read a currency sign behind or before the number, or multiplies by the letters of a code.",
    "Floats": "It reads the `e` of `1e16` as Euler's number.",
    "Small and huge values": "It compares absolute differences and six decimal places.",
    "small values": "It compares absolute differences and six decimal places, and reads `e` as Euler's number.",
    "Thousands, tuples, intervals, sets": "It does not remove separators of thousands inside of lists and behind a name.",
    "Units": "It ignores which unit is written, reads letters as variables, and does not know millions.",
    "units": "It reads letters as variables.",
    "Lists of solutions": "It compares a tuple with named values, and repeated values, as sets.",
    "Percents": "It reads `percent` in text, and a mixed number before the sign, as products.",
    "percentages": "It takes a bare p for a percentage only where both are integers.",
    "Relations and symmetry": "It takes the right side of a relation for its value, or compares one order only.",
    "Bases": "It ignores the base.",
    "Markup": "It does not unwrap fonts around nested braces, and Markdown.",
    "Repeating decimals and mixed numbers": "It reads `2 1/2` as a product, and an overline as nothing.",
    "mixed numbers": "It reads `2 1/2` as a product.",
    "Words, letters, codes, times": "It multiplies letters, and reads `0x10` and `2:55` as arithmetic.",
    "Formulas": "It knows no upper case: R/r is 1.",
    "tuples and intervals": "It reads a pair whose first number is larger as a tuple, whatever its brackets are.",
    "a unit": "It does not read a font command beside other text.",
    "x=": "It does not read a font command beside other text.",
}


class Known(NamedTuple):
    """A pair with its verdict, and the set and kind that it belongs to."""

    group: str
    kind: str
    answer: str
    reference: str
    equal: bool


def load(name: str) -> Any:
    """A module of tests/unit."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def known_pairs(data: Path, num_generated: int, num_references: int) -> list[Known]:
    made = load("grading_pairs")
    found = [
        Known("adversarial", p.heading, p.answer, p.reference, p.equal) for p in load("adversarial_pairs").hard_pairs()
    ]
    found += [Known("generated", p.kind, p.answer, p.reference, p.equal) for p in made.generated(num_generated)]
    references = made.references(data)
    chosen = random.Random(0).sample(references, min(num_references, len(references)))
    found += [Known("re-spelled references", p.kind, p.answer, p.reference, True) for p in made.respelled(chosen)]
    return found


def by_math_verify(pairs: Sequence[Known]) -> list[bool]:
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    boxed = (LatexExtractionConfig(boxed_match_priority=0),)

    def read(text: str) -> Any:
        return parse(rf"\boxed{{{text}}}", boxed, parsing_timeout=TIMEOUT_S)

    return [verify(read(one.reference), read(one.answer), timeout_seconds=TIMEOUT_S) for one in pairs]


def cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def verdicts(pairs: Sequence[tuple[str, str]]) -> tuple[list[bool], float, int]:
    """Ours, the CPU seconds with the start of one process, and how many pairs went to math-verify."""
    begin = cpu_s()
    with Verifier(timeout_s=TIMEOUT_S, num_workers=1) as verifier:
        found = verifier.equal_all(pairs)
        left = sum(1 for pair in dict.fromkeys(pairs) if any(True for _ in open_pairs(verifier._quick(*pair)[0])))
    return found, cpu_s() - begin, left


def agreement(pairs: list[Known]) -> str:
    ours = verdicts([(one.answer, one.reference) for one in pairs])[0]
    swapped = verdicts([(one.reference, one.answer) for one in pairs])[0]
    theirs = by_math_verify(pairs)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    listed: dict[tuple[str, str], list[str]] = defaultdict(list)
    wrong = []
    for one, mine, other, their in zip(pairs, ours, swapped, theirs, strict=True):
        key = (one.group, one.kind)
        counts[key].update(pairs=1, ours=mine is one.equal, theirs=their is one.equal, swapped=mine is other)
        shown = f"`{one.answer}` for `{one.reference}`"
        if their is not one.equal:
            listed[key].append(shown)
        if mine is not one.equal:
            wrong.append(f"{one.group}, {one.kind}: {shown} is {'equal' if one.equal else 'not equal'}")
    lines = [
        [*key, *(f"{count[name]:,}" for name in ("pairs", "ours", "theirs", "swapped"))]
        for key, count in counts.items()
    ]
    totals = {group: sum((counts[key] for key in counts if key[0] == group), Counter()) for group, _ in counts}
    parts = [
        f"**{group}: ours {total['ours']:,} of {total['pairs']:,} right, math-verify {total['theirs']:,}.**"
        for group, total in totals.items()
    ]
    parts.append(common.table(["set", "kind", "pairs", "ours right", "math-verify right", "same when swapped"], lines))
    parts.append("**Ours is wrong** on: " + ("; ".join(wrong) or "none of them") + ".")
    for key, examples in listed.items():
        why = WHY.get(key[1], "Not explained.")
        more = f"; and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
        parts.append(
            f"**math-verify is wrong, {key[0]}, {key[1]}** ({len(examples)}). {why}\n\n{'; '.join(examples[:SHOWN])}{more}."
        )
    return "\n\n".join(parts)


def savings(data: Path) -> str:
    """CPU seconds with and without algebra.py and what it calls."""
    jobs: dict[str, list[tuple[str, str]]] = {}
    for name, file in (
        ("MATH", "qwen25math_example_math100"),
        ("GSM8K", "zeroeval_gsm8k_weak_to_strong"),
    ):
        jobs[name] = [
            (str(row["prediction"]), str(row["gold"])) for row in common.rows(data / "traces" / f"{file}.jsonl.gz")
        ]
    for row in common.rows(data / "grader" / "qwen_math_eval_real_pairs.jsonl.gz"):
        if row["dataset"] in ("olympiadbench", "gaokao2023en") and str(row["gold"]).strip():
            jobs.setdefault(f"{row['dataset']}, real answers", []).append((str(row["prediction"]), str(row["gold"])))
    for name, file in (("MATH-500", "math500"), ("OlympiadBench", "olympiadbench_math_en_text")):
        texts = [str(row["answer"]) for row in common.rows(data / "problems" / f"{file}.jsonl.gz")]
        jobs[f"{name}, each reference with the next"] = list(itertools.pairwise(texts))
    lines = []
    for name, pairs in jobs.items():
        found, with_s, left = verdicts(pairs)
        compare = algebra.compare
        algebra.compare = lambda *texts: None
        without, without_s, more = verdicts(pairs)
        algebra.compare = compare
        changed = sum(one is not other for one, other in zip(found, without, strict=True))
        lines.append(
            [
                name,
                f"{len(pairs):,}",
                f"{with_s:.2f}",
                f"{without_s:.2f}",
                f"{1 - with_s / without_s:.0%}",
                f"{left:,}",
                f"{more:,}",
                f"{changed:,}",
            ]
        )
    return common.table(
        ["answers", "count", "CPU s", "without algebra", "saved", "to math-verify", "without", "verdicts that change"],
        lines,
    )


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--references", type=int, default=1_000, help="so many references are re-spelled")
    arguments.add_argument("--generated", type=int, default=2_000, help="so many pairs are generated")
    args = arguments.parse_args()
    pairs = known_pairs(args.data, args.generated, args.references)
    head = common.head("Verdicts of the mathematical verifier on known pairs", ("math-verify", "sympy"), "")
    common.write(
        args.out,
        f"{head}{INTRODUCTION}\n{agreement(pairs)}\n\n## What the algebra saves\n\n{SAVED}\n\n{savings(args.data)}",
    )


INTRODUCTION = """
The right verdicts are known: by hand (adversarial), by construction (generated), or because a reference equals its own
re-spelling. Plain math-verify reads `\\boxed{answer}` with its default settings. Ours is asked in both orders.
The adversarial pairs are not a blind test: most were written after the rules had run on an earlier list of 125 pairs,
and the rules were corrected where the lists found a fault.
"""
SAVED = """CPU seconds of the verifier, the start of one grading process included where it is needed, with `algebra.py` (and
`formulas.py`, `quotients.py`, `numerics.py`) and without it, when all that it decides goes to math-verify. A verdict that
changes is one of math-verify's own. On MATH-like answers the algebra saves a fifth or more, so it stays; on GSM8K it
saves nothing."""


if __name__ == "__main__":
    main()
