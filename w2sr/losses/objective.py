"""What is optimised: the keys that a configuration file fills, and what it may not ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

PolicyLoss = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"]
Estimator = Literal["k1", "k2", "k3"]
CorrectionKind = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence"]

PUBLISHED_CLIP: dict[PolicyLoss, tuple[float, float]] = {
    "grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "dr_grpo": (0.2, 0.2),
    "gspo": (3e-4, 4e-4),
    "cispo": (1.0, 4.0),
}
"""Loss → (clip_low, clip_high): the ratio stays in [1 − clip_low, 1 + clip_high].

Sources: arXiv 2402.03300 (and PPO, 1707.06347), 2503.14476, 2503.20783, 2507.18071. MiniMax-M1 (2506.13585) gives CISPO
no lower bound and no number for the upper one; 5 is that of "The Art of Scaling RL Compute" (2510.13786).
"""
DUAL_CLIP_LOSSES: tuple[PolicyLoss, ...] = ("grpo", "dapo", "dr_grpo")


@dataclass(frozen=True)
class KL:
    """The penalty for leaving the reference policy.

    Attributes:
        coefficient: β; 0 for no penalty, and then no reference policy is needed.
        estimator: `k1`, `k2` or `k3` of each token (see `w2sr.losses.kl`).
        place: `loss` adds β·KL to the loss of a token, `reward` takes β·KL from its advantage, as a number without a
            gradient. Their gradients tell which estimators make sense where: k2 and k3 in the loss, k1 in the reward.
        times_ratio: multiplies k3 in the loss by the token's ratio, gradient and all (DeepSeek-V3.2, arXiv 2512.02556):
            its gradient is then that of the KL divergence, also for tokens of an older policy.
    """

    coefficient: float = 0.0
    estimator: Estimator = "k3"
    place: Literal["loss", "reward"] = "loss"
    times_ratio: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < math.inf:
            raise ValueError(
                f"objective.kl.coefficient={self.coefficient}; a penalty needs a finite number >= 0. Set 0 for none."
            )
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "objective.kl.estimator=k1 with place=loss: the expected gradient of k1 is zero, so it would penalise "
                "nothing (arXiv 2510.01555). Set estimator=k2 or k3, or place=reward."
            )
        if self.place == "reward" and self.estimator != "k1":
            raise ValueError(
                f"objective.kl.estimator={self.estimator} with place=reward: only k1 in the reward has the gradient of "
                "the KL divergence (arXiv 2510.01555). Set estimator=k1, or place=loss."
            )
        if self.times_ratio and self.estimator != "k3":
            raise ValueError(
                f"objective.kl.times_ratio=true with estimator={self.estimator}: the ratio makes the gradient of k3 in "
                "the loss unbiased, and no other (arXiv 2512.02556). Set estimator=k3, or times_ratio=false."
            )

    @property
    def is_loss(self) -> bool:
        """Whether there is a penalty, in the loss."""
        return self.coefficient > 0 and self.place == "loss"

    @property
    def is_reward(self) -> bool:
        """Whether there is a penalty, in the reward."""
        return self.coefficient > 0 and self.place == "reward"


@dataclass(frozen=True)
class Correction:
    """What is done about a sampler whose probabilities are not the trainer's, with w = π_old / π_sampler.

    Attributes:
        kind: `truncate` multiplies the loss of a token by min(w, limit); `mask` by w, or by 0 where w is outside
            [1 / limit, limit]; `none` by 1.
        level: w of each `token`, or of the `sequence`: the product over the tokens of its rollout.
        limit: > 1.
    """

    kind: CorrectionKind = "none"
    level: Level = "token"
    limit: float = 2.0

    def __post_init__(self) -> None:
        if not 1 < self.limit < math.inf:
            raise ValueError(
                f"objective.correction.limit={self.limit}; weights are near 1, so a limit is a finite number > 1. "
                "Set kind=none for no correction."
            )


@dataclass(frozen=True)
class Objective:
    """The loss of GRPO and its relatives (see `policy_loss`).

    Attributes:
        loss: `grpo` (arXiv 2402.03300), `dapo` (2503.14476), `dr_grpo` (2503.20783), `gspo` (2507.18071), `cispo`
            (2506.13585). They differ in the ratio, in the clip and in how much a token weighs (`rollout_weights`).
        clip_low: the ratio is clipped at 1 − clip_low; the loss's published number without it.
        clip_high: and at 1 + clip_high.
        dual_clip: where the advantage is negative, the ratio counts at most so much (Ye et al., arXiv 1912.09729, who
            take 3); no such bound without it. Of grpo, dapo and dr_grpo.
        entropy: coefficient of the bonus for entropy; 0 for none.
        kl: the penalty for leaving the reference policy.
        correction: of the difference between sampler and trainer.
    """

    loss: PolicyLoss = "grpo"
    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = None
    entropy: float = 0.0
    kl: KL = KL()
    correction: Correction = Correction()

    def __post_init__(self) -> None:
        low, high = self.clip
        if not (0 < low <= 1 and 0 < high < math.inf):
            raise ValueError(
                f"objective.clip_low={low:g} and clip_high={high:g} with loss={self.loss}; the ratio is clipped to "
                "[1 - clip_low, 1 + clip_high], which needs 0 < clip_low <= 1 and a finite clip_high > 0."
            )
        if not 0 <= self.entropy < math.inf:
            raise ValueError(f"objective.entropy={self.entropy}; a bonus needs a finite number >= 0. Set 0 for none.")
        if self.dual_clip is None:
            return
        if self.loss not in DUAL_CLIP_LOSSES:
            raise ValueError(
                f"objective.dual_clip={self.dual_clip:g} with loss={self.loss}, which has no such bound. Leave it out, "
                f"or set loss to one of {', '.join(DUAL_CLIP_LOSSES)}."
            )
        if not 1 + high < self.dual_clip < math.inf:
            raise ValueError(
                f"objective.dual_clip={self.dual_clip:g}; it bounds ratios that the clip at 1 + clip_high = "
                f"{1 + high:g} lets pass, so it must be larger. Ye et al. take 3."
            )

    @property
    def clip(self) -> tuple[float, float]:
        """(clip_low, clip_high), with the published numbers where none were given."""
        low, high = PUBLISHED_CLIP[self.loss]
        return low if self.clip_low is None else self.clip_low, high if self.clip_high is None else self.clip_high
