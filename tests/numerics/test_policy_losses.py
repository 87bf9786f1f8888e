"""Every policy loss, correction and penalty against loops over tokens in float64, and what they say in expectation.

Legend: R rollouts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from w2sr.losses import KL, Correction, Objective, k1, k2, k3, policy_loss, rollout_weights
from w2sr.types import PolicyRow

ATOL = 1e-12
"""float64 sums of some forty numbers below 10."""
FLOAT32_RTOL = 1e-6
"""What is watched is summed in float32."""

LOSSES = ("grpo", "dapo", "dr_grpo", "gspo", "cispo")
CLIPPED = ("grpo", "dapo", "dr_grpo", "gspo")
CORRECTIONS = [
    Correction(),
    *(Correction(kind, level, 1.3) for kind, level in product(("truncate", "mask"), ("token", "sequence"))),
]
PENALTIES = [KL(), KL(0.3, "k2"), KL(0.3, "k3"), KL(0.3, "k1", "reward"), KL(0.3, times_ratio=True)]


@dataclass
class Sampled:
    """One rollout: its advantage, and numbers of each of its tokens, float64."""

    advantage: float
    logprobs: Tensor
    entropies: Tensor
    old: Tensor
    sampled: Tensor
    ref: Tensor


def ragged(seed: int = 3, lengths: Sequence[int] = (5, 1, 9, 2, 7, 4)) -> list[Sampled]:
    """Rollouts whose ratios lie on both sides of every clip, and whose sampler is off by up to a factor of 2."""
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        logprobs = torch.from_numpy(rng.normal(-2, 0.5, length))
        # a drift of the whole rollout, so that the sequence's ratio leaves GSPO's clip too
        old = logprobs + 0.3 * (-1) ** (number // 2) + torch.from_numpy(rng.normal(0, 0.6, length))
        sampled, ref = (old + torch.from_numpy(rng.normal(0, 0.3, length)) for _ in range(2))
        entropies = torch.from_numpy(rng.uniform(0, 3, length))
        made.append(Sampled((-1.3, 0.8)[number % 2], logprobs, entropies, old, sampled, ref))
    return made


def pack(rollouts: Sequence[Sampled], weights: Sequence[float]) -> tuple[Tensor, Tensor, PolicyRow]:
    """(logprobs, entropies, row): each rollout behind 2 prompt tokens and before a last token, which carry no loss.

    Tokens without loss have numbers of their own, other ones in each array, so that one that is counted shows.
    """

    def spread(parts: Sequence[Tensor], without_loss: float = 0.0) -> Tensor:
        around = [torch.full((number,), without_loss, dtype=torch.float64) for number in (2, 1)]
        return torch.cat([torch.cat([around[0], part, around[1]]) for part in parts])

    row = PolicyRow(
        packed=None,  # the loss reads no token ids
        advantages=spread([torch.full_like(one.logprobs, one.advantage) for one in rollouts]),
        weights=spread([torch.full_like(one.logprobs, weight) for one, weight in zip(rollouts, weights, strict=True)]),
        rollout_logprobs=spread([one.sampled for one in rollouts], -0.7),
        segments=torch.cat([torch.full((len(one.old) + 3,), number) for number, one in enumerate(rollouts)]),
        old_logprobs=spread([one.old for one in rollouts], -1.1),
        ref_logprobs=spread([one.ref for one in rollouts], -1.9),
    )
    logprobs = spread([one.logprobs.detach() for one in rollouts], -0.2)
    entropies = spread([one.entropies.detach() for one in rollouts], 0.9)
    return logprobs.requires_grad_(), entropies.requires_grad_(), row


def weights_of(rollouts: Sequence[Sampled], loss: Any) -> list[float]:
    return rollout_weights([len(one.old) for one in rollouts], loss, 16).tolist()


def objective_of(loss: Any, **keys: Any) -> Objective:
    """Clips that some tokens meet and others do not."""
    clip = {"gspo": (0.1, 0.15), "cispo": (0.4, 0.3)}.get(loss, (None, None))
    dual = 1.6 if loss in ("grpo", "dapo", "dr_grpo") else None
    return Objective(loss, *clip, dual, **keys)


def reference_loss(rollouts: Sequence[Sampled], objective: Objective) -> Tensor:
    """The formulas of the papers, a token at a time, averaged as each paper writes it."""
    total = torch.zeros((), dtype=torch.float64)
    for one in rollouts:
        per_token = [_reference_token(one, t, objective) for t in range(len(one.old))]
        if objective.loss in ("grpo", "gspo"):
            total += sum(per_token) / len(per_token) / len(rollouts)
        elif objective.loss == "dr_grpo":
            total += sum(per_token) / 16 / len(rollouts)
        else:
            total += sum(per_token) / sum(len(other.old) for other in rollouts)
    return total


def _reference_token(one: Sampled, t: int, objective: Objective) -> Tensor:
    low, high = objective.clip
    now, old, ref = one.logprobs[t], one.old[t], one.ref[t]
    advantage, kl = one.advantage, objective.kl
    if kl.place == "reward":
        advantage = advantage - kl.coefficient * float(old - ref)
    rho = (now - old).exp()
    if objective.loss == "gspo":
        mean = sum(float(one.logprobs[u].detach() - one.old[u]) for u in range(len(one.old))) / len(one.old)
        rho = math.exp(mean) * now.exp() / now.exp().detach()
    clipped = min(max(rho.item(), 1 - low), 1 + high)
    if objective.loss == "cispo":
        loss = -clipped * advantage * now
    else:
        gain = rho * advantage if rho.item() * advantage <= clipped * advantage else 0 * now + clipped * advantage
        if objective.dual_clip is not None and advantage < 0 and gain.item() < objective.dual_clip * advantage:
            gain = 0 * now + objective.dual_clip * advantage
        loss = -gain
    loss = loss * _reference_weight(one, t, objective.correction)
    log_r = ref - now
    if kl.place == "loss":
        penalty = log_r**2 / 2 if kl.estimator == "k2" else log_r.exp() - 1 - log_r
        loss = loss + kl.coefficient * penalty * ((now - old).exp() if kl.times_ratio else 1)
    return loss - objective.entropy * one.entropies[t]


def _reference_weight(one: Sampled, t: int, correction: Correction) -> float:
    if correction.kind == "none":
        return 1.0
    ratios = [math.exp(float(old - sampled)) for old, sampled in zip(one.old, one.sampled, strict=True)]
    weight = ratios[t] if correction.level == "token" else math.prod(ratios)
    if correction.kind == "truncate":
        return min(weight, correction.limit)
    return weight if 1 / correction.limit <= weight <= correction.limit else 0.0


def kl_id(kl: KL) -> str:
    return f"{kl.estimator}_{kl.place}{'_times_ratio' * kl.times_ratio}" if kl.coefficient else "no_kl"


@pytest.mark.parametrize("kl", PENALTIES, ids=kl_id)
@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: f"{c.kind}_{c.level}")
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_equal_a_loop(loss: Any, correction: Correction, kl: KL) -> None:
    objective = objective_of(loss, correction=correction, kl=kl, entropy=0.02)
    rollouts = ragged()
    logprobs, entropies, row = pack(rollouts, weights_of(rollouts, loss))
    ours, sums = policy_loss(logprobs, entropies, row, objective)
    ours.backward()
    for one in rollouts:
        one.logprobs.requires_grad_(), one.entropies.requires_grad_()
    expected = reference_loss(rollouts, objective)
    expected.backward()
    torch.testing.assert_close(ours, expected, atol=ATOL, rtol=0)
    learned = row.weights != 0
    for got, wanted in (
        (logprobs.grad, torch.cat([one.logprobs.grad for one in rollouts])),
        (entropies.grad, torch.cat([one.entropies.grad for one in rollouts])),
    ):
        torch.testing.assert_close(got[learned], wanted, atol=ATOL, rtol=0)
        assert not got[~learned].any(), "prompts have no gradient"
    met = {name: int(sums[name]) for name in sums if name.startswith("clipped") or name == "correction_limited"}
    if correction.kind == "none":
        assert met.pop("correction_limited") == 0
    assert all(0 < number < 28 for number in met.values()), f"guard: some tokens met each limit, not all: {met}"


@pytest.mark.parametrize("correction", [Correction(), Correction("truncate", "sequence", 1.1)])
def test_the_gradient_of_gspo_is_that_of_the_objective_of_sequences(correction: Correction) -> None:
    """J = (1/R) Σ_i w_i·min(s_i A_i, clip(s_i) A_i) with s_i = exp(mean log ρ), differentiated as it stands."""
    rollouts = ragged()
    objective = objective_of("gspo", correction=correction)
    logprobs, _, row = pack(rollouts, weights_of(rollouts, "gspo"))
    policy_loss(logprobs, None, row, objective)[0].backward()
    total = torch.zeros((), dtype=torch.float64)
    for one in rollouts:
        one.logprobs.requires_grad_()
        s = (one.logprobs - one.old).mean().exp()
        gain = torch.min(s * one.advantage, s.clamp(0.9, 1.15) * one.advantage)
        total = total - gain * _reference_weight(one, 0, correction) / len(rollouts)
    total.backward()
    wanted = torch.cat([one.logprobs.grad for one in rollouts])
    assert 0 < int((wanted == 0).sum()) < 28, "guard: some sequences are clipped"
    torch.testing.assert_close(logprobs.grad[row.weights != 0], wanted, atol=ATOL, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_at_ratio_1_the_gradient_is_that_of_reinforce(loss: Any) -> None:
    """−Σ weight·A·∇log π, for every loss with its published clip, whether the old policy is given or is this one."""
    rollouts = ragged()
    logprobs, _, row = pack(rollouts, weights_of(rollouts, loss))
    for at_ratio_1 in (row._replace(old_logprobs=None), row._replace(old_logprobs=logprobs.detach().clone())):
        logprobs.grad = None
        _, sums = policy_loss(logprobs, None, at_ratio_1, Objective(loss))
        policy_loss(logprobs, None, at_ratio_1, Objective(loss))[0].backward()
        torch.testing.assert_close(logprobs.grad, -row.weights * row.advantages, atol=ATOL, rtol=0)
        assert sums["ratio"] == sums["tokens"] == 28 and sums["clipped_low"] == sums["clipped_high"] == 0


@pytest.mark.parametrize("loss", CLIPPED)
def test_a_clipped_token_on_the_bad_side_has_no_gradient_and_on_the_other_side_has_one(loss: Any) -> None:
    """Good tokens that are already likelier, and bad ones that are already less likely, are left alone: exactly 0."""
    for advantage, log_ratio, is_stopped in (
        (1.0, 0.5, True),
        (-1.0, -0.5, True),
        (1.0, -0.5, False),
        (-1.0, 0.5, False),
    ):
        logprobs = tensor([-1.0], requires_grad=True)
        old = tensor([-1.0 - log_ratio])
        row = PolicyRow(None, tensor([advantage]), tensor([1.0]), old, tensor([0]), old)
        loss_value, sums = policy_loss(logprobs, None, row, Objective(loss))
        loss_value.backward()
        if is_stopped:
            assert logprobs.grad.item() == 0 and sums["clipped_low"] + sums["clipped_high"] == 1
        else:
            assert logprobs.grad.item() == pytest.approx(-advantage * math.exp(log_ratio))
            assert sums["clipped_low"] + sums["clipped_high"] == 0


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: f"{c.kind}_{c.level}")
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_rewards_give_exactly_no_gradient_whatever_the_ratios(loss: Any, correction: Correction) -> None:
    """Also where exp of the log ratio is infinite in float32, and 0 · inf would be NaN."""
    rollouts = [replace(one, advantage=0.0) for one in ragged()]
    logprobs, _, row = pack(rollouts, weights_of(rollouts, loss))
    far = tensor([1000.0, -1000.0]).repeat(len(logprobs))[: len(logprobs)] * (row.weights != 0)
    float32 = {name: getattr(row, name).float() for name in ("advantages", "weights", "ref_logprobs")}
    row = row._replace(old_logprobs=far.float(), rollout_logprobs=2 * far.float(), **float32)
    logprobs = logprobs.detach().float().requires_grad_()
    value, sums = policy_loss(logprobs, None, row, objective_of(loss, correction=correction))
    value.backward()
    assert value.item() == 0 and not logprobs.grad.any() and logprobs.grad.isfinite().all()
    assert all(total.isfinite() for total in sums.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_depends_on_how_rollouts_share_rows(loss: Any) -> None:
    rollouts = ragged()
    objective = objective_of(loss, correction=Correction("mask", "sequence", 1.3), kl=KL(0.1), entropy=0.02)
    weights = weights_of(rollouts, loss)

    def step(rows: list[list[int]]) -> tuple[float, dict[int, Tensor], dict[str, float]]:
        value, gradients, totals = 0.0, {}, dict[str, float]()
        for members in rows:
            logprobs, entropies, row = pack([rollouts[m] for m in members], [weights[m] for m in members])
            part, sums = policy_loss(logprobs, entropies, row, objective)
            part.backward()
            value += part.item()
            totals = {name: totals.get(name, 0.0) + total.item() for name, total in sums.items()}
            gradients |= {m: logprobs.grad[row.segments == place] for place, m in enumerate(members)}
        return value, gradients, totals

    value, gradients, totals = step([[0, 1, 2, 3, 4, 5]])
    for rows in ([[5, 0], [3, 2, 1], [4]], [[m] for m in range(6)]):
        other_value, other_gradients, other_totals = step(rows)
        assert other_value == pytest.approx(value, abs=ATOL)
        for m in range(6):
            torch.testing.assert_close(other_gradients[m], gradients[m], atol=ATOL, rtol=0)
        assert other_totals == pytest.approx(totals, rel=FLOAT32_RTOL)


def test_an_empty_row_has_a_loss_of_0_that_can_be_differentiated() -> None:
    nothing = torch.zeros(3)
    row = PolicyRow(None, nothing, nothing, nothing, torch.zeros(3, dtype=torch.int64))
    logprobs = torch.zeros(3, requires_grad=True)
    for loss in LOSSES:
        value, sums = policy_loss(logprobs, nothing, row, Objective(loss, correction=Correction("mask", "sequence")))
        value.backward()
        assert value.item() == 0 and not logprobs.grad.any() and not any(sums.values())


def test_a_rollout_of_weight_0_is_neither_learned_from_nor_watched() -> None:
    rollouts = ragged()
    weights = weights_of(rollouts, "grpo")
    objective = objective_of("grpo", correction=Correction("truncate"), kl=KL(0.1))
    logprobs, entropies, row = pack(rollouts, [0.0, *weights[1:]])
    row.rollout_logprobs[3] = -math.inf
    value, sums = policy_loss(logprobs, entropies, row, objective)
    value.backward()
    other, _, without = pack(rollouts[1:], weights[1:])
    expected, other_sums = policy_loss(other, pack(rollouts[1:], weights[1:])[1], without, objective)
    torch.testing.assert_close(value, expected, atol=ATOL, rtol=0)
    assert not logprobs.grad[row.segments == 0].any() and sums["tokens"] == 23
    assert sums.keys() == other_sums.keys()
    for name in sums:
        torch.testing.assert_close(sums[name], other_sums[name], atol=0, rtol=FLOAT32_RTOL)


def test_what_is_watched_in_numbers() -> None:
    """Ratios 1.5, 1, 0.5 and 4 with advantages 1, 0, −1, −1; the sampler gave the first token twice its probability."""
    old = tensor([0.2, 0.2, 0.4, 0.1]).log()
    logprobs, ref = tensor([0.3, 0.2, 0.2, 0.4]).log(), tensor([0.3, 0.1, 0.2, 0.4]).log()
    sampled = tensor([0.4, 0.2, 0.4, 0.1]).log()
    row = PolicyRow(None, tensor([1.0, 0.0, -1.0, -1.0]), torch.ones(4), sampled, torch.zeros(4).long(), old, ref)
    objective = Objective(dual_clip=3.0, correction=Correction("mask", limit=1.9))
    _, sums = policy_loss(logprobs, tensor([1.0, 2.0, 3.0, 4.0]), row, objective)
    assert {name: round(total.item(), 4) for name, total in sums.items()} == {
        "tokens": 4,
        "ratio": 7,
        "clipped_low": 1,
        "clipped_high": 1,
        "clipped_dual": 1,
        # k3 of 1.5, 1, 0.5, 4: 0.0945 + 0 + 0.1931 + 1.6137
        "old_kl": 1.9014,
        "mismatch_kl": 0.1931,  # of 0.5
        "correction": 3,  # the first is masked
        "correction_limited": 1,
        "kl": 0.1931,  # of 0.1 / 0.2
        "entropy": 10,
    }


def test_the_dual_clip_holds_bad_tokens_beyond_it_and_no_others() -> None:
    """Bound 3 holds the ratio 4 of a bad token; not 4 of a good one or of one without advantage, nor 2 of a bad one."""
    old = torch.zeros(4)
    row = PolicyRow(None, tensor([-1.0, 1.0, 0.0, -1.0]), torch.ones(4), old, torch.zeros(4).long(), old)
    logprobs = tensor([4.0, 4.0, 4.0, 2.0]).log().requires_grad_()
    loss, sums = policy_loss(logprobs, None, row, Objective(dual_clip=3.0))
    loss.backward()
    assert sums["clipped_dual"] == 1 and sums["clipped_high"] == 1
    # held: 3, constant; good and above 1.2: -1.2, constant; nothing; ratio · 1 = 2
    assert loss.item() == pytest.approx(3 - 1.2 + 0 + 2) and logprobs.grad.tolist() == pytest.approx([0, 0, 0, 2])


def test_the_clip_of_cispo_is_watched_on_both_sides_for_both_signs() -> None:
    old = torch.zeros(5)
    row = PolicyRow(None, tensor([1.0, -1.0, 1.0, -1.0, 0.0]), torch.ones(5), old, torch.zeros(5).long(), old)
    log_ratios = tensor([2.0, 2.0, 0.3, 0.3, 2.0]).log()
    _, sums = policy_loss(log_ratios, None, row, Objective("cispo", clip_low=0.5, clip_high=0.9))
    assert sums["clipped_high"] == 2 and sums["clipped_low"] == 2


def categorical(seed: int, size: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, size)).log_softmax(0)


def test_estimators_of_kl_and_their_gradients_in_expectation() -> None:
    """Over all tokens of a small vocabulary, weighed by their probability: no noise. Claims of `w2sr.losses.kl`."""
    logits, log_q = categorical(1).requires_grad_(), categorical(2)

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the expectation of `function` of a token's log-probability, the tokens being drawn from p."""
        log_p = logits.log_softmax(0)
        return torch.autograd.grad((log_p.exp().detach() * function(log_p)).sum(), logits)[0]

    log_p = logits.log_softmax(0)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    k1_mean, k2_mean, k3_mean = ((log_p.exp() * k(log_p, log_q)).sum().item() for k in (k1, k2, k3))
    assert k1_mean == pytest.approx(kl.item()) and k3_mean == pytest.approx(kl.item())
    assert abs(k2_mean - kl.item()) > 0.05 and (k3(log_p, log_q) >= 0).all()

    wanted = torch.autograd.grad(kl, logits)[0]
    in_reward = gradient(lambda log_p: k1(log_p, log_q).detach() * log_p)
    k1_loss, k2_loss, k3_loss = (gradient(lambda log_p, k=k: k(log_p, log_q)) for k in (k1, k2, k3))
    torch.testing.assert_close(in_reward, wanted, atol=ATOL, rtol=0)
    torch.testing.assert_close(k2_loss, wanted, atol=ATOL, rtol=0)
    torch.testing.assert_close(k1_loss, torch.zeros_like(wanted), atol=ATOL, rtol=0)
    assert (k3_loss - wanted).norm() > 0.1 * wanted.norm(), "k3 is biased"


def test_times_the_ratio_k3_of_an_older_policys_tokens_has_the_gradient_of_the_kl() -> None:
    """Drawn from another policy than π_θ, without noise; without the ratio it has not."""
    old, ref, zeros = categorical(4), categorical(2), torch.zeros(5, dtype=torch.float64)
    gradients = []
    for times_ratio in (True, False):
        logits = categorical(1).requires_grad_()
        row = PolicyRow(None, zeros, old.exp(), old, torch.arange(5), old, ref)
        objective = Objective(kl=KL(1.0, times_ratio=times_ratio))
        policy_loss(logits.log_softmax(0), None, row, objective)[0].backward()
        gradients.append(logits.grad)
    logits = categorical(1).requires_grad_()
    log_p = logits.log_softmax(0)
    wanted = torch.autograd.grad((log_p.exp() * (log_p - ref)).sum(), logits)[0]
    torch.testing.assert_close(gradients[0], wanted, atol=ATOL, rtol=0)
    assert (gradients[1] - wanted).norm() > 0.1 * wanted.norm()


def test_an_unlimited_correction_makes_the_samplers_tokens_the_trainers() -> None:
    """E over the sampler of w · loss is E over the old policy of the loss: over all tokens, without noise."""
    old, sampled = categorical(1), categorical(2)
    advantages = torch.from_numpy(np.random.default_rng(3).normal(0, 1, 5))
    gradients = []
    for drawn_from, correction in ((sampled, Correction("truncate", limit=1e9)), (old, Correction())):
        logprobs = old.clone().requires_grad_()
        row = PolicyRow(None, advantages, drawn_from.exp(), sampled, torch.arange(5))
        policy_loss(logprobs, None, row, Objective(correction=correction))[0].backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(*gradients, atol=ATOL, rtol=0)


def test_weights_in_numbers() -> None:
    """Lengths 2 and 6; a third was cut off. dapo weighs tokens alike, grpo rollouts; dr_grpo knows L_max = 10 only."""
    for loss, expected in {
        "grpo": [1 / 6, 1 / 18, 0],
        "gspo": [1 / 6, 1 / 18, 0],
        "dapo": [1 / 8, 1 / 8, 0],
        "cispo": [1 / 8, 1 / 8, 0],
        "dr_grpo": [1 / 30, 1 / 30, 0],
    }.items():
        assert rollout_weights([2, 6, 0], loss, 10).tolist() == pytest.approx(expected)
        assert rollout_weights([0, 0], loss, 10).tolist() == [0, 0]
        assert rollout_weights([], loss, 10).shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective("cispo", dual_clip=3.0), "dual_clip=3 with loss=cispo, which has no such bound"),
        (lambda: Objective("gspo", dual_clip=3.0), "set loss to one of grpo, dapo, dr_grpo"),
        (lambda: Objective("dapo", dual_clip=1.28), "clip at 1 \\+ clip_high = 1.28"),
        (lambda: Objective(clip_low=0.0), "clip_low=0 and clip_high=0.2 with loss=grpo"),
        (lambda: Objective(clip_low=1.5), "0 < clip_low <= 1"),
        (lambda: Objective(clip_high=math.nan), "clip_high=nan"),
        (lambda: Objective(entropy=-0.1), "objective.entropy=-0.1"),
        (lambda: KL(-1.0), "objective.kl.coefficient=-1.0"),
        (lambda: KL(0.1, "k1"), "the expected gradient of k1 is zero"),
        (lambda: KL(0.1, "k3", "reward"), "only k1 in the reward"),
        (lambda: KL(0.1, "k2", times_ratio=True), "times_ratio=true with estimator=k2"),
        (lambda: Correction("mask", limit=1.0), "objective.correction.limit=1.0"),
        (lambda: Correction("mask", limit=math.inf), "objective.correction.limit=inf"),
    ],
)
def test_nonsense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def as_read(word: str) -> Any:
    """The word as a configuration file gives it: equal to the one in the source, and not the same object."""
    return json.loads(json.dumps(word))


def test_words_of_a_configuration_are_compared_by_value() -> None:
    assert as_read("reward") is not as_read("reward"), "guard"
    for kl in ((0.1, "k1", "loss"), (0.1, "k3", "reward")):
        with pytest.raises(ValueError, match=r"objective\.kl\.estimator"):
            KL(kl[0], *map(as_read, kl[1:]))
    assert KL(0.1, as_read("k1"), as_read("reward")).is_reward and KL(0.1, as_read("k2"), as_read("loss")).is_loss
    logprobs, entropies, row = pack(ragged(), [0.1] * 6)
    for loss in LOSSES:
        for kind, level in product(("none", "truncate", "mask"), ("token", "sequence")):
            ours = objective_of(loss, correction=Correction(kind, level, 1.3))
            keys = {"clip_low": ours.clip_low, "clip_high": ours.clip_high, "dual_clip": ours.dual_clip}
            read = Objective(as_read(loss), **keys, correction=Correction(as_read(kind), as_read(level), 1.3))
            pair = [policy_loss(logprobs, entropies, row, one)[0].item() for one in (ours, read)]
            assert pair[0] == pair[1]
        weights = [rollout_weights([2, 6, 0], one, 10).tolist() for one in (loss, as_read(loss))]
        assert weights[0] == weights[1]


@pytest.mark.parametrize("kl", [KL(0.0), KL(0.0, "k1", "reward")])
def test_a_penalty_of_0_needs_no_reference_policy(kl: KL) -> None:
    logprobs, entropies, row = pack(ragged(), [0.1] * 6)
    assert not kl.is_loss and not kl.is_reward
    without = row._replace(ref_logprobs=None)
    found, sums = policy_loss(logprobs, entropies, without, Objective(kl=kl))
    assert found.item() == policy_loss(logprobs, entropies, without, Objective())[0].item() and "kl" not in sums


def test_published_clips_stand_in_for_those_that_are_not_given() -> None:
    assert [Objective(loss).clip for loss in LOSSES] == [(0.2, 0.2), (0.2, 0.28), (0.2, 0.2), (3e-4, 4e-4), (1.0, 4.0)]
    assert Objective("dapo", clip_high=0.5).clip == (0.2, 0.5)
