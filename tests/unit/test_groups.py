"""Rollout groups: requests, verification, mini-batches, packed rows and what is watched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from w2sr.groups import (
    Experience,
    deal_rows,
    group_requests,
    minibatches,
    policy_row,
    rollout_values,
    round_metrics,
    step_weights,
    verified_groups,
)
from w2sr.losses import KL, Objective
from w2sr.types import IGNORE_INDEX, Completion, Problem, Rollout, RolloutGroup, Verdict

RIGHT = Verdict("correct", "4", "boxed", "equal", "math", "1")
WRONG = Verdict("incorrect", "5", "boxed", "differs", "math", "1")


def rollout(
    name: str, prompt: tuple[int, ...], tokens: tuple[int, ...], verdict: Verdict = RIGHT, **completion: Any
) -> Rollout:
    """A rollout whose sampler gave token 7 the log-probability -0.7."""
    details = {"finish_reason": "stop", "logprobs": tuple(-token / 10 for token in tokens), **completion}
    return Rollout(Problem(name, "quiz", "?", "4"), prompt, Completion(name, 0, tokens, "", **details), verdict)


class OneChat:
    """Renders every problem as the prompt (1, 2)."""

    system = instruction = opened = ""

    def prompt_ids(self, problem: str) -> list[int]:
        return [1, 2]

    def render_prompt(self, problem: str) -> str:
        return problem


class SaysRight:
    """A verifier that calls a completion right when its text is the reference answer."""

    def verify_all(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        return [RIGHT if text == reference else WRONG for text, reference in pairs]


def test_a_problem_that_is_asked_twice_gets_sample_indices_of_its_own() -> None:
    one, two = (Problem(name, "quiz", "?", "4") for name in ("a", "b"))
    requests = group_requests([one, two, one], OneChat(), 2, {"b": 3})  # type: ignore[arg-type]
    assert [(r.problem_id, r.sample_index) for r in requests] == [
        ("a", 0), ("a", 1), ("b", 6), ("b", 7), ("a", 2), ("a", 3),
    ]  # fmt: skip


def test_groups_stand_in_the_order_of_the_problems_whatever_order_completions_come_in() -> None:
    problems = [Problem(name, "quiz", "?", name) for name in ("a", "b")]
    requests = group_requests(problems, OneChat(), 2)  # type: ignore[arg-type]
    texts = {("a", 0): "a", ("a", 1): "x", ("b", 0): "x", ("b", 1): "b"}
    completions = [Completion(*key, (9,), text, "stop") for key, text in reversed(texts.items())]
    groups = verified_groups(problems, requests, completions, {"quiz": SaysRight()})  # type: ignore[dict-item]
    assert [group.problem.problem_id for group in groups] == ["a", "b"]
    assert [[r.verdict.is_correct for r in group.rollouts] for group in groups] == [[True, False], [False, True]]
    assert all(r.prompt_ids == (1, 2) for group in groups for r in group.rollouts)
    with pytest.raises(ValueError, match=r"no verifier for source \['quiz'\]"):
        verified_groups(problems, requests, completions, {})


def test_minibatches_deal_whole_groups_once_a_pass_and_anew_every_round() -> None:
    steps = minibatches(5, 2, parts=2, passes=3, seed=1, number=4)
    assert [len(step) for step in steps] == [6, 4] * 3
    for turn in range(3):
        together = np.concatenate(steps[2 * turn : 2 * turn + 2])
        assert sorted(together) == list(range(10))
        assert all(first % 2 == 0 and second == first + 1 for first, second in together.reshape(-1, 2))
    again = minibatches(5, 2, parts=2, passes=3, seed=1, number=4)
    assert all((a == b).all() for a, b in zip(steps, again, strict=True))
    other = minibatches(5, 2, parts=2, passes=3, seed=1, number=5)
    assert any((a != b).any() for a, b in zip(steps, other, strict=True) if len(a) == len(b))


def four() -> Experience:
    """Completions of 2, 4, 5 and 8 tokens; the second met the token limit, the third has no advantage."""
    reasons = ("stop", "length", "stop", "stop")
    tokens = zip((2, 4, 5, 8), reasons, strict=True)
    rollouts = [rollout("a", (1,), (7,) * count, finish_reason=reason) for count, reason in tokens]
    return Experience(rollouts, np.array([1.0, -1.0, 0.0, 0.5]))


def test_a_token_weighs_as_the_rollouts_of_its_optimizer_step_say() -> None:
    """Lengths 2, 4, 5 of a mini-batch: grpo 1/(3·2), 1/(3·4), 1/(3·5); dapo 1/11; the fourth is of another step."""
    members = np.array([0, 1, 2])
    grpo, _ = step_weights(four(), members, Objective("grpo"), 10)
    assert grpo.tolist() == pytest.approx([1 / 6, 1 / 12, 1 / 15, 0])
    dapo, _ = step_weights(four(), members, Objective("dapo"), 10)
    assert dapo.tolist() == pytest.approx([1 / 11] * 3 + [0])
    constant, _ = step_weights(four(), members, Objective("dr_grpo"), 10)
    assert constant.tolist() == pytest.approx([1 / 30] * 3 + [0])


def test_a_masked_rollout_weighs_nothing_and_its_tokens_are_not_counted() -> None:
    """The second is masked: dapo 1/(2 + 5); grpo still divides by three rollouts."""
    members = np.array([2, 1, 0])
    dapo, used = step_weights(four(), members, Objective("dapo"), 10, mask_cut_off=True)
    assert dapo.tolist() == pytest.approx([1 / 7, 0, 1 / 7, 0]) and used.tolist() == [0]
    grpo, _ = step_weights(four(), members, Objective("grpo"), 10, mask_cut_off=True)
    assert grpo.tolist() == pytest.approx([1 / 6, 0, 1 / 15, 0])
    _, used = step_weights(four(), members, Objective("dapo", entropy=0.1), 10, mask_cut_off=True)
    assert used.tolist() == [2, 0], "a masked rollout is not run for the entropy either"


def test_what_has_no_gradient_is_not_run_unless_a_penalty_or_a_bonus_reads_it() -> None:
    everything = np.arange(4)
    for objective, wanted in (
        (Objective("grpo"), [0, 1, 3]),
        (Objective("grpo", kl=KL(0.1)), [0, 1, 2, 3]),
        (Objective("grpo", kl=KL(0.1, "k1", "reward")), [0, 1, 2, 3]),
        (Objective("grpo", entropy=0.1), [0, 1, 2, 3]),
    ):
        _, used = step_weights(four(), everything, objective, 10)
        assert used.tolist() == wanted, objective
    weights, _ = step_weights(four(), everything, Objective("dapo"), 10)
    assert weights.tolist() == pytest.approx([1 / 19] * 4), "a rollout that is not run counts in the denominator"


def test_a_row_spreads_values_over_the_tokens_that_the_policy_wrote() -> None:
    rollouts = [rollout("a", (1, 2, 3), (7, 8)), rollout("b", (1,), (9, 4, 5))]
    experience = Experience(rollouts, np.array([0.5, -2.0]), ref_logprobs=[np.array([-1.0, -2.0]), np.full(3, -3.0)])
    row = policy_row(experience, np.array([0.25, 0.125]), np.array([1, 0]))
    none = IGNORE_INDEX
    # segment b: tokens 1 9 4 5; segment a: tokens 1 2 3 7 8
    assert row.packed.input_ids.tolist() == [1, 9, 4, 5, 1, 2, 3, 7, 8]
    assert row.packed.labels.tolist() == [9, 4, 5, none, none, none, 7, 8, none]
    assert row.segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert row.advantages.tolist() == [-2, -2, -2, 0, 0, 0, 0.5, 0.5, 0]
    assert row.weights.tolist() == [0.125] * 3 + [0, 0, 0] + [0.25] * 2 + [0]
    assert row.rollout_logprobs.tolist() == pytest.approx([-0.9, -0.4, -0.5, 0, 0, 0, -0.7, -0.8, 0])
    assert row.ref_logprobs is not None and row.ref_logprobs.tolist() == [-3, -3, -3, 0, 0, 0, -1, -2, 0]
    assert row.old_logprobs is None
    back = rollout_values(row.ref_logprobs, row, [3, 2])
    assert [values.tolist() for values in back] == [[-3, -3, -3], [-1, -2]]


def test_a_row_holds_an_equal_prompt_once_and_its_last_token_for_every_rollout() -> None:
    tokens = [("a", (1, 2, 3), (7, 8)), ("b", (4,), (9,)), ("a", (1, 2, 3), (6,)), ("a", (1, 2, 3), (5, 7))]
    experience = Experience([rollout(*of_one) for of_one in tokens], np.array([1.0, 2.0, 3.0, 4.0]))
    row = policy_row(experience, np.ones(4), np.arange(4))
    none = IGNORE_INDEX
    assert row.packed.input_ids.tolist() == [1, 2, 3, 7, 8, 4, 9, 3, 6, 3, 5, 7]
    assert row.packed.labels.tolist() == [none, none, 7, 8, none, 9, none, 6, none, 5, 7, none]
    assert row.packed.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 2, 3, 4]
    assert row.packed.cu_seqlens.tolist() == [0, 5, 7, 11, 16], "bounds of the segments written out"
    assert row.segments.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert row.advantages.tolist() == [0, 0, 1, 1, 0, 2, 0, 3, 0, 4, 4, 0]
    assert [values.tolist() for values in rollout_values(row.advantages, row, [2, 1, 1, 2])] == [
        [1, 1],
        [2],
        [3],
        [4, 4],
    ]


def test_rollouts_of_a_prompt_stand_in_one_row_as_far_as_they_fit() -> None:
    """Prompts of 5 tokens, completions of 2: 4 shared tokens and 3 for each rollout, so four of them take 16."""
    rollouts = [rollout("a", (1, 2, 3, 4, 5), (7, 7)) for _ in range(6)]
    rows = deal_rows(rollouts, 16, 0, 1)
    assert [row.tolist() for row in rows] == [[0, 1, 2, 3], [4, 5]]


def test_rows_hold_every_rollout_once_and_are_equally_many_on_every_rank() -> None:
    rollouts = [rollout(str(number), (1,) * (number % 3 + 1), (7,) * (number % 5 + 1)) for number in range(23)]
    for world_size in (1, 2, 4):
        dealt = [deal_rows(rollouts, 16, rank, world_size) for rank in range(world_size)]
        assert len({len(rows) for rows in dealt}) == 1
        members = np.concatenate([row for rows in dealt for row in rows])
        assert sorted(members) == list(range(23))
        for rows in dealt:
            for row in rows:
                made = policy_row(Experience(rollouts, np.zeros(23)), np.zeros(23), row)
                assert len(made.packed.input_ids) <= 16


def test_a_rank_without_rollouts_has_a_row_that_weighs_nothing() -> None:
    (members,) = deal_rows([], 16, 0, 2)
    row = policy_row(Experience([], np.empty(0)), np.empty(0), members)
    assert row.packed.labels.tolist() == [IGNORE_INDEX]
    assert torch.equal(row.weights, torch.zeros(1)) and rollout_values(row.weights, row, []) == []


def test_a_rollout_that_is_longer_than_a_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"Rollout 0 of problem 'b' has 6 tokens.*model.max_tokens=5"):
        deal_rows([rollout("a", (1,), (7,)), rollout("b", (1, 2), (7, 7, 7, 7))], 5, 0, 1)


def test_what_is_watched_of_two_groups() -> None:
    easy = Problem("a", "quiz", "?", "4", "level 1")
    hard = Problem("b", "quiz", "?", "4", "level 2")
    groups = [
        RolloutGroup(easy, (rollout("a", (1,), (7, 7)), rollout("a", (1,), (7,) * 4))),
        RolloutGroup(hard, (rollout("b", (1,), (7,) * 6, finish_reason="length"), rollout("b", (1,), (7,) * 8, WRONG))),
    ]
    metrics = round_metrics(groups, np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, -1.0]]))
    assert metrics["reward/mean"] == 0.75 and metrics["rollouts/pass_rate"] == 0.75
    assert metrics["pass_rate/level 1"] == 1 and metrics["pass_rate/level 2"] == 0.5
    assert metrics["rollouts/tokens_mean"] == 5 and metrics["rollouts/tokens_max"] == 8  # 2, 4, 6, 8
    assert metrics["rollouts/cut_off_frac"] == 0.25
    assert metrics["rollouts/entropy"] == pytest.approx(0.7)
    assert metrics["groups/dead_frac"] == metrics["groups/all_correct_frac"] == 0.5
    assert metrics["groups/all_wrong_frac"] == 0
    assert metrics["reward/group_std"] == 0.25  # 0 and 1/2
    assert metrics["advantage/std"] == pytest.approx(0.5**0.5)  # of 0, 0, 1, -1
