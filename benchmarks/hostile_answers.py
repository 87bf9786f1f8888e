"""What hostile answers cost the verifier: verdicts, time against the limit, and processes that had to be replaced.

The answers are those of tests/unit/hostile_answers.py. Each is graded alone, so that its seconds are its own; then all
are graded in one call, each beside an innocent answer whose verdict is known, to see that order and counts are exact.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from common import head, table, write

from w2sr.verify import Verifier, workers

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "unit" / "hostile_answers.py"


class Graded(NamedTuple):
    """One hostile answer: verdict, wall seconds, and grading processes that were ended for it."""

    label: str
    seconds: float
    num_replaced: int


def corpus() -> Any:
    """The module of the answers, by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location("hostile_answers", CORPUS)
    assert spec is not None and spec.loader is not None, f"{CORPUS} is a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_ends() -> list[int]:
    """Counts the grading processes that the pool ends from now on, in the first place of the list."""
    ends, real = [0], workers.WorkerPool._remove

    def remove(self: Any, worker: Any) -> int:
        ends[0] += 1
        return real(self, worker)

    workers.WorkerPool._remove = remove  # type: ignore[method-assign]
    return ends


def grade_alone(answers: list[tuple[str, str]], reference: str, timeout_s: float, ends: list[int]) -> list[Graded]:
    """Each answer by itself, by a process that is ready: to start one is no cost of the answer."""
    graded = []
    with Verifier(timeout_s=timeout_s, num_workers=1) as verifier:
        for number, (_, answer) in enumerate(answers):
            warm = verifier.verify(rf"\boxed{{x+{number}}}", f"{number}+x")
            assert warm.label == "correct", f"an innocent answer was called {warm}"
            before, begin = ends[0], time.perf_counter()
            verdict = verifier.verify(rf"\boxed{{{answer}}}", reference)
            graded.append(Graded(verdict.label, time.perf_counter() - begin, ends[0] - before))
    return graded


def grade_together(answers: list[tuple[str, str]], reference: str, timeout_s: float) -> tuple[int, int, int]:
    """All answers in one call, after each an innocent pair, right and wrong by turns.

    Returns how many verdicts came back of how many pairs, and how many innocent ones were not what they are.
    """
    pairs, expected = [], []
    for number, (_, answer) in enumerate(answers):
        right = number % 2 == 0
        pairs += [(rf"\boxed{{{answer}}}", reference), (rf"\boxed{{y+{number}}}", f"{number + (not right)}+y")]
        expected.append("correct" if right else "incorrect")
    with Verifier(timeout_s=timeout_s, num_workers=2) as verifier:
        verdicts = verifier.verify_all(pairs)
    wrong = sum(verdict.label != label for verdict, label in zip(verdicts[1::2], expected, strict=True))
    return len(verdicts), len(pairs), wrong


def line(kind: str, graded: list[Graded]) -> list[str]:
    """A row of the table."""
    labels = Counter(one.label for one in graded)
    return [
        kind,
        str(len(graded)),
        *(str(labels[label]) for label in ("incorrect", "no_answer", "timeout", "correct")),
        f"{max(one.seconds for one in graded):.2f}",
        str(sum(one.num_replaced for one in graded)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--timeout-s", type=float, default=2.0, help="the limit of one answer")
    arguments = parser.parse_args()
    module, ends = corpus(), count_ends()
    lines, every = [], []
    for kind, answers in module.kinds().items():
        graded = grade_alone(answers, module.REFERENCE, arguments.timeout_s, ends)
        lines.append(line(kind, graded))
        print(" | ".join(lines[-1]), flush=True)
        every += graded
    num_verdicts, num_pairs, num_wrong = grade_together(module.hostile_answers(), module.REFERENCE, arguments.timeout_s)
    note = (
        f"\nThe limit of one answer is {arguments.timeout_s:g} s. `timeout` is the verdict of an answer that cost its "
        "limit, or its process; it counts as wrong. No answer of the corpus is right. Each was graded alone; a process "
        "is replaced after a time limit, a crash, or when it came to hold half of its memory limit.\n"
    )
    page = head("Hostile answers", ["math-verify", "sympy"], note)
    columns = ["kind", "answers", "incorrect", "no answer", "timeout", "correct", "worst seconds", "processes replaced"]
    page += "\n" + table(columns, [*lines, line("**all**", every)])
    page += (
        f"\nIn one call with two processes, each hostile answer before an innocent one: {num_verdicts} verdicts of "
        f"{num_pairs} pairs, in their order; {num_wrong} of {num_pairs // 2} innocent answers judged wrongly.\n"
    )
    write(arguments.out, page)


if __name__ == "__main__":
    main()
