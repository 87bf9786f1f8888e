"""Traces of two teachers on the same problems: the weak reasoner, and the stronger student asked to reason.

    OMP_NUM_THREADS=1 python benchmarks/traces_of_two_teachers.py --out docs/results/two_teachers.md

Both write their traces with `predict`; the page is what the two stores hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

from w2sr.distillation import Tally
from w2sr.templates import COT_INSTRUCTION
from w2sr.traces import read_recipe, read_store
from w2sr.types import Trace

CLI = Path(__file__).resolve().parent.parent / "lightning_cli.py"
TEACHERS = {
    "weak reasoner": ("w2sr/miniature/teacher", ""),
    "plain student": ("w2sr/miniature/student", ""),
    "plain student, CoT prompt": ("w2sr/miniature/student", COT_INSTRUCTION),
}
SHOWN_CHARACTERS = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    args = parser.parse_args()
    traces: dict[str, list[Trace]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (model, instruction)) in enumerate(TEACHERS.items()):
            store = Path(folder) / str(number)
            predict(store, model, instruction)
            traces[name] = read_store(store)
            num_problems = read_recipe(store).num_problems
    common.write(args.out, page(traces, num_problems))


def predict(store: Path, model: str, instruction: str) -> None:
    words = [
        *("predict", "--config", "configs/distill.yaml", f"--trainer.default_root_dir={store}"),
        *(f"--model.init_args.teacher={model}", f"--model.init_args.instruction={instruction}"),
    ]
    subprocess.run([sys.executable, str(CLI), *words], cwd=CLI.parent, check=True, stderr=subprocess.DEVNULL)


def page(traces: dict[str, list[Trace]], num_problems: int) -> str:
    note = f"""{num_problems:,} training problems of the miniature, one greedy trace each, at most 160 tokens, by
`predict --config configs/distill.yaml`. The teacher has 0.13M parameters, the student 0.64M."""
    header = ["teacher", "traces", "correct", "incorrect", "no answer", "cut off", "tokens: median", "95 %", "most"]
    return f"""{common.head("Traces of two teachers", ("torch", "transformers"), note)}
{common.table(header, [line(name, found) for name, found in traces.items()])}
{both(traces)}

The first trace of each, by problem id:

{examples(traces)}
The instruction of the third row is {COT_INSTRUCTION.strip()!r}. Not measured: students trained on either store.
"""


def line(name: str, traces: list[Trace]) -> list[str]:
    tally = Tally(traces)
    counts = [tally.verdicts[label] for label in ("correct", "incorrect", "no_answer")]
    lengths = np.array([trace.num_tokens for trace in traces])
    spread = [f"{value:.0f}" for value in (np.median(lengths), np.percentile(lengths, 95), lengths.max())]
    shares = [f"{100 * count / tally.num_traces:.1f} %" for count in [*counts, tally.num_cut_off]]
    return [name, f"{tally.num_traces:,}", *shares, *spread]


def both(traces: dict[str, list[Trace]]) -> str:
    """How the right answers of the reasoner and of the prompted student overlap."""
    first, second = (
        {trace.problem_id for trace in traces[name] if trace.verdict == "correct"}
        for name in ("weak reasoner", "plain student, CoT prompt")
    )
    return (
        f"Right by the weak reasoner and by the prompted student: {len(first & second):,} problems; by the reasoner "
        f"alone {len(first - second):,}, by the student alone {len(second - first):,}."
    )


def examples(traces: dict[str, list[Trace]]) -> str:
    firsts = {name: min(found, key=lambda trace: trace.problem_id) for name, found in traces.items()}
    return "".join(
        f"- *{name}* ({trace.verdict}): `{trace.completion[:SHOWN_CHARACTERS]}`\n" for name, trace in firsts.items()
    )


if __name__ == "__main__":
    main()
