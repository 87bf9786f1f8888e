"""What an evaluation is worth: Pass@k, the recovered reasoning gap, and their intervals."""

from __future__ import annotations

from w2sr.metrics.bootstrap import poisson_weights
from w2sr.metrics.pass_at_k import PassAtK, pass_at_k, wilson_interval
from w2sr.metrics.records import records_to_result
from w2sr.metrics.rgr import GapKind, GapRecovered, ReasoningGapRecovered, rgr_from_results

__all__ = [
    "GapKind",
    "GapRecovered",
    "PassAtK",
    "ReasoningGapRecovered",
    "pass_at_k",
    "poisson_weights",
    "records_to_result",
    "rgr_from_results",
    "wilson_interval",
]
