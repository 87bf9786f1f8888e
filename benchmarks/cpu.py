"""Every CPU benchmark of the project in one table, each beside a peer or a limit, against what was recorded before.

    OMP_NUM_THREADS=1 python benchmarks/cpu.py --data ../shared/data --out docs/results/cpu.md

Ours and the peer run in turns in one command. A row's ratio is our CPU seconds over the peer's or the limit's: smaller
is better. Ratios are held against `cpu_baseline.json`; the exit status is 1 where one is slower than its tolerance
allows. `--record` writes the baseline anew, with `--only` for some benchmarks alone.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
from cpu_baseline import (
    BASELINE,
    LEAST_TOLERANCE,
    NEW,
    SLOWER,
    Recorded,
    read_baseline,
    record,
    verdict,
    write_baseline,
)

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "lightning", "math-verify", "trl")
OURS = "w2sr"

RECORDED = "recorded"


class Benchmark(NamedTuple):
    """What runs in turns, and which two of them a row compares.

    Args:
        sides: name → a run that returns its CPU seconds, or those of a token; None for a peer that is not installed.
        rows: name of the row → our side and the other.
        of_a_token: whether costs are those of a token, because the two sides sample texts of other lengths.
    """

    sides: dict[str, Callable[[], float] | None]
    rows: dict[str, tuple[str, str]]
    of_a_token: bool = False


class Row(NamedTuple):
    """A row's two sides and what each round gave them; no rounds for a row that was skipped."""

    name: str
    ours: str
    other: str
    ours_s: tuple[float, ...] = ()
    other_s: tuple[float, ...] = ()
    of_a_token: bool = False

    @property
    def ratios(self) -> list[float]:
        """Round by round, because what slows both sides for a while then leaves the ratio alone."""
        return [ours / other for ours, other in zip(self.ours_s, self.other_s, strict=True)]


def installed(package: str) -> bool:
    """Whether a distribution of that name is there."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def sft(data: Path, folder: Path) -> Benchmark:
    """Training beside TRL's best setting of `sft_throughput.py`, and beside the rate of a matrix product."""
    import sft_throughput as bench

    bench.quiet()
    jobs = (
        (bench.miniature_job(128), bench.Setting("length-grouped, batch 16", 16, grouped=True)),
        (bench.gsm8k_job(data, folder / "student", 8), bench.Setting("packed (bfd), rows of 512", 1, row_tokens=512)),
    )
    sides: dict[str, Callable[[], float] | None] = {}
    rows: dict[str, tuple[str, str]] = {}
    for job, setting in jobs:
        ours, peer, peak = f"{OURS}, {job.name}", f"TRL, {setting.name}", f"matrix product, {job.name}"
        small = job._replace(segments=job.segments[:2])
        bench.run_ours(small)
        if installed("trl"):
            bench.run_peer(small, bench.Setting("warm-up", 1))
        sides[ours] = partial(_cpu_seconds, bench.run_ours, job)
        sides[peer] = partial(_cpu_seconds, bench.run_peer, job, setting) if installed("trl") else None
        sides[peak] = partial(_at_matmul_rate, job)
        rows |= {f"SFT, {job.name}": (ours, peer), f"SFT, {job.name}, limit": (ours, peak)}
    return Benchmark(sides, rows)


def _cpu_seconds(run: Callable[..., Any], *given: Any) -> float:
    return float(run(*given).cpu_s)


def _at_matmul_rate(job: Any) -> float:
    """CPU seconds that the model's operations would take at the rate of a 1024³ product, measured now."""
    import torch
    from transformers import AutoModelForCausalLM

    from w2sr.flops import matmul_peak, training_flops

    lm = AutoModelForCausalLM.from_pretrained(job.folder)
    flops = training_flops(lm, map(len, job.segments), job.loss_tokens)
    return flops / matmul_peak(torch.device("cpu"), torch.float32, clock=time.process_time)


def packing(data: Path, folder: Path) -> Benchmark:
    """Planning a hundred thousand traces beside TRL's bfd, both as training does it."""
    import packing as bench

    bench.disable_progress_bars()
    lengths = bench.real_lengths(data, 100_000)
    name, ours, peer = "packing, 100,000 traces", f"{OURS}, steps of 128 traces, window 8", "TRL bfd, batches of 1,000"
    lists = bench.empty_lists(lengths)
    sides: dict[str, Callable[[], float] | None] = {
        ours: lambda: bench.timed(ours, lambda: bench.plan(lengths, bench.STEP_SEQUENCES, 8), 3).cpu_s,
        peer: lambda: bench.timed(peer, lambda: bench.trl_rows(lists, "bfd", 1000), 1).cpu_s,
    }
    bench.plan(lengths, bench.STEP_SEQUENCES, 8)
    if installed("trl"):
        bench.trl_rows(bench.empty_lists(lengths[:2000]), "bfd", 1000)
    else:
        sides[peer] = None
    return Benchmark(sides, {name: (ours, peer)})


def verify(data: Path, folder: Path) -> Benchmark:
    """Verdicts on the answers of eight models to GSM8K, processes running, beside math-verify's fastest setting."""
    import verify as bench

    peer = "answer, no limit"
    other = f"math-verify, `{peer}`"
    return Benchmark(
        {
            OURS: lambda: bench.run(data, "GSM8K", bench.OURS, 1, True)["cpu_s"],
            other: lambda: bench.run(data, "GSM8K", peer, 1, True)["cpu_s"],
        },
        {"verify, GSM8K": (OURS, other)},
    )


def rollouts(data: Path, folder: Path) -> Benchmark:
    """CPU seconds of a completion token beside `model.generate`, each in its best setting of `generation.py`."""
    import generation as bench

    sides: dict[str, Callable[[], float] | None] = {}
    rows = {}
    for job, slots, batch_size in zip(bench.jobs(512), (256, 128), (64, 16), strict=True):
        ours, other = f"{OURS}, {job.name}", f"generate, batch {batch_size}"
        small = job._replace(prompts=job.prompts[:32])
        bench.ours(small, slots)()
        bench.peer(small, batch_size)()
        sides[ours] = partial(_a_token, bench.ours(job, slots))
        sides[other] = partial(_a_token, bench.peer(job, batch_size))
        rows[f"rollouts, {job.name}"] = (ours, other)
    return Benchmark(sides, rows, of_a_token=True)


def _a_token(run: Callable[[], Any]) -> float:
    done = run()
    return done.cpu_s / done.num_tokens


def grpo(data: Path, folder: Path) -> Benchmark:
    """One optimizer step of GRPO, CPU seconds of a completion token, beside TRL's GRPOTrainer.

    The policy is the miniature's teacher, which reasons as it stands.
    """
    import grpo_step as bench
    from sft_throughput import MINIATURE

    bench.quiet()
    teacher = MINIATURE / "teacher"
    job, small = (bench.miniature_job(teacher, number) for number in (16, 2))
    setting = bench.Setting(32)
    other = f"TRL, {setting.name}"
    bench.run_ours(small, 16)
    if installed("trl"):
        bench.run_peer(small, bench.Setting(8))
    sides: dict[str, Callable[[], float] | None] = {
        OURS: lambda: 1 / bench.run_ours(job, 128).rate,
        other: (lambda: 1 / bench.run_peer(job, setting).rate) if installed("trl") else None,
    }
    return Benchmark(sides, {"GRPO step, miniature": (OURS, other)}, of_a_token=True)


def start(data: Path, folder: Path) -> Benchmark:
    """A process of its own from its begin to its end: our command line beside the import of the library's alone."""
    library, program = "import lightning.pytorch.cli", str(REPOSITORY / "lightning_cli.py")
    words = {"--help": ["--help"], "report --help": ["report", "--help"]}
    child_cpu_s(["-c", library])
    ours: dict[str, Callable[[], float] | None] = {
        f"{OURS}, {name}": partial(child_cpu_s, [program, *arguments]) for name, arguments in words.items()
    }
    rows = {f"start, {name}": (f"{OURS}, {name}", library) for name in words}
    return Benchmark({**ours, library: partial(child_cpu_s, ["-c", library])}, rows)


def child_cpu_s(arguments: Sequence[str]) -> float:
    """CPU seconds of this Python with these arguments, its own children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


BENCHMARKS: dict[str, Callable[[Path, Path], Benchmark]] = {
    "sft": sft,
    "packing": packing,
    "verify": verify,
    "rollouts": rollouts,
    "grpo": grpo,
    "start": start,
}


def measured(benchmark: Benchmark, rounds: int) -> list[Row]:
    """Runs the sides in turns, so many rounds."""
    costs: dict[str, list[float]] = {name: [] for name in benchmark.sides}
    for _ in range(rounds):
        for name, run in benchmark.sides.items():
            if run is not None:
                costs[name].append(run())
                print(f"{name}: {costs[name][-1]:.3g} CPU s", flush=True)
    return [
        Row(name, ours, other, tuple(costs[ours]), tuple(costs[other]), benchmark.of_a_token)
        if costs[ours] and costs[other]
        else Row(name, ours, other)
        for name, (ours, other) in benchmark.rows.items()
    ]


HEADER = [
    "what",
    "ours",
    "the peer or limit",
    "our CPU",
    "its CPU",
    "ratio",
    "rounds",
    "baseline",
    "tolerance",
    "verdict",
]


def line(row: Row, before: Recorded | None, said: str) -> list[str]:
    """A row of the table."""
    if not row.ratios:
        return [row.name, row.ours, row.other, *[""] * 6, "skipped: a side is not installed"]
    scale, unit = (1e6, "µs a token") if row.of_a_token else (1.0, "s")
    cpu = [f"{scale * median(costs):.3g} {unit}" for costs in (row.ours_s, row.other_s)]
    spread = f"{min(row.ratios):.3f} to {max(row.ratios):.3f}"
    recorded = [f"{before.ratio:.3f}", f"{100 * before.tolerance:.0f} %"] if before else ["", ""]
    return [row.name, row.ours, row.other, *cpu, f"{median(row.ratios):.3f}", spread, *recorded, said]


def versions() -> dict[str, str]:
    """Of Python and of the packages whose speed is in the ratios."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES if installed(name)}}


def other_versions(rows: Sequence[Row], baseline: Mapping[str, Recorded], now: Mapping[str, str]) -> str:
    """What the baseline of these rows was recorded with and is not here now, as a sentence; "" for nothing."""
    then = {
        f"{name} {was} (now {now.get(name, 'absent')})"
        for row in rows
        if row.name in baseline
        for name, was in baseline[row.name].versions.items()
        if now.get(name) != was
    }
    return f"Recorded with other versions: {', '.join(sorted(then))}." if then else ""


def load_a_core() -> float:
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=5, help="runs of every side, in turns; the median counts")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--record", action="store_true", help=f"write what is measured to {BASELINE.name}")
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1: CPU seconds of more threads count their waiting for one another")
    rounds = 1 if args.quick else args.rounds
    if args.record and rounds < 3:
        parser.error(f"--record takes its tolerance from the spread of at least 3 rounds; this would be {rounds}")
    baseline, rows = read_baseline(BASELINE), []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            rows += measured(BENCHMARKS[name](args.data, Path(folder)), rounds)
    verdicts = {row.name: verdict(median(row.ratios), baseline.get(row.name)) for row in rows if row.ratios}
    if args.record:
        now = {row.name: record(row.ratios, load_a_core(), versions()) for row in rows if row.ratios}
        baseline = read_baseline(BASELINE) | now  # another command may have recorded other rows meanwhile
        write_baseline(BASELINE, baseline)
        verdicts = dict.fromkeys(verdicts, RECORDED)
    common.write(args.out, page(rows, baseline, verdicts, rounds))
    sys.exit(1 if SLOWER in verdicts.values() else 0)


def page(rows: Sequence[Row], baseline: Mapping[str, Recorded], verdicts: Mapping[str, str], rounds: int) -> str:
    lines = [line(row, baseline.get(row.name), verdicts.get(row.name, "")) for row in rows]
    slower = [name for name, said in verdicts.items() if said == SLOWER]
    new = [name for name, said in verdicts.items() if said == NEW]
    summary = f"Slower than before: {', '.join(slower)}." if slower else "Nothing is slower than before."
    if new:
        summary += f" Without a baseline: {', '.join(new)}."
    if RECORDED in verdicts.values():
        summary = "This run recorded the baseline."
    load = load_a_core()
    quiet = "; other processes shared the machine" if load > 1 else ""
    note = f"One thread on every side, {rounds} round{'s' * (rounds > 1)}; load average {load:.1f} a core at the end{quiet}."
    summary = f"**{summary}** {other_versions(rows, baseline, versions())}".strip()
    return f"""{common.head("CPU benchmarks", [name for name in PACKAGES if installed(name)], note)}
{summary}

{common.table(HEADER, lines)}
- The *ratio* is our CPU seconds over the peer's or the limit's, the median of the rounds: smaller is better, and below 1
  we are faster. Both sides run in turns in one command. CPU seconds are little changed by other processes.
- The *baseline* is `benchmarks/{BASELINE.name}`. Its *tolerance* is the spread of the single rounds when it was recorded,
  and at least {100 * LEAST_TOLERANCE:.0f} %. *Slower* is a ratio above the baseline by more than that.
- *SFT*, *packing*, *verify*, *rollouts* and *GRPO step* run the functions of `sft_throughput.py`, `packing.py`, `verify.py`,
  `generation.py` and `grpo_step.py` on smaller jobs, each side in one setting: the best on the page of that script, where it
  has one. So these ratios watch us; the claims beside the peers are on those pages.
- *Limit* of SFT: the model's operations at the rate of a 1024³ matrix product. *Start*: a whole process beside one that only
  imports `lightning.pytorch.cli`.
"""


if __name__ == "__main__":
    main()
