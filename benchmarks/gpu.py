"""One GPU: is the arithmetic right there, and how fast is it? Correctness first, then rates beside measured ceilings.

    python benchmarks/gpu.py                        # all parts, at most nine minutes
    python benchmarks/gpu.py --part sft-0.6b        # one part
    python benchmarks/gpu.py --device cpu --tiny    # does the script itself work? nothing of it is a result

Needs torch, transformers, lightning, torchmetrics and peft. What else it measures beside (flash-attn, liger-kernel, TRL)
is left out where it is not installed, and the page says so. Weights are random: no model is downloaded. Two protocols:

- *full rows*: one document a row, every token has a loss, every block computed again: what is usually published.
- *real lengths*: traces of log-normal length packed into rows, the first fifth of each is its prompt and has no loss.

The parts are files of `gpu_parts/`. Each has a share of the time, and page and JSON are written after every line, so that
a run that is cut off loses one line.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_parts.bench import Bench, Row
from gpu_parts.ceilings import ceilings
from gpu_parts.correctness import correctness
from gpu_parts.decode import decode
from gpu_parts.goals import judged
from gpu_parts.grpo import grpo
from gpu_parts.liger import liger
from gpu_parts.page import described, write
from gpu_parts.peers import peers
from gpu_parts.sft import cells_of, sft

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "gpu"


class Part(NamedTuple):
    """A part, and its share of the time: seconds of eight minutes, an estimate. What it leaves is for those after it."""

    run: Callable[[Bench], Iterator[Row]]
    share: float


PARTS = {
    "correctness": Part(correctness, 75),
    "ceilings": Part(ceilings, 10),
    "sft-0.6b": Part(lambda bench: sft(bench, cells_of("Qwen3-0.6B")), 155),
    "sft-7b": Part(lambda bench: sft(bench, cells_of("Qwen2.5-7B", pure_bf16=True)), 40),
    "peers": Part(peers, 30),
    "decode": Part(decode, 60),
    "grpo": Part(grpo, 85),
    "sft-1.5b": Part(lambda bench: sft(bench, cells_of("Qwen2.5-1.5B")), 25),
    "liger": Part(liger, 15),
}
"""In the order of what is lost first when time is short: what has a goal comes before what has none."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shrink everything: a check of the script")
    parser.add_argument("--minutes", type=float, default=9.0, help="no measurement begins after so long, less one")
    parser.add_argument("--out", type=Path, help=f"folder of page and JSON; {RESULTS} without it, none with --tiny")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here. --device cpu --tiny checks the script, and measures nothing.")
    if args.device == "cpu" and not args.tiny:
        parser.error("these sizes are for a GPU. Add --tiny.")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    bench = Bench(torch.device(args.device), args.tiny, time.monotonic() + 60 * (args.minutes - 1))
    print(described(bench), flush=True)
    out = args.out or (None if args.tiny else RESULTS)
    results, failed = run_parts(bench, args.part or list(PARTS), out, "-".join(args.part or ["all"]))
    for goal in [] if args.tiny else judged(results):
        print(goal, flush=True)
    return 1 if failed or bench.wrong else 0


def run_parts(bench: Bench, names: Sequence[str], out: Path | None, name: str) -> tuple[dict[str, list[Row]], bool]:
    """The rows of each part, written to `out` as they come. A part that breaks is told with its traceback, and the
    others run."""
    results: dict[str, list[Row]] = {}
    seconds: dict[str, float] = {}
    failed, start = False, time.monotonic()

    def add(part: str, row: Row) -> None:
        results[part].append(row)
        if out is not None:
            write(bench, out, results, seconds, name)

    shares = [PARTS[part].share for part in names]
    for index, part in enumerate(names):
        began = time.monotonic()
        bench.part_deadline = start + (bench.deadline - start) * sum(shares[: index + 1]) / sum(shares)
        results[part] = []
        print(f"## {part}", flush=True)
        try:
            for row in PARTS[part].run(bench):
                print(row, flush=True)
                add(part, row)
        except Exception:
            failed = True
            broken = {"what": part, "result": "BROKEN", "traceback": traceback.format_exc()}
            print(broken["traceback"], file=sys.stderr, flush=True)
            add(part, broken)
        seconds[part] = time.monotonic() - began
    if out is not None:
        print(f"wrote {write(bench, out, results, seconds, name)}", flush=True)
    return results, failed


if __name__ == "__main__":
    sys.exit(main())
