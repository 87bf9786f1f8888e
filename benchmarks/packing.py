"""Packing: how full the rows are and how long planning takes, beside TRL's packing and plain concatenation.

    python benchmarks/packing.py --data ../shared/data --out docs/results/packing.md

Lengths are those of real traces (Qwen tokens) and of a long-tailed lognormal; 10,000 and 1,000,000 traces. The peer is
given lists without content, so that it has no token to move: what is timed is the planning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import pyarrow as pa
from datasets import Dataset, disable_progress_bars

from w2sr.packing import plan_epoch

MAX_TOKENS = 8192
STEP_SEQUENCES = 128
WINDOWS = (1, 8)
SIZES = (10_000, 1_000_000)
REPEATS = 3
LIMIT_S = 3.0
"""What planning a million traces may take."""


class Packing(NamedTuple):
    """What one way of packing gave. `seconds` and `cpu_s` are those of the run with the shortest wall time."""

    name: str
    num_rows: int
    seconds: float
    cpu_s: float
    num_cut: int = 0


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of each; the fastest counts")
    args = parser.parse_args()
    disable_progress_bars()
    import trl  # noqa: F401  (its import belongs to no run)

    lines: list[list[str]] = []
    ours_s: list[float] = []
    for name, lengths in samples(args.data):
        for packing in measured(lengths, args.repeats):
            lines.append(line(name, lengths, packing))
            print(" | ".join(lines[-1]), flush=True)
            if packing.name.startswith("w2sr") and len(lengths) == max(SIZES):
                ours_s.append(packing.seconds)
    common.write(args.out, page(lines, max(ours_s), args.repeats))


def samples(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Named lengths in tokens: drawn from the real traces with replacement, and long-tailed ones."""
    for size in SIZES:
        yield f"real, {size:,}", real_lengths(data, size)
    for size in SIZES:
        drawn = np.random.default_rng(18).lognormal(mean=6.5, sigma=1.0, size=size)
        yield f"lognormal, {size:,}", np.clip(drawn.astype(np.int64), 16, MAX_TOKENS)


def real_lengths(data: Path, size: int) -> np.ndarray:
    """So many, drawn from the real traces with replacement."""
    files = sorted((data / "traces").glob("*.jsonl.gz"))
    found = [row["n_tokens_qwen"] for file in files for row in common.rows(file) if "n_tokens_qwen" in row]
    return np.random.default_rng(17).choice(np.array(found, dtype=np.int64), size)


def plan(lengths: np.ndarray, step_sequences: int, window: int) -> int:
    """Number of rows that our plan makes of these lengths."""
    made = plan_epoch(lengths, seed=0, epoch=0, max_tokens=MAX_TOKENS, step_sequences=step_sequences, window=window)
    return sum(len(made.step_rows(step)) for step in range(made.num_steps))


def empty_lists(lengths: np.ndarray) -> Dataset:
    """A data set for the peer with lists of these lengths that hold no data."""
    offsets = np.append(0, np.cumsum(lengths))
    return Dataset(pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, pa.nulls(int(offsets[-1])))}))


def trl_rows(dataset: Dataset, strategy: str, batch_size: int | None) -> int:
    """Number of rows that TRL makes of them."""
    from trl import pack_dataset  # here, because our side is measured without it too

    settings = {"batch_size": batch_size, "keep_in_memory": True, "load_from_cache_file": False}
    return len(pack_dataset(dataset, MAX_TOKENS, strategy, settings))


def measured(lengths: np.ndarray, repeats: int) -> list[Packing]:
    """Every way of packing these lengths: ours, the peer's and plain concatenation."""
    found = [timed("w2sr, all at once", lambda: plan(lengths, len(lengths), 1), repeats)]
    for window in WINDOWS:
        name = f"w2sr, steps of {STEP_SEQUENCES} traces, window {window}"
        found.append(timed(name, partial(plan, lengths, STEP_SEQUENCES, window), repeats))
    lists = empty_lists(lengths)
    found.append(timed("TRL bfd, all at once", lambda: trl_rows(lists, "bfd", None), 1))
    found.append(timed("TRL bfd, batches of 1,000 (as SFTTrainer does)", lambda: trl_rows(lists, "bfd", 1000), 1))
    wrapped = "TRL wrapped, all at once (plain concatenation)"
    offsets = np.append(0, np.cumsum(lengths))
    num_cut = int(((offsets[:-1] // MAX_TOKENS) != ((offsets[1:] - 1) // MAX_TOKENS)).sum())
    return [*found, timed(wrapped, lambda: trl_rows(lists, "wrapped", None), repeats)._replace(num_cut=num_cut)]


def timed(name: str, pack: Callable[[], int], repeats: int) -> Packing:
    times = []
    for _ in range(repeats):
        began, cpu_began = time.perf_counter(), time.process_time()
        num_rows = pack()
        times.append((time.perf_counter() - began, time.process_time() - cpu_began))
    return Packing(name, num_rows, *min(times))


def line(sample: str, lengths: np.ndarray, packing: Packing) -> list[str]:
    tokens = int(lengths.sum())
    bound = -(-tokens // MAX_TOKENS)
    excess = packing.num_rows / bound - 1
    fill = tokens / (packing.num_rows * MAX_TOKENS)
    counts = [f"{bound:,}", f"{packing.num_rows:,}", f"{100 * excess:.2f} %", f"{fill:.4f}"]
    return [sample, packing.name, *counts, f"{packing.num_cut:,}", f"{packing.seconds:.3f}", f"{packing.cpu_s:.3f}"]


def page(lines: list[list[str]], slowest_s: float, repeats: int) -> str:
    verdict = "kept" if slowest_s < LIMIT_S else "MISSED"
    note = f"""Wall times, the shortest of {repeats} runs in one process (one run for TRL bfd), with the CPU seconds of that
run, which tell how much other processes were in the way. Rows hold T = {MAX_TOKENS:,} tokens. No row is computed with
here: this is planning only."""
    header = [
        "lengths",
        "packing",
        "ceil(tokens / T)",
        "rows",
        "over the bound",
        "fill",
        "traces cut",
        "planning s",
        "CPU s",
    ]
    return f"""{common.head("Packing: fill and planning time", ("trl", "datasets", "pyarrow", "numpy"), note)}
**Limit: one million traces planned in under {LIMIT_S:g} s: {verdict}.** The slowest of our plans of a million took
{slowest_s:.2f} s.

- *real*: token counts of the completions in four files of real traces, drawn with replacement; *lognormal*: exp(N(6.5, 1))
  tokens, between 16 and {MAX_TOKENS:,}. No trace is longer than a row.
- *w2sr, all at once* is best fit decreasing over everything. *Steps of {STEP_SEQUENCES} traces* is what training does: every
  optimizer step holds the traces that the shuffle gave it, so a step's last row is seldom full; a window of 8 steps is
  packed together and dealt to its steps again. Shuffle and cutting are in the time.
- *TRL bfd* is `trl.pack_dataset` on an in-memory table whose lists hold no data (there are no tokens to move, which
  favours it), once over everything and once in the batches that its trainer uses. *TRL wrapped* cuts the concatenation every
  T tokens: the rows are full, but *traces cut* are split over two rows and lose their context.

{common.table(header, lines)}
Not measured: rows other than {MAX_TOKENS:,}; TRL's `bfd_split`, which is `bfd` here, since no trace is longer than a row.
"""


if __name__ == "__main__":
    main()
