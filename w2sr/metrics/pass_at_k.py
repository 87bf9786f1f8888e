"""Pass@k with its interval, per benchmark, per stratum and pooled.

Formula: 1 − C(n − c, k) / C(n, k), averaged over problems (Chen et al. 2021, arXiv 2107.03374, eq. 1). What is left
out: bias-corrected bootstrap intervals; with few problems percentile intervals are somewhat narrow.

Shape suffixes: N problems, C cells (pooled, sources, strata), K values of k, H = num_samples + 1 possible counts of
right samples, B bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, nan, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from w2sr.metrics.bootstrap import INTERVAL_LEVEL, percentile_interval, weights_of
from w2sr.results import Estimate

POOLED = "pooled"
AVERAGE = "average"


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """The chance that k of a problem's samples, drawn without replacement, hold at least one right one.

    >>> pass_at_k(1, 4, 2)  # 3 of the 6 pairs hold the right sample
    0.5
    """
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def wilson_interval(num_correct: int, num_trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): sensible near 0 and 1, where the normal interval is not.

    >>> [round(bound, 3) for bound in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    z = NormalDist().inv_cdf((1 + INTERVAL_LEVEL) / 2)
    share, shrink = num_correct / num_trials, 1 + z * z / num_trials
    centre = (share + z * z / (2 * num_trials)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    # At 0 and at all correct the bound is exactly 0 or 1; rounding must not push it outside.
    return (0.0 if num_correct == 0 else centre - half), (1.0 if num_correct == num_trials else centre + half)


class PassAtK(Metric):
    """The unbiased Pass@k of every source, of every stratum, and pooled, each with a 95 % interval.

    Every problem counts `num_samples` samples, whatever arrived: a missing or failed sample is wrong, never dropped.
    The states count problems by their number of right samples: whole numbers, summed, so that any order, any split
    into updates and any number of processes give exactly the answer of one loop, and a cast to bf16 does no harm.

    Intervals: Wilson where a problem is one trial, that is, with one sample each or where every problem has a Pass@k of
    0, or every one of 1 (replicates cannot differ); else the percentile interval of a Poisson bootstrap over problems.
    None for one problem with several samples, nor for an average over sources of 0, of 1, or of one problem.

    Args:
        ks: the values of k, each at most `num_samples`.
        num_samples: samples per problem.
        sources: the benchmarks that are expected. One that gets no problem is NaN, never 0.
        strata: (source, stratum) pairs that get a value of their own.
        num_bootstrap: replicates B; the states take (1 + sources + strata) · (num_samples + 1) · B · 8 bytes.
        seed: of the bootstrap; runs that are compared must share it.

    Raises:
        ValueError: if a k exceeds `num_samples`, or if two values would bear the same name.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor
    replicate_counts: Tensor

    def __init__(
        self,
        *,
        ks: Sequence[int] = (1,),
        num_samples: int = 1,
        sources: Sequence[str],
        strata: Sequence[tuple[str, str]] = (),
        num_bootstrap: int = 1000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ks, self.num_samples = tuple(ks), num_samples
        self.sources, self.strata = tuple(sources), tuple(strata)
        self.num_bootstrap, self.seed = num_bootstrap, seed
        self.cells = (POOLED, *self.sources, *(f"{source}/{stratum}" for source, stratum in self.strata))
        self._check_settings()
        self._cell_of_source = {source: 1 + i for i, source in enumerate(self.sources)}
        self._cell_of_stratum = {pair: 1 + len(self.sources) + i for i, pair in enumerate(self.strata)}
        shape = (len(self.cells), num_samples + 1)
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        replicates = torch.zeros((*shape, num_bootstrap), dtype=torch.int64)
        self.add_state("replicate_counts", replicates, dist_reduce_fx="sum")

    def _check_settings(self) -> None:
        if self.num_samples < 1 or self.num_bootstrap < 1 or not self.ks or not self.sources:
            raise ValueError(
                f"PassAtK has num_samples={self.num_samples}, num_bootstrap={self.num_bootstrap}, ks={self.ks}, "
                f"sources={self.sources}. Each needs at least one."
            )
        unusable = [k for k in self.ks if not 1 <= k <= self.num_samples]
        if unusable:
            raise ValueError(
                f"Pass@k for k={unusable} needs at least k samples per problem; num_samples={self.num_samples}. "
                f"Draw more samples or ask for smaller k."
            )
        names = (AVERAGE, *self.cells)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"PassAtK would report {repeated} twice ('{POOLED}' and '{AVERAGE}' are its own). Rename these sources."
            )

    def update(
        self,
        problem_ids: Sequence[str],
        sources: Sequence[str],
        num_correct: Tensor,
        weight: Tensor | None = None,
        strata: Sequence[str] | None = None,
    ) -> None:
        """Adds N problems, each once.

        Args:
            problem_ids: N ids; they seed the bootstrap.
            sources: the N problems' benchmarks, each one of the metric's `sources`.
            num_correct: [N] integers, how many of the problem's `num_samples` samples are right.
            weight: [N] 1 for a problem, 0 for padding that keeps ranks in step; all 1 if not given.
            strata: N difficulty labels, "" for none; needed if the metric has `strata`.

        Raises:
            ValueError: if a real problem has an unexpected source or stratum, or a count above `num_samples`.
        """
        num_problems = len(problem_ids)
        assert not num_correct.is_floating_point(), f"num_correct must hold integers, got {num_correct.dtype}"
        assert len(sources) == len(num_correct) == num_problems, "one source and one count per problem"
        assert strata is not None or not self.strata, "a metric with strata needs the stratum of every problem"
        weights = [1] * num_problems if weight is None else weight.tolist()
        assert len(weights) == num_problems and set(weights) <= {0, 1}, f"weights must be 0 or 1, got {weights}"

        counts = num_correct.tolist()
        real, rows, bins = [i for i in range(num_problems) if weights[i]], [], []
        for row, i in enumerate(real):
            cells = self._cells_of(problem_ids[i], sources[i], strata[i] if strata is not None else "", counts[i])
            rows += [row] * len(cells)
            bins += [cell * (self.num_samples + 1) + counts[i] for cell in cells]
        draws = torch.from_numpy(weights_of([problem_ids[i] for i in real], self.num_bootstrap, self.seed))[rows]
        self.counts = _add_at(self.counts, bins, torch.ones(len(bins), dtype=torch.int64))
        self.replicate_counts = _add_at(self.replicate_counts, bins, draws)

    def _cells_of(self, problem_id: str, source: str, stratum: str, num_correct: int) -> list[int]:
        if not 0 <= num_correct <= self.num_samples:
            raise ValueError(
                f"Problem {problem_id!r} has {num_correct} right samples; num_samples={self.num_samples}. "
                f"Give the metric the number of samples that are drawn per problem."
            )
        if source not in self._cell_of_source:
            raise ValueError(
                f"Problem {problem_id!r} is of source {source!r}; the metric expects {list(self.sources)}. "
                f"Add the source to the metric, or leave the problem out."
            )
        if not self.strata or not stratum:
            return [0, self._cell_of_source[source]]
        if (source, stratum) not in self._cell_of_stratum:
            raise ValueError(
                f"Problem {problem_id!r} is of stratum {stratum!r} of {source!r}; the metric expects "
                f"{[known for of, known in self.strata if of == source]}. Add the pair to the metric's strata."
            )
        return [0, self._cell_of_source[source], self._cell_of_stratum[source, stratum]]

    def compute(self) -> dict[str, Estimate]:
        """Estimates by name: "pass@k/pooled", "pass@k/SOURCE", "pass@k/SOURCE/STRATUM"; "pass@k/average" of several."""
        counts_CH = self.counts.cpu().numpy()
        replicates_CHB = self.replicate_counts.cpu().numpy()
        estimates = {}
        for k in self.ks:
            rates_H = np.array([pass_at_k(correct, self.num_samples, k) for correct in range(self.num_samples + 1)])
            means_CB = np.stack([_mean_rate(rates_H, replicates_HB) for replicates_HB in replicates_CHB])
            for cell, name in enumerate(self.cells):
                estimates[f"pass@{k}/{name}"] = _estimate(rates_H, counts_CH[cell], means_CB[cell])
            if len(self.sources) > 1:
                of_sources = [estimates[f"pass@{k}/{source}"] for source in self.sources]
                estimates[f"pass@{k}/{AVERAGE}"] = _average(of_sources, means_CB[1 : 1 + len(self.sources)])
        return estimates

    def scalars(self) -> dict[str, float]:
        """The values alone, by the same names: what a logger takes."""
        return {name: estimate.value for name, estimate in self.compute().items()}


def _add_at(state: Tensor, bins: Sequence[int], added: Tensor) -> Tensor:
    """The state [C, H, ...] with row i of `added` on top of its bin (cell, count), written as cell · H + count.

    Out of place: a state that was reset under Lightning's inference mode refuses in-place changes outside it.
    """
    index = torch.tensor(bins, dtype=torch.int64, device=state.device)
    return state.flatten(0, 1).index_add(0, index, added.to(state.device)).view_as(state)


def _mean_rate(rates_H: npt.NDArray[np.float64], counts_HB: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean Pass@k of each replicate, [B]; NaN for a replicate that drew no problem."""
    drawn_B = counts_HB.sum(0)
    means_B = np.full(drawn_B.shape, nan)
    np.divide(rates_H @ counts_HB, drawn_B, out=means_B, where=drawn_B > 0)
    return means_B


def _estimate(
    rates_H: npt.NDArray[np.float64], counts_H: npt.NDArray[np.int64], means_B: npt.NDArray[np.float64]
) -> Estimate:
    num_problems = int(counts_H.sum())
    if num_problems == 0:
        return Estimate(nan, nan, nan, 0, "none")
    total = float(rates_H @ counts_H)
    value = total / num_problems
    if len(rates_H) == 2 or value in (0.0, 1.0):
        return Estimate(value, *wilson_interval(round(total), num_problems), num_problems, "wilson")
    if num_problems == 1:
        return Estimate(value, nan, nan, 1, "none")
    return Estimate(value, *percentile_interval(means_B), num_problems, "bootstrap")


def _average(of_sources: Sequence[Estimate], means_SB: npt.NDArray[np.float64]) -> Estimate:
    """The mean over sources, each counting alike however many problems it has; NaN if one of them is."""
    num_problems = sum(estimate.num_problems for estimate in of_sources)
    value = sum(estimate.value for estimate in of_sources) / len(of_sources)
    if value in (0.0, 1.0) or any(estimate.num_problems < 2 for estimate in of_sources):
        return Estimate(value, nan, nan, num_problems, "none")
    return Estimate(value, *percentile_interval(means_SB.mean(0)), num_problems, "bootstrap")
