"""Distillation killed and resumed: is the store that of an uninterrupted run? And how often do near-ties flip?

    OMP_NUM_THREADS=1 python benchmarks/distill_resume.py --out docs/results/distill_resume.md

`predict` is killed (SIGKILL) at random moments and started again, greedily and sampled; then the stores are compared.
Equality is what is measured here, not time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import common
import torch
from torch import Tensor

from w2sr.chat import Chat
from w2sr.miniature.build import SEED, TEACHER
from w2sr.miniature.world import problems
from w2sr.rollouts import Embedded, sampling
from w2sr.traces import iter_store, trace_key
from w2sr.types import Completion, Problem, SampleRequest, Sampling, Trace

CLI = Path(__file__).resolve().parent.parent / "lightning_cli.py"
MAX_NEW_TOKENS = 160
MODES = {"greedy": (Sampling(0.0, 1.0, MAX_NEW_TOKENS), 1), "sampled": (Sampling(1.0, 0.95, MAX_NEW_TOKENS), 2)}
SLOTS = (128, 37, 5, 1)
"""Batch shapes; the first is what the others are compared with."""
MARGINS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


class Resumed(NamedTuple):
    """One mode: the uninterrupted store, the resumed one, and how many traces each kill found written."""

    whole: list[Trace]
    resumed: list[Trace]
    found: list[int]


class Ties(NamedTuple):
    """One mode: completions, those that differ for each number of slots, and each completion's smallest margin."""

    num_completions: int
    flips: dict[int, int]
    smallest: list[float]
    flipped_margins: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--traces", type=int, default=1000, help="traces of each mode")
    parser.add_argument("--kills", type=int, default=20, help="kills of each mode")
    parser.add_argument(
        "--ties", type=int, default=200, help="completions of each mode that are compared by batch shape"
    )
    args = parser.parse_args()
    resumed, ties = {}, {}
    for mode, (settings, num_samples) in MODES.items():
        asked = problems("train", args.traces // num_samples, seed=SEED)
        with tempfile.TemporaryDirectory() as folder:
            resumed[mode] = kill_and_resume(Path(folder), asked, settings, num_samples, args.kills)
        ties[mode] = near_ties(asked, settings, num_samples, args.ties)
        print(mode, len(differing(resumed[mode])), "differ;", ties[mode].flips, flush=True)
    common.write(args.out, page(resumed, ties, args))


def kill_and_resume(
    folder: Path, asked: list[Problem], settings: Sampling, num_samples: int, num_kills: int
) -> Resumed:
    """Runs `predict` once to its end, and once with kills; the last start of that one is left alone."""
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(problem._asdict()) + "\n" for problem in asked))
    began = time.monotonic()
    assert start(folder / "whole", file, settings, num_samples).wait() == 0
    whole_s = time.monotonic() - began
    moments, found = random.Random(7), list[Any]()
    while len(found) < num_kills:
        process = start(folder / "killed", file, settings, num_samples)
        await_moment(process, folder / "killed", moments, whole_s, num_samples * len(asked) // (2 * num_kills))
        process.kill()
        if process.wait() == 0:
            raise RuntimeError(f"the run ended before kill {len(found) + 1} of {num_kills}: give it more --traces")
        found.append(num_written(folder / "killed"))
        print(f"kill {len(found)}: {found[-1]} traces written", flush=True)
    assert start(folder / "killed", file, settings, num_samples).wait() == 0
    return Resumed(content(folder / "whole"), content(folder / "killed"), found)


def start(store: Path, file: Path, settings: Sampling, num_samples: int) -> subprocess.Popen[bytes]:
    words = [
        *("predict", "--config", "configs/distill.yaml", f"--trainer.default_root_dir={store}"),
        f"--data.init_args.problems={{miniature: {{path: {file}}}}}",
        f"--model.init_args.num_samples={num_samples}",
        f"--model.init_args.sampling.temperature={settings.temperature}",
        f"--model.init_args.sampling.top_p={settings.top_p}",
    ]
    return subprocess.Popen(
        [sys.executable, str(CLI), *words], cwd=CLI.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def await_moment(
    process: subprocess.Popen[bytes], store: Path, moments: random.Random, whole_s: float, most: int
) -> None:
    """One kill in four at any time of a run, start-up included; the others after a number of new traces and a while."""
    any_time = moments.random() < 0.25
    deadline_s = time.monotonic() + (moments.uniform(0, whole_s) if any_time else float("inf"))
    goal = num_written(store) + (most if any_time else moments.randint(1, most))
    while process.poll() is None and num_written(store) < goal and time.monotonic() < deadline_s:
        time.sleep(0.002)
    if not any_time:
        time.sleep(moments.uniform(0, 0.05))


def num_written(store: Path) -> int:
    return sum(journal.read_bytes().count(b"\n") for journal in store.glob("journal-*.jsonl"))


def content(store: Path) -> list[Trace]:
    """Everything but the seconds, in the order of the keys."""
    return sorted((replace(trace, seconds=0.0) for trace in iter_store(store)), key=trace_key)


def differing(run: Resumed) -> list[Trace]:
    """Traces of the resumed store that the uninterrupted one has otherwise, or not at all."""
    whole = {trace_key(trace): trace for trace in run.whole}
    return [trace for trace in run.resumed if whole.get(trace_key(trace)) != trace]


def near_ties(asked: list[Problem], settings: Sampling, num_samples: int, limit: int) -> Ties:
    """The same requests in batches of other shapes: which completions differ, and how near each came to it."""
    chat = Chat.load(TEACHER)
    requests = [
        SampleRequest(problem.problem_id, index, tuple(chat.prompt_ids(problem.problem)))
        for problem in asked
        for index in range(num_samples)
    ][:limit]
    answers: dict[int, dict[Any, Completion]] = {}
    margins: dict[Any, float] = {}
    for num_slots in SLOTS:
        with Embedded(num_slots=num_slots).open(TEACHER, chat, torch.device("cpu")) as generator:
            answers[num_slots] = {key(c): c for c in generator.stream(requests, settings)}
    with Embedded(num_slots=1).open(TEACHER, chat, torch.device("cpu")) as generator:
        for request in requests:
            with recorded_margins() as seen:
                list(generator.stream([request], settings))
            margins[request.problem_id, request.sample_index] = min(seen)
    first = answers[SLOTS[0]]
    changed = {slots: [k for k in first if answers[slots][k] != first[k]] for slots in SLOTS[1:]}
    flipped = sorted({k for keys in changed.values() for k in keys})
    return Ties(
        len(first),
        {slots: len(keys) for slots, keys in changed.items()},
        sorted(margins.values()),
        sorted(margins[k] for k in flipped),
    )


def key(completion: Completion) -> tuple[str, int]:
    return completion.problem_id, completion.sample_index


class recorded_margins:
    """The margin of every token that is chosen in the block: how far its logits are from another choice.

    Greedy: the gap of the two highest logits. Sampled: the distance of the noise from the nearest end of the interval
    that it fell into, as a probability.
    """

    def __enter__(self) -> list[float]:
        self.seen: list[float] = []
        real: Callable[..., Tensor] = sampling.choose_tokens

        def choose(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
            if temperature == 0:
                best_B2 = logits_BV.topk(2).values
                self.seen += (best_B2[:, 0] - best_B2[:, 1]).tolist()
            return real(logits_BV, uniforms_B, temperature, top_p)

        def inverse(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
            cumulative_BV = weights_BV.cumsum(-1, dtype=torch.float64)
            targets_B1 = uniforms_B[:, None].to(torch.float64) * cumulative_BV[:, -1:]
            self.seen += (cumulative_BV[:, :-1] - targets_B1).abs().min(-1).values.tolist()
            return real_inverse(weights_BV, uniforms_B)

        real_inverse = sampling._inverse_cdf
        self.patches: list[Any] = [
            mock.patch("w2sr.rollouts.embedded.choose_tokens", choose),
            mock.patch("w2sr.rollouts.sampling._inverse_cdf", inverse),
        ]
        for patch in self.patches:
            patch.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.stop()


def page(resumed: dict[str, Resumed], ties: dict[str, Ties], args: argparse.Namespace) -> str:
    equal = all(run.whole == run.resumed for run in resumed.values())
    verdict = "equal" if equal else "NOT EQUAL"
    note = f"""The miniature's teacher on its training problems; {args.traces:,} traces a mode, {args.kills} kills of each by SIGKILL, then the same
command until it ends. Greedy: one sample a problem. Sampled: two, at temperature {MODES["sampled"][0].temperature:g} and top_p {MODES["sampled"][0].top_p:g}."""
    return f"""{common.head("Distillation, killed and resumed", ("torch", "transformers"), note)}
**The resumed stores and the uninterrupted ones: {verdict}**, in every field but `seconds`.

{common.table(["mode", "traces", "kills", "traces found at the kills", "twice", "lost", "differ"], resume_lines(resumed))}
One kill in four came at a random time of the run, start-up included; the others some milliseconds after a random number
of new traces had been written.

## Near-ties

Noise does not depend on the batch, but logits do in their last bits, where the batch has another shape. A choice changes
where its margin is smaller than that difference: greedily the gap of the two highest logits, sampled the distance of the
noise from the nearest end of the interval that it fell into, as a probability. The same requests with {SLOTS[0]} slots and with
{", ".join(map(str, SLOTS[1:]))}:

{common.table(["mode", "completions", *(f"differ with {slots} slots" for slots in SLOTS[1:]), "smallest margin", *(f"margin < {limit:g}" for limit in MARGINS)], tie_lines(ties))}
*Margin < x* counts completions by their smallest margin over all their tokens.
{flip_text(ties)}
Not measured: other models, bfloat16 (whose last bits are 65,536 times larger), GPUs, and the vLLM engines.
"""


def resume_lines(resumed: dict[str, Resumed]) -> Iterator[list[str]]:
    for mode, run in resumed.items():
        keys = [trace_key(trace) for trace in run.resumed]
        lost = {trace_key(trace) for trace in run.whole} - set(keys)
        found = ", ".join(map(str, run.found))
        counts = [str(len(keys) - len(set(keys))), str(len(lost)), str(len(differing(run)))]
        yield [mode, f"{len(run.resumed):,}", str(len(run.found)), f"({found})", *counts]


def tie_lines(ties: dict[str, Ties]) -> Iterator[list[str]]:
    for mode, tie in ties.items():
        below = [str(sum(margin < limit for margin in tie.smallest)) for limit in MARGINS]
        yield [mode, str(tie.num_completions), *map(str, tie.flips.values()), f"{tie.smallest[0]:.1e}", *below]


def flip_text(ties: dict[str, Ties]) -> str:
    said = [
        f"{mode}: {', '.join(f'{m:.1e}' for m in tie.flipped_margins)}"
        for mode, tie in ties.items()
        if tie.flipped_margins
    ]
    return (
        f"\nSmallest margins of the completions that differ: {'; '.join(said)}.\n"
        if said
        else "\nNo completion differs.\n"
    )


if __name__ == "__main__":
    main()
