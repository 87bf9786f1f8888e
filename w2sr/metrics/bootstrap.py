"""The Poisson bootstrap over problems: replicates that need no second pass and no gathering of samples.

Replicate b draws every problem Poisson(1) times instead of drawing N of N with replacement (Chamandy et al. 2012,
"Estimating Uncertainty for Massive Data Streams"). The draw is a function of (seed, problem id, b) alone, so that any
order and any number of processes see the same replicates, and two arms on the same problems are paired.

Shape suffixes: N problems, B replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, factorial

import numpy as np
import numpy.typing as npt

from w2sr import chance

INTERVAL_LEVEL = 0.95
"""Every interval of w2sr covers this share."""

# P(X > 20) is below 2e-20 for X ~ Poisson(1), less than one step of a 53-bit uniform: the table lacks nothing.
_POISSON_CDF = np.cumsum([exp(-1.0) / factorial(count) for count in range(21)])


@lru_cache(maxsize=32_768)
def poisson_weights(problem_id: str, num_bootstrap: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """How often each of `num_bootstrap` replicates draws this problem: [B] Poisson(1) counts, read-only.

    Philox keyed by a hash of (seed, problem id), then the inverse Poisson distribution. Raw Philox numbers are the same
    in every numpy version, which numpy does not promise of `Generator.poisson`. The first weights do not depend on
    `num_bootstrap`.

    >>> poisson_weights("gsm8k/412", 8, seed=7).tolist() == poisson_weights("gsm8k/412", 9, seed=7)[:8].tolist()
    True
    """
    raw_B = chance.stream("bootstrap", num_bootstrap, f"{seed}:{problem_id}")
    uniforms_B = (raw_B >> np.uint64(11)) * 2.0**-53
    weights_B = np.searchsorted(_POISSON_CDF, uniforms_B, side="right").astype(np.uint8)
    weights_B.setflags(write=False)
    return weights_B


def weights_of(problem_ids: Sequence[str], num_bootstrap: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """The weights of several problems, one row each: [N, B] int64."""
    weights_NB = np.empty((len(problem_ids), num_bootstrap), dtype=np.int64)
    for row, problem_id in enumerate(problem_ids):
        weights_NB[row] = poisson_weights(problem_id, num_bootstrap, seed)
    return weights_NB


def percentile_interval(replicates_B: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The central 95 % of the replicates. Undefined (NaN) replicates are left out; without any, both ends are NaN.

    >>> [round(bound, 1) for bound in percentile_interval(np.arange(101.0))]
    [2.5, 97.5]
    """
    defined = replicates_B[~np.isnan(replicates_B)]
    if defined.size == 0:
        return float("nan"), float("nan")
    tail = (1 - INTERVAL_LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
