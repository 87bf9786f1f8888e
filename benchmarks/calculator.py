"""A calculator in the miniature's chains: Pass@1 of teacher and students with and without it.

OMP_NUM_THREADS=2 python benchmarks/calculator.py --out docs/results/calculator.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import torch

from w2sr.chat import Chat
from w2sr.problems import read_problems
from w2sr.rollouts import Embedded, Generator, ToolGenerator, sample_requests
from w2sr.tools import Calculator
from w2sr.types import Sampling
from w2sr.verify import Verifier

MINIATURE = Path(__file__).resolve().parent.parent / "w2sr" / "miniature"
SAMPLING = Sampling(temperature=0.0, max_new_tokens=160)
CALCULATOR = Calculator(open="", close=" = ", result="{}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--student", type=Path, help="also a trained student, such as runs/demo/student")
    args = parser.parse_args()
    models = {"teacher": MINIATURE / "teacher"} | ({"W2SR-P student": args.student} if args.student else {})
    lines, example = [], ""
    for name, folder in models.items():
        for label, calculator in (("alone", None), ("with the calculator", CALCULATOR)):
            right, asked, calls, text = measured(folder, calculator)
            lines.append([name, label, f"{right:,}", f"{asked:,}", f"{100 * right / asked:.1f}", f"{calls:,}"])
            example = example or text * bool(calculator)
    note = "Greedy, at most 160 new tokens, the miniature's test problems. The calculator answers behind ` = `."
    common.write(args.out, page(common.head("A calculator in the chain", ("torch",), note), lines, example))


def measured(folder: Path, calculator: Calculator | None) -> tuple[int, int, int, str]:
    """Right answers, problems, calls that were answered, and the first completion with its results marked."""
    problems = read_problems(MINIATURE / "data" / "test.jsonl.gz")
    chat = Chat.load(folder)
    requests = [request for problem in problems for request in sample_requests(problem, chat)]
    with Embedded(num_slots=256).open(str(folder), chat, torch.device("cpu")) as embedded:
        generator: Generator = embedded if calculator is None else ToolGenerator(embedded, calculator, chat)
        found = {completion.problem_id: completion for completion in generator.stream(requests, SAMPLING)}
    with Verifier() as verifier:
        verdicts = verifier.verify_all([(found[p.problem_id].text, p.reference_answer) for p in problems])
    first = found[problems[0].problem_id]
    marked = first.text
    for start, end in reversed(first.no_loss_spans):
        marked = f"{marked[:start]}[{marked[start:end]}]{marked[end:]}"
    calls = sum(len(completion.no_loss_spans) for completion in found.values())
    return sum(verdict.is_correct for verdict in verdicts), len(problems), calls, marked


def page(head: str, lines: list[list[str]], example: str) -> str:
    return f"""{head}
{common.table(["model", "", "right", "problems", "Pass@1", "calls answered"], lines)}
The first completion, with what the calculator wrote in brackets; those tokens carry no loss in training:

    {example}

The miniature's tokenizer spells no number above 199: such a result is left to the model, like what is copied or read
wrongly.
"""


if __name__ == "__main__":
    main()
