"""How much of the gap between a floor and a ceiling an arm recovers, with a paired-bootstrap interval.

Formula: (achieved − floor) / (ceiling − floor), each the mean Pass@1 over the same problems. RGR (arXiv 2505.20072) has
the plain student as floor and the reinforcement-learned student as ceiling; PGR (Burns et al. 2023, arXiv 2312.09390)
has the weak teacher as floor. What is left out: the spread over training seeds, which is a matter of several runs.

Shape suffixes: N problems, A = 3 arms (floor, achieved, ceiling), B bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from w2sr.metrics.bootstrap import percentile_interval, weights_of
from w2sr.results import RunResult, read_result

GapKind = Literal["RGR", "PGR"]
FLOOR_OF: dict[GapKind, str] = {"RGR": "plain student", "PGR": "weak teacher"}
"""Whose Pass@1 is the floor of each measure."""

MAX_NONPOSITIVE_FRAC = 0.05
"""Above this share of replicates whose ceiling is not above the floor, the ratio has no trustworthy interval."""


class GapRecovered(NamedTuple):
    """The recovered fraction of a gap, its 95 % interval, and what it was computed from.

    `floor`, `achieved` and `ceiling` are mean Pass@1. `nonpositive_frac` is the share of bootstrap replicates whose
    ceiling is not above the floor. Where `value` is NaN, `reason` says why; else it is "".
    """

    kind: GapKind
    value: float
    low: float
    high: float
    num_problems: int
    floor: float
    achieved: float
    ceiling: float
    nonpositive_frac: float
    reason: str


class ReasoningGapRecovered(Metric):
    """The fraction of the gap between floor and ceiling that was recovered: 0 at the floor, 1 at the ceiling.

    Below 0 and above 1 are possible. NaN with a reason where the ceiling is not above the floor, or where it is not in
    more than 5 % of the bootstrap replicates. All three arms share each replicate's draw of problems: paired. States
    are summed, so that any order and any number of processes agree (to float64 rounding).

    Args:
        kind: "RGR", whose floor is the plain student, or "PGR", whose floor is the weak teacher: a label only.
        num_bootstrap: replicates B.
        seed: of the bootstrap.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    num_problems: Tensor
    totals_A: Tensor
    totals_AB: Tensor

    def __init__(self, kind: GapKind = "RGR", *, num_bootstrap: int = 1000, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kind not in FLOOR_OF:
            raise ValueError(f"A gap of kind {kind!r} is unknown. Ask for one of {list(FLOOR_OF)}.")
        self.kind, self.num_bootstrap, self.seed = kind, num_bootstrap, seed
        self.add_state("num_problems", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("totals_A", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("totals_AB", torch.zeros(3, num_bootstrap, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        """Follows the module to another device, never to another dtype: bf16 would ruin the sums."""
        return super()._apply(lambda state: state.to(fn(state.new_empty(0)).device), exclude_state)

    def update(
        self,
        problem_ids: Sequence[str],
        *,
        floor: Tensor,
        achieved: Tensor,
        ceiling: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        """Adds N problems, each once: the share of right samples of every arm.

        Args:
            problem_ids: N ids; they seed the bootstrap.
            floor: [N] pass rates of the floor arm, in [0, 1].
            achieved: [N] pass rates of the arm that is measured.
            ceiling: [N] pass rates of the ceiling arm.
            weight: [N] 1 for a problem, 0 for padding that keeps ranks in step; all 1 if not given.
        """
        device = self.totals_A.device
        rates_NA = torch.stack([arm.to(device, torch.float64) for arm in (floor, achieved, ceiling)], dim=-1)
        assert rates_NA.shape == (len(problem_ids), 3), f"{len(problem_ids)} problems, rates {tuple(rates_NA.shape)}"
        weight_N = torch.ones(len(problem_ids)) if weight is None else weight
        weight_N = weight_N.to(device, torch.float64)
        assert bool(((weight_N == 0) | (weight_N == 1)).all()), f"weights must be 0 or 1, got {weight_N.tolist()}"
        # Not a product with the weight: padding may hold NaN.
        rates_NA = torch.where(weight_N[:, None] == 1, rates_NA, 0.0)
        assert bool(((rates_NA >= 0) & (rates_NA <= 1)).all()), "pass rates lie in [0, 1]"
        draws_NB = torch.from_numpy(weights_of(problem_ids, self.num_bootstrap, self.seed)).to(device, torch.float64)
        self.num_problems = self.num_problems + weight_N.sum().to(torch.int64)
        self.totals_A = self.totals_A + rates_NA.sum(0)
        self.totals_AB = self.totals_AB + rates_NA.T @ draws_NB

    def compute(self) -> GapRecovered:
        """The fraction, its interval, and the share of unusable replicates; see `GapRecovered`."""
        num_problems = int(self.num_problems)
        if num_problems == 0:
            return GapRecovered(self.kind, nan, nan, nan, 0, nan, nan, nan, nan, "no problem was given")
        floor, achieved, ceiling = (self.totals_A / num_problems).tolist()
        floor_B, achieved_B, ceiling_B = self.totals_AB.cpu().numpy()
        gap_B = ceiling_B - floor_B
        usable_B = gap_B > 0
        nonpositive_frac = float(1 - usable_B.mean())
        reason = self._reason(floor, ceiling, nonpositive_frac)
        value, low, high = nan, nan, nan
        if not reason:
            value = (achieved - floor) / (ceiling - floor)
            ratios_B = np.divide(achieved_B - floor_B, gap_B, out=np.full_like(gap_B, nan), where=usable_B)
            low, high = percentile_interval(ratios_B)
        arms = (floor, achieved, ceiling)
        return GapRecovered(self.kind, value, low, high, num_problems, *arms, nonpositive_frac, reason)

    def _reason(self, floor: float, ceiling: float, nonpositive_frac: float) -> str:
        if not ceiling > floor:
            return f"the ceiling {ceiling:.3f} is not above the floor {floor:.3f} ({FLOOR_OF[self.kind]})"
        if nonpositive_frac > MAX_NONPOSITIVE_FRAC:
            return (
                f"the gap of {ceiling - floor:.3f} is ≤ 0 in {nonpositive_frac:.1%} of the replicates "
                f"(at most {MAX_NONPOSITIVE_FRAC:.0%}): too few problems or too small a gap"
            )
        return ""


def rgr_from_results(
    *,
    floor: RunResult | str | Path,
    achieved: RunResult | str | Path,
    ceiling: RunResult | str | Path,
    kind: GapKind = "RGR",
    source: str | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> GapRecovered:
    """The recovered fraction of a gap from three evaluated arms, paired by problem id.

    Args:
        floor: a result, or the path of a `result.json`: the plain student for RGR, the weak teacher for PGR.
        achieved: the arm that is measured.
        ceiling: the reinforcement-learned student.
        kind: the label, which says what the floor is.
        source: one benchmark only; None pools every problem.
        num_bootstrap: replicates.
        seed: of the bootstrap.

    Raises:
        ValueError: if the arms were not evaluated on the same problems, or none is of `source`.
    """
    arms = {"floor": floor, "achieved": achieved, "ceiling": ceiling}
    results = {arm: given if isinstance(given, RunResult) else read_result(given) for arm, given in arms.items()}
    rates = {arm: _pass_rates(result, source) for arm, result in results.items()}
    problem_ids = list(rates["floor"])
    for arm in ("achieved", "ceiling"):
        if rates[arm].keys() != rates["floor"].keys():
            raise ValueError(_mismatch(arm, results, rates))
    metric = ReasoningGapRecovered(kind, num_bootstrap=num_bootstrap, seed=seed, sync_on_compute=False)
    columns = {
        arm: torch.tensor([of_arm[i] for i in problem_ids], dtype=torch.float64) for arm, of_arm in rates.items()
    }
    metric.update(problem_ids, **columns)
    recovered: GapRecovered = metric.compute()
    return recovered


def _pass_rates(result: RunResult, source: str | None) -> dict[str, float]:
    rates = {i: count.pass_rate for i, count in result.per_problem.items() if source in (None, count.source)}
    if not rates:
        wanted = "problem at all" if source is None else f"problem of source {source!r}, only of {list(result.sources)}"
        raise ValueError(f"Result {result.name!r} has no {wanted}. Evaluate that arm on it first.")
    return rates


def _mismatch(arm: str, results: dict[str, RunResult], rates: dict[str, dict[str, float]]) -> str:
    only_floor, only_arm = rates["floor"].keys() - rates[arm].keys(), rates[arm].keys() - rates["floor"].keys()
    return (
        f"The floor {results['floor'].name!r} was evaluated on {len(rates['floor']):,} problems, the {arm} "
        f"{results[arm].name!r} on {len(rates[arm]):,}: {len(only_floor):,} only in the floor "
        f"(such as {sorted(only_floor)[:3]}), {len(only_arm):,} only in the {arm} (such as {sorted(only_arm)[:3]}). "
        f"A gap is paired problem by problem: evaluate both arms on the same problems."
    )
