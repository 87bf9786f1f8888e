"""`GRPOModule.training_step` against the formula of the paper: transformers' own forward, a token at a time.

The rollouts are the engine's own at temperature 0.7. Everything else is computed again here: advantages, the old and
the reference policy's log-probabilities, ratios, clips, penalties and the average of each loss.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from steps_by_hand import (
    Recorder,
    Step,
    Tensors,
    assert_same_gradient,
    eager,
    gradient_of,
    log_softmax_TV,
    norm_of,
    trainer,
)
from torch import Tensor

from w2sr.datamodules import ProblemDataModule
from w2sr.groups import minibatches
from w2sr.losses import KL, Objective
from w2sr.modules import GRPOModule
from w2sr.rewards import RewardTerm
from w2sr.types import DataFile, Rollout, Sampling

TEMPERATURE = 0.7
NUM_GROUPS, GROUP_SIZE = 4, 4
LOSS_ATOL = 2e-6
"""Losses below 1 in float32, summed in another order; the log-probabilities below are exact to 1e-6."""
LOGPROB_ATOL = 1e-5
"""Log-probabilities of down to -10 at temperature 0.7, by packed attention and by transformers' own."""


class Case(NamedTuple):
    """How a round is cut into optimizer steps, and what is optimised."""

    minibatches: int
    passes: int
    objective: Objective
    mask_cut_off: bool = False


CASES = {
    "one update": Case(1, 1, Objective("grpo")),
    "two passes": Case(1, 2, Objective("grpo", clip_low=0.05, clip_high=0.08)),
    "all at once": Case(2, 2, Objective("grpo", 0.05, 0.08, kl=KL(0.2), entropy=0.03), mask_cut_off=True),
    "by tokens": Case(2, 1, Objective("dapo", 0.05, 0.08)),
}


def shortness(rollout: Rollout) -> float:
    """The third problem's rollouts all earn 1, so that its group has no advantage."""
    return 1.0 if rollout.problem.problem_id == "q2" else -len(rollout.completion.token_ids) / 10


class Run(NamedTuple):
    case: Case
    module: GRPOModule
    rollouts: list[Rollout]
    steps: list[Step]
    line: dict[str, float]
    num_rows: int


@pytest.fixture(scope="module", params=CASES)
def run(request: Any, tiny_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One round of 4 groups of 4 rollouts on the tiny student, by plain SGD."""
    return one_round(CASES[request.param], tiny_world, tmp_path_factory.mktemp("grpo"))


def one_round(case: Case, tiny_world: Any, folder: Path, **changes: Any) -> Run:
    lines = [json.loads(line) for line in tiny_world.benchmark.read_text().splitlines()[:NUM_GROUPS]]
    named = [{**line, "problem_id": f"q{number}"} for number, line in enumerate(lines)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in named))
    recorder = Recorder()
    module = GRPOModule(
        str(tiny_world.student),
        optimizer=recorder,
        learning_rates={"grpo": 0.05},
        **{
            "clip_norm": 0.0,
            "rollouts": Sampling(TEMPERATURE, max_new_tokens=12, seed=4, stop_text=("e", "3", "7")),
            "group_size": GROUP_SIZE,
            "rewards": {"short": RewardTerm(shortness, 2.0)},
            "objective": case.objective,
            "mask_cut_off": case.mask_cut_off,
            "minibatches": case.minibatches,
            "passes": case.passes,
            "max_tokens": 66,
            **changes,
        },
    )
    data = ProblemDataModule(problems={"quiz": DataFile(str(folder / "problems.jsonl"))}, step_problems=NUM_GROUPS)
    packed = []
    module.configure_model()
    assert module.policy is not None
    module.policy.register_forward_hook(lambda policy, given, made: packed.append(policy.training))
    trainer(folder, max_epochs=1).fit(module, datamodule=data)
    assert module.last_collected is not None
    rollouts = [rollout for group in module.last_collected.groups for rollout in group.rollouts]
    line = json.loads((folder / "rounds.jsonl").read_text())
    return Run(case, module, rollouts, recorder.steps(module), line, sum(packed))


def advantages_by_hand(rollouts: Sequence[Rollout]) -> list[float]:
    """(reward - mean) / (std + 1e-4) of each group; the weight of the reward is 2."""
    found: list[float] = []
    for start in range(0, len(rollouts), GROUP_SIZE):
        rewards = [2.0 * shortness(rollout) for rollout in rollouts[start : start + GROUP_SIZE]]
        mean, spread = statistics.mean(rewards), statistics.stdev(rewards)
        found += [(reward - mean) / (spread + 1e-4) for reward in rewards]
    return found


def of_tokens(lm: Any, rollout: Rollout, temperature: float = TEMPERATURE) -> list[tuple[Tensor, Tensor]]:
    """Log-probability and entropy of each token of the completion."""
    begin, token_ids = len(rollout.prompt_ids) - 1, rollout.completion.token_ids
    log_p_TV = log_softmax_TV(lm, (*rollout.prompt_ids, *token_ids), temperature)[begin:-1]
    return [
        (log_p_V[token], -(log_p_V.exp() * log_p_V).sum()) for log_p_V, token in zip(log_p_TV, token_ids, strict=True)
    ]


def is_masked(run: Run, rollout: Rollout) -> bool:
    return run.case.mask_cut_off and rollout.completion.finish_reason == "length"


def loss_by_hand(run: Run, lm: Any, frozen: list[list[float]], members: Sequence[int]) -> tuple[Tensor, list[float]]:
    """The loss of one optimizer step on `members`, and the ratio of every token that is learned from."""
    objective, advantages = run.case.objective, advantages_by_hand(run.rollouts)
    low, high = objective.clip
    total, ratios = torch.zeros(()), []
    learned = [member for member in members if not is_masked(run, run.rollouts[member])]
    num_tokens = sum(len(run.rollouts[member].completion.token_ids) for member in learned)
    for member in learned:
        tokens = of_tokens(lm, run.rollouts[member])
        of_rollout = torch.zeros(())
        for (now, entropy), old in zip(tokens, frozen[member], strict=True):
            ratio = (now - old).exp()
            gain = ratio * advantages[member]
            if ratio > 1 + high and advantages[member] > 0:
                gain = torch.tensor((1 + high) * advantages[member])
            elif ratio < 1 - low and advantages[member] < 0:
                gain = torch.tensor((1 - low) * advantages[member])
            log_r = old - now  # the reference policy is the policy at the start of this first round
            penalty = objective.kl.coefficient * (log_r.exp() - 1 - log_r)
            of_rollout = of_rollout - gain + penalty - objective.entropy * entropy
            ratios.append(ratio.item())
        share = num_tokens if objective.loss == "dapo" else len(members) * len(tokens)
        total = total + of_rollout / share
    return total, ratios


def frozen_logprobs(tiny_world: Any, rollouts: Sequence[Rollout], weights: Tensors) -> list[list[float]]:
    lm = eager(tiny_world.student, weights)
    with torch.no_grad():
        return [[logprob.item() for logprob, _ in of_tokens(lm, rollout)] for rollout in rollouts]


def test_every_update_has_the_gradient_of_the_formula(run: Run, tiny_world: Any) -> None:
    lengths = [len(rollout.completion.token_ids) for rollout in run.rollouts]
    assert len(run.rollouts) == 16 and len(set(lengths)) >= 4, f"guard: rollouts of unequal length: {lengths}"
    parts, passes = run.case.minibatches, run.case.passes
    plan = minibatches(NUM_GROUPS, GROUP_SIZE, parts, passes, seed=4, number=0)
    assert len(run.steps) == len(plan) == parts * passes
    assert run.num_rows > len(plan), "guard: some update has several rows"
    old = frozen_logprobs(tiny_world, run.rollouts, run.steps[0].weights)
    losses, num_clipped = [], 0
    for step, members in zip(run.steps, plan, strict=True):
        lm = eager(tiny_world.student, step.weights)
        loss, ratios = loss_by_hand(run, lm, old, members.tolist())
        assert_same_gradient(step.gradient, gradient_of(lm, loss))
        losses.append(loss.item())
        low, high = run.case.objective.clip
        num_clipped += sum(not 1 - low <= ratio <= 1 + high for ratio in ratios)
    assert (num_clipped > 0) == (len(plan) > 1), "guard: where ratios leave 1, some meet the clip"
    assert run.line["train/loss"] == pytest.approx(statistics.mean(losses), abs=LOSS_ATOL)
    norms = [norm_of(step.gradient) for step in run.steps]
    assert run.line["train/grad_norm"] == pytest.approx(statistics.mean(norms), rel=1e-4)


def test_the_sampler_and_the_update_see_one_policy_at_another_temperature_than_1(run: Run, tiny_world: Any) -> None:
    """Before the first update the ratio is 1, and the sampler's log-probabilities are the trainer's, at 0.7 alone."""
    at = dict.fromkeys((TEMPERATURE, 1.0), 0.0)
    lm = eager(tiny_world.student, run.steps[0].weights)
    with torch.no_grad():
        for temperature in at:
            for rollout in run.rollouts:
                found = [logprob.item() for logprob, _ in of_tokens(lm, rollout, temperature)]
                pairs = zip(found, rollout.completion.logprobs or (), strict=True)
                at[temperature] = max(at[temperature], *(abs(mine - theirs) for mine, theirs in pairs))
    assert at[TEMPERATURE] < LOGPROB_ATOL and at[1.0] > 0.1, at
    assert run.line["policy/mismatch_kl"] < 1e-8
    if len(run.steps) == 1:
        assert run.line["policy/ratio"] == 1 and run.line["policy/old_kl"] == 0


def test_what_is_watched_of_a_round_is_a_mean_over_its_tokens(run: Run, tiny_world: Any) -> None:
    """Over the tokens of the rollouts that were run, in every pass."""
    objective, plan = run.case.objective, minibatches(NUM_GROUPS, GROUP_SIZE, *run.case[:2], seed=4, number=0)
    old = frozen_logprobs(tiny_world, run.rollouts, run.steps[0].weights)
    every = bool(objective.kl.coefficient or objective.entropy)
    ratios, entropies, k3 = [], [], []
    for step, members in zip(run.steps, plan, strict=True):
        lm = eager(tiny_world.student, step.weights)
        for member in members:
            rollout = run.rollouts[member]
            if is_masked(run, rollout) or not (every or advantages_by_hand(run.rollouts)[member]):
                continue
            with torch.no_grad():
                tokens = of_tokens(lm, rollout)
            entropies += [entropy.item() for _, entropy in tokens]
            ratios += [math.exp(now.item() - then) for (now, _), then in zip(tokens, old[member], strict=True)]
            k3 += [1 / ratio - 1 + math.log(ratio) for ratio in ratios[-len(tokens) :]]
    assert run.line["train/loss_tokens"] == len(ratios) and len(ratios) > 0
    assert run.line["policy/ratio"] == pytest.approx(statistics.mean(ratios), rel=1e-5)
    assert run.line["policy/entropy"] == pytest.approx(statistics.mean(entropies), rel=1e-5)
    if objective.kl.coefficient:
        assert run.line["policy/kl"] == pytest.approx(statistics.mean(k3), rel=1e-3)
        assert run.line["policy/kl"] > 1e-4, "guard: the policy left the reference"
    lengths = [len(r.prompt_ids) + len(r.completion.token_ids) for r in run.rollouts]
    counted = [m for members in plan for m in members if every or advantages_by_hand(run.rollouts)[m]]
    counted = [m for m in counted if not is_masked(run, run.rollouts[m])]
    assert run.module.num_trained_tokens == sum(lengths[member] for member in counted)
    assert run.module.num_generated_tokens == sum(len(r.completion.token_ids) for r in run.rollouts)


def test_the_cases_are_interesting(run: Run) -> None:
    cut_off = sum(rollout.completion.finish_reason == "length" for rollout in run.rollouts)
    assert 0 < cut_off < 16, "some rollouts meet the limit of 12 tokens, others stop"
    advantages = advantages_by_hand(run.rollouts)
    by_problem = {rollout.problem.problem_id: [] for rollout in run.rollouts}  # type: dict[str, list[float]]
    for rollout, advantage in zip(run.rollouts, advantages, strict=True):
        by_problem[rollout.problem.problem_id].append(advantage)
    assert [any(by_problem[name]) for name in ("q0", "q1", "q2", "q3")] == [True, True, False, True]


def test_the_gradient_is_scaled_down_to_the_limit(tiny_world: Any, tmp_path: Path) -> None:
    found = one_round(CASES["one update"], tiny_world, tmp_path, clip_norm=0.01)
    assert norm_of(found.steps[0].gradient) == pytest.approx(0.01, rel=1e-4)
    assert found.line["train/grad_norm"] > 0.1, "what is logged is the norm before"
