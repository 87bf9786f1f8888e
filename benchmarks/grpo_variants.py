"""Learning curves of five policy losses on the miniature: three seeds each, the learning rate chosen on validation problems.

Every arm is `configs/grpo.yaml` with a few keys changed. Each variant of `--choose` first runs with every learning rate
and seed 0; the rate with the best end (mean validation Pass@1 of the last three validations) runs with the other seeds.
Variants that are not among them take the rate whose mean over those is best. Runs that are there already are not run
again, so a study that was stopped goes on with the same command.

    OMP_NUM_THREADS=1 python benchmarks/grpo_variants.py --runs runs/study/grpo --w2sr runs/w2sr_p --out docs/results/grpo_variants.md
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import yaml

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"objective": {"loss": "grpo"}},
    "dapo": {"objective": {"loss": "dapo"}, "dynamic_sampling": {"max_batches": 4}},
    "dr_grpo": {"objective": {"loss": "dr_grpo"}, "advantage": {"scale": "none"}},
    "gspo": {"objective": {"loss": "gspo"}},
    "cispo": {"objective": {"loss": "cispo"}},
}
COMMON = {"minibatches": 2, "warmup_frac": 0.05, "min_lr_frac": 0.1}
"""Two optimizer steps a round: with one, every ratio is 1 and nothing is ever clipped."""
STEP_PROBLEMS = 16
NOTES = {
    "dapo": "with dynamic sampling, as published",
    "dr_grpo": "advantages without a standard deviation, as published",
}
NUM_LAST = 3
"""So many last validations are averaged."""


@dataclass(frozen=True)
class Arm:
    """One run of the study."""

    variant: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.rate:g}-{self.seed}"


@dataclass(frozen=True)
class Curve:
    """What a run's log says: after how many rounds and CPU seconds of training the validation Pass@1 was how high."""

    rounds: list[int]
    seconds: list[float]
    passes: list[float]
    lines: list[dict[str, Any]]

    @property
    def end(self) -> float:
        return statistics.mean(self.passes[-NUM_LAST:])

    def reached(self, level: float) -> float | None:
        """Seconds of training until a validation first reached `level`."""
        return next((s for s, p in zip(self.seconds, self.passes, strict=True) if p >= level), None)


def run(arm: Arm, folder: Path, rounds: int) -> Curve:
    """Runs the arm unless it was finished before."""
    place = folder / arm.name
    if not (place / "finished.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        overlay: dict[str, Any] = {
            "model": {"init_args": {**VARIANTS[arm.variant], **COMMON, "learning_rates": {"grpo": arm.rate}}},
            "data": {"init_args": {"seed": arm.seed, "step_problems": STEP_PROBLEMS}},
            "trainer": {
                "default_root_dir": str(place),
                "max_epochs": -1,
                "max_steps": COMMON["minibatches"] * rounds,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": [],
            },
        }
        overlay["model"]["init_args"]["rollouts"] = {"temperature": 1.0, "max_new_tokens": 160, "seed": arm.seed}
        file = folder / f"{arm.name}.yaml"
        file.write_text(yaml.safe_dump(overlay))
        with (folder / f"{arm.name}.log").open("w") as log:
            subprocess.run([sys.executable, __file__, "--fit", str(file)], stdout=log, stderr=log, check=True)
    return read(place)


def fit(file: Path) -> None:
    """`fit` with `configs/grpo.yaml` and the overlay, its phases timed in CPU seconds: other runs share the machine."""
    from w2sr.cli import main as command_line
    from w2sr.modules import grpo
    from w2sr.modules.phases import Phases

    grpo.Phases = partial(Phases, time.process_time)  # type: ignore[assignment, misc]
    command_line(["fit", "--config", "configs/grpo.yaml", "--config", str(file)])


def read(place: Path) -> Curve:
    """The curve of a run directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()]
    spent = [0.0]
    for line in lines:
        spent.append(spent[-1] + sum(value for name, value in line.items() if name.startswith("seconds/")))
    events = EventAccumulator(str(place), size_guidance={"scalars": 0})
    events.Reload()
    points = [(event.step + 1, event.value) for event in events.Scalars("val/pass@1")]
    return Curve([r for r, _ in points], [spent[min(r, len(lines))] for r, _ in points], [p for _, p in points], lines)


def study(
    folder: Path, rates: Sequence[float], choose: Sequence[str], seeds: Sequence[int], rounds: int, workers: int
) -> Iterator[tuple[str, dict[float, Curve], float, list[Curve]]]:
    """variant, its curves of the first seed by learning rate, the chosen rate, and its curves of all seeds."""
    with ThreadPoolExecutor(workers) as pool:
        first = {
            (variant, rate): pool.submit(run, Arm(variant, rate, seeds[0]), folder, rounds)
            for variant in choose
            for rate in rates
        }
        common_rate = max(rates, key=lambda rate: statistics.mean(first[v, rate].result().end for v in choose))
        chosen = dict.fromkeys(VARIANTS, common_rate) | {
            variant: max(rates, key=lambda rate: first[variant, rate].result().end) for variant in choose
        }
        arms = {
            (variant, seed): pool.submit(run, Arm(variant, chosen[variant], seed), folder, rounds)
            for seed in seeds
            for variant in VARIANTS
            if variant not in choose or seed != seeds[0]
        } | {(variant, seeds[0]): first[variant, chosen[variant]] for variant in choose}
        for variant in VARIANTS:
            by_rate = {rate: first[variant, rate].result() for rate in rates if variant in choose}
            yield variant, by_rate, chosen[variant], [arms[variant, seed].result() for seed in seeds]


def picture(curves: dict[str, list[Curve]], level: float, path: Path) -> None:
    """Validation Pass@1 over rounds, a thin line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    for index, (variant, of_seeds) in enumerate(curves.items()):
        for number, curve in enumerate(of_seeds):
            label = variant if number == 0 else None
            axes.plot(curve.rounds, [100 * p for p in curve.passes], color=f"C{index}", alpha=0.8, lw=1.2, label=label)
    axes.axhline(100 * level, color="black", ls="--", lw=1, label="W2SR-P student")
    axes.set_xlabel(f"rounds ({STEP_PROBLEMS} problems, 8 rollouts each)")
    axes.set_ylabel("validation Pass@1 in per cent")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def last_validation(run_folder: Path) -> float:
    """The last validation Pass@1 of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    events.Reload()
    return float(events.Scalars("val/pass@1")[-1].value)


def line(variant: str, rate: float, curves: Sequence[Curve], level: float) -> list[str]:
    """A variant's row of the table; `level`: the Pass@1 whose time is told."""
    reached = [curve.reached(level) for curve in curves]
    return [
        variant,
        f"{rate:g}",
        " ".join(f"{100 * curve.end:.1f}" for curve in curves),
        f"{100 * statistics.mean(curve.end for curve in curves):.1f}",
        f"{statistics.mean(curve.seconds[-1] for curve in curves):.0f}",
        f"{statistics.mean(sum(x['groups/sampled'] for x in curve.lines) for curve in curves):.0f}",
        " ".join(f"{seconds:.0f}" if seconds is not None else "never" for seconds in reached),
        f"{statistics.mean(curve.lines[-1]['rollouts/tokens_mean'] for curve in curves):.0f}",
    ]


HEADER = [
    "loss",
    "learning rate",
    "end by seed",
    "mean",
    "seconds",
    "groups sampled",
    "seconds until the W2SR-P student's Pass@1, by seed",
    "tokens a rollout at the end",
]


def page(args: argparse.Namespace, level: float, lines: list[list[str]], choice: list[list[str]], image: str) -> str:
    ends = (min(args.rates), max(args.rates))
    edges = [f"`{variant}`" for variant, *_, rate in choice if variant in args.choose and float(rate) in ends]
    edge = f" {', '.join(edges)}: the best rate is the grid's edge, so a rate beyond it may be better." if edges else ""
    others = " The other losses take the rate that is best on average." if len(args.choose) < len(VARIANTS) else ""
    notes = "\n".join(
        f"- `{variant}`: {note}; {shlex.quote(json.dumps(VARIANTS[variant]))}" for variant, note in NOTES.items()
    )
    return f"""{common.head("Five policy losses on the miniature", ["torch", "transformers", "lightning"], "")}
`configs/grpo.yaml` with another loss, {args.rounds} rounds of {STEP_PROBLEMS} problems with 8 rollouts each, two optimizer steps a round, {len(args.seeds)} seeds; {args.workers} runs at a time.
*End* is the mean validation Pass@1 (300 problems, greedy) of the last {NUM_LAST} validations, in per cent; where a curve still rises
it is no plateau. Seconds are CPU seconds of training on one thread, without validation. The W2SR-P student's last
validation Pass@1 is {100 * level:.1f}.

![Validation Pass@1 over rounds](../images/{image})

{common.table(HEADER, lines)}
{notes}

The learning rate was chosen on validation problems, with seed {args.seeds[0]}: *end* by learning rate.{edge}{others}

{common.table(["loss", *(f"{rate:g}" for rate in args.rates), "chosen"], choice)}"""


def main() -> None:
    if sys.argv[1:2] == ["--fit"]:
        fit(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run directories")
    parser.add_argument("--w2sr", type=Path, required=True, help="run directory of the W2SR-P student")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write; a picture lies beside it")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.5e-4, 3e-4, 6e-4])
    parser.add_argument("--choose", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants with all rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    args = parser.parse_args()
    level = last_validation(args.w2sr)
    lines, choice, curves = [], [], {}
    for variant, by_rate, rate, of_seeds in study(
        args.runs, args.rates, args.choose, args.seeds, args.rounds, args.workers
    ):
        curves[variant] = of_seeds
        lines.append(line(variant, rate, of_seeds, level))
        tried = [f"{100 * by_rate[r].end:.1f}" if r in by_rate else "not run" for r in args.rates]
        choice.append([variant, *tried, f"{rate:g}"])
    image = args.out.with_suffix(".png").name
    picture(curves, level, args.out.parent.parent / "images" / image)
    written = page(args, level, lines, choice, image)
    args.out.write_text(written)
    print(written)


if __name__ == "__main__":
    main()
