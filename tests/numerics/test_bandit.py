"""Policies of a few logits whose best answer is known: losses, advantages and weights together find it.

Legend: G group size, L positions of a completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from w2sr.advantages import AdvantageRule, group_advantages
from w2sr.losses import KL, Objective, policy_loss, rollout_weights
from w2sr.types import PolicyRow

SAMPLING_ATOL = 0.02
"""4,096 samples know a probability to 0.008 at one standard deviation; steps average some of that away."""


def train(
    logits_LV: Tensor,
    reward: Callable[[Tensor], Tensor],
    objective: Objective,
    rule: AdvantageRule,
    *,
    group_size: int,
    rounds: int,
    updates: int,
    learning_rate: float,
    ref_LV: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Probabilities [L, V] after training on `rounds` groups, and the totals of what was watched.

    `reward` takes completions [G, L] to rewards [G]. The first `updates` − 1 of a round make its tokens stale.
    """
    logits_LV = logits_LV.clone().requires_grad_()
    optimizer = torch.optim.SGD([logits_LV], lr=learning_rate)
    generator = torch.Generator().manual_seed(0)
    length, totals = len(logits_LV), dict[str, float]()
    for _ in range(rounds):
        tokens_GL = torch.multinomial(logits_LV.detach().softmax(-1), group_size, True, generator=generator).T
        advantages = group_advantages(reward(tokens_GL).numpy()[None], rule)[0]
        weights = rollout_weights([length] * group_size, objective.loss, length)

        def logprobs(of_LV: Tensor, tokens_GL: Tensor = tokens_GL) -> Tensor:
            return of_LV.log_softmax(-1)[torch.arange(length), tokens_GL].flatten()

        old = logprobs(logits_LV).detach()
        row = PolicyRow(
            packed=None,  # the loss reads no token ids
            advantages=torch.from_numpy(np.repeat(advantages, length)),
            weights=torch.from_numpy(np.repeat(weights, length)),
            rollout_logprobs=old,
            segments=torch.arange(group_size).repeat_interleave(length),
            old_logprobs=old if updates > 1 else None,
            ref_logprobs=None if ref_LV is None else logprobs(ref_LV),
        )
        for _ in range(updates):
            log_p_LV = logits_LV.log_softmax(-1)
            entropies = -(log_p_LV.exp() * log_p_LV).sum(-1).repeat(group_size)
            loss, sums = policy_loss(logprobs(logits_LV), entropies, row, objective)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            totals = {name: totals.get(name, 0.0) + total.item() for name, total in sums.items()}
    return logits_LV.detach().softmax(-1), totals


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        (Objective("grpo"), AdvantageRule()),
        (Objective("dapo"), AdvantageRule("leave_one_out")),
        (Objective("dr_grpo"), AdvantageRule(scale="none")),
        (Objective("gspo"), AdvantageRule(scale="batch_std")),
        # its published clip is never met here
        (Objective("cispo", 0.2, 0.2), AdvantageRule("leave_one_out", "batch_std")),
    ],
    ids=lambda of_case: getattr(of_case, "loss", ""),
)
def test_a_password_is_found_by_its_reward_alone(objective: Objective, rule: AdvantageRule) -> None:
    """Reward 1 for the one right of 64 completions, else 0: a random policy finds it in every other group of 32."""
    password = torch.tensor([2, 0, 3])
    probabilities, totals = train(
        torch.zeros(3, 4, dtype=torch.float64),
        lambda tokens_GL: (tokens_GL == password).all(1).double(),
        objective,
        rule,
        group_size=32,
        rounds=150,
        updates=3,
        learning_rate=2.0,
    )
    assert probabilities[torch.arange(3), password].min() > 0.95
    assert totals["clipped_low"] + totals["clipped_high"] > 0, "guard: the clip was met"


@pytest.mark.parametrize("kl", [KL(0.5, "k1", "reward"), KL(0.5, "k2"), KL(0.5, "k3")], ids=lambda kl: kl.estimator)
def test_a_penalised_policy_ends_where_theory_says(kl: KL) -> None:
    """max E[r] − β·KL(π || ref) is at π ∝ ref·exp(r / β). k3 in the loss ends elsewhere, where its gradient is zero:
    π·(β − (r − mean r)) = β·ref."""
    rewards, ref = torch.tensor([0.0, 0.5, 1.0, 0.2]).double(), torch.tensor([[0.3, 0.8, -0.5, 0.0]]).double()
    (probabilities,), _ = train(
        ref,
        lambda tokens_GL: rewards[tokens_GL[:, 0]],
        Objective("grpo", kl=kl),
        AdvantageRule(scale="none"),
        group_size=4096,
        rounds=150,
        updates=1,
        learning_rate=1.0,
        ref_LV=ref,
    )
    best = (ref.log_softmax(-1)[0] + rewards / 0.5).softmax(0)
    if kl.estimator == "k3":
        mean = (probabilities * rewards).sum()
        at_rest = 0.5 * ref.softmax(-1)[0] / (0.5 - (rewards - mean))
        torch.testing.assert_close(probabilities, at_rest, atol=SAMPLING_ATOL, rtol=0)
        assert (probabilities - best).abs().max() > 2 * SAMPLING_ATOL, "guard: the two ends differ"
    else:
        torch.testing.assert_close(probabilities, best, atol=SAMPLING_ATOL, rtol=0)


def test_a_bonus_for_entropy_ends_where_theory_says() -> None:
    """max E[r] + c·H(π) is at π ∝ exp(r / c)."""
    rewards = torch.tensor([0.0, 0.5, 1.0, 0.2]).double()
    (probabilities,), _ = train(
        torch.tensor([[0.3, 0.8, -0.5, 0.0]]).double(),
        lambda tokens_GL: rewards[tokens_GL[:, 0]],
        Objective("dapo", entropy=0.5),
        AdvantageRule(scale="none"),
        group_size=4096,
        rounds=150,
        updates=1,
        learning_rate=1.0,
    )
    torch.testing.assert_close(probabilities, (rewards / 0.5).softmax(0), atol=SAMPLING_ATOL, rtol=0)
