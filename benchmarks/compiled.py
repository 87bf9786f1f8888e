"""Compiled blocks: CPU seconds a token of a forward and backward pass, beside the same blocks as they are written.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py --data ../shared/data --out docs/results/compiled.md

The jobs are those of `sft_throughput.py`, packed into rows of different lengths. The two sides run in turns. What the
compiler costs is measured apart: the first row with an empty cache, less what a later one costs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import NamedTuple

import common
import torch
from sft_throughput import Job, gsm8k_job, miniature_job, quiet
from torch._dynamo.utils import counters

from w2sr.flops import num_parameters
from w2sr.kernels import Kernels, use_kernels
from w2sr.packing import pack_row
from w2sr.policy import Policy, load_policy
from w2sr.types import PackedBatch

ROWS = 3
SHARES = (1.0, 0.8, 0.9)
"""Of a row's tokens: rows have different lengths."""


class Measured(NamedTuple):
    """CPU seconds of 1,000 tokens on either side, those of the compiler, graphs after the first row and the last."""

    job: Job
    parameters: int
    eager_s: float
    compiled_s: float
    compiler_s: float
    graphs: tuple[int, int]


def rows_of(job: Job) -> list[PackedBatch]:
    """Rows of whole traces, in their order."""
    waiting, rows = iter(cycle(job.segments)), []
    for share in SHARES[:ROWS]:
        row = [next(waiting)]
        while sum(map(len, row)) + len(segment := next(waiting)) <= share * job.max_tokens:
            row.append(segment)
        rows.append(pack_row(row))
    return rows


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process and of the compilers that it started and that have ended."""
    began = sum(os.times()[:4])
    work()
    return sum(os.times()[:4]) - began


def step(policy: Policy, row: PackedBatch) -> None:
    policy.zero_grad()
    policy(row, reduction="sum").backward()


def measured(job: Job, rounds: int) -> Measured:
    """Both sides on the same rows, in turns."""
    rows = rows_of(job)
    eager, compiled = load_policy(job.folder), load_policy(job.folder)
    use_kernels(compiled, Kernels(compile=True))
    step(eager, rows[0])
    counters.clear()
    first = cpu_s(lambda: step(compiled, rows[0]))
    num_first = counters["stats"]["unique_graphs"]
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(rounds):
        for row in rows:
            for name, policy in (("eager", eager), ("compiled", compiled)):
                began = time.process_time()
                step(policy, row)
                times[name].append((time.process_time() - began) / len(row.labels))
    eager_s, compiled_s = (1000 * median(times[name]) for name in ("eager", "compiled"))
    compiler_s = first - compiled_s * len(rows[0].labels) / 1000
    graphs = (num_first, counters["stats"]["unique_graphs"])
    return Measured(job, num_parameters(eager.lm), eager_s, compiled_s, compiler_s, graphs)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="passes of each side over the rows, in turns")
    args = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "cache")
        jobs = (miniature_job(128), gsm8k_job(args.data, Path(folder), 32))
        found = [measured(job, args.rounds) for job in jobs]
    common.write(args.out, page(found, args.rounds))


def page(found: list[Measured], rounds: int) -> str:
    note = f"{torch.get_num_threads()} thread, float32, {rounds} rounds over {ROWS} rows, the two sides in turns (the median counts); other processes\nshared the machine."
    lines = [
        [
            one.job.name,
            f"{one.parameters / 1e6:.1f}M",
            f"{one.job.max_tokens:,}",
            f"{one.eager_s:.3f}",
            f"{one.compiled_s:.3f}",
            f"{one.compiled_s / one.eager_s:.2f}",
            f"{one.compiler_s:.0f}",
            f"{one.graphs[0]}, {one.graphs[1]}",
        ]
        for one in found
    ]
    header = ["job", "parameters", "tokens of a row, at most", "eager: CPU s / 1,000 tokens", "compiled", "ratio"]
    header += ["compiler, CPU s, once", "graphs: first row, last"]
    return f"""{common.head("Compiled blocks on a CPU", ("torch", "transformers"), note)}
{common.table(header, lines)}
- A forward and a backward pass of `Policy` with the loss of SFT, without the optimizer's step: eager blocks beside
  `model.kernels.compile=true`. Nothing is computed again.
- *Compiler*: CPU seconds of the first row, with an empty cache, beyond those of a later one; g++'s are among them.
- Attention and the projection to the vocabulary are the same code on both sides.

Not run: GPUs, more than one thread, bfloat16.
"""


if __name__ == "__main__":
    main()
