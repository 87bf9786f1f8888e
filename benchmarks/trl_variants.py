"""Objectives that TRL and we both have, each in TRL's keys and in ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from w2sr.advantages import AdvantageRule
from w2sr.losses import KL, Correction, Objective


@dataclass(frozen=True)
class Variant:
    """One objective, in TRL's keys and in ours. `drop_cut_off`: rollouts without a stop token are not learned from."""

    name: str
    trl: dict[str, Any]
    objective: Objective
    rule: AdvantageRule = AdvantageRule()
    drop_cut_off: bool = False


def sampler(mode: str, least: float | None, most: float) -> dict[str, Any]:
    """TRL's keys for the correction of a sampler, whose flag `use_vllm` is set without an engine."""
    keys = ("mode", "clip_min", "clip_max")
    return {f"vllm_importance_sampling_{key}": value for key, value in zip(keys, (mode, least, most), strict=True)}


SEQUENCE = {"importance_sampling_level": "sequence"}
VARIANTS = [
    Variant("grpo", {"loss_type": "grpo"}, Objective("grpo")),
    Variant("grpo, dual clip 1.3", {"loss_type": "grpo", "delta": 1.3}, Objective("grpo", dual_clip=1.3)),
    Variant(
        "grpo, KL k3, β = 0.1",
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
        Objective("grpo", kl=KL(0.1)),
    ),
    Variant("dapo", {"loss_type": "dapo", "epsilon_high": 0.28}, Objective("dapo")),
    Variant(
        "dapo, batch std, KL k3 · ρ, β = 0.1",
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.1, "scale_rewards": "batch"},
        Objective("dapo", kl=KL(0.1, times_ratio=True)),
        AdvantageRule(scale="batch_std"),
    ),
    Variant(
        "dr_grpo, no std",
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        Objective("dr_grpo"),
        AdvantageRule(scale="none"),
    ),
    Variant(
        "gspo, clip 0.02 / 0.03",
        {"loss_type": "grpo", "epsilon": 0.02, "epsilon_high": 0.03, **SEQUENCE},
        Objective("gspo", 0.02, 0.03),
    ),
    Variant("cispo, ratio ≤ 1.2", {"loss_type": "cispo", "epsilon_high": 1.2}, Objective("cispo", clip_high=0.2)),
    Variant(
        "grpo, cut-off rollouts masked",
        {"loss_type": "grpo", "mask_truncated_completions": True},
        Objective("grpo"),
        drop_cut_off=True,
    ),
    Variant(
        "dapo, cut-off rollouts masked",
        {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
        Objective("dapo"),
        drop_cut_off=True,
    ),
    Variant(
        "dapo, w truncated at 1.2 by tokens",
        {"loss_type": "dapo", "epsilon_high": 0.28, **sampler("token_truncate", None, 1.2)},
        Objective("dapo", correction=Correction("truncate", "token", 1.2)),
    ),
    Variant(
        "cispo, w masked outside [1/1.2, 1.2] by tokens",
        {"loss_type": "cispo", "epsilon_high": 1.2, **sampler("token_mask", 1 / 1.2, 1.2)},
        Objective("cispo", clip_high=0.2, correction=Correction("mask", "token", 1.2)),
    ),
    Variant(
        "gspo, w truncated at 2 by sequences",
        {
            "loss_type": "grpo",
            "epsilon": 0.02,
            "epsilon_high": 0.03,
            **SEQUENCE,
            **sampler("sequence_truncate", None, 2.0),
        },
        Objective("gspo", 0.02, 0.03, correction=Correction("truncate", "sequence")),
    ),
    Variant(
        "grpo, w masked outside [1/2, 2] by sequences",
        {"loss_type": "grpo", **sampler("sequence_mask", 0.5, 2.0)},
        Objective("grpo", correction=Correction("mask", "sequence")),
    ),
]
