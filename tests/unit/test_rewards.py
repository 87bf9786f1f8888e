"""What rollouts earn: each reward against arithmetic in the comment, and the letters of rewards that fail."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.cli import LightningCLI

from w2sr.config_errors import Parser
from w2sr.rewards import Correct, Format, Length, Overlong, Repetition, Rewards, RewardTerm, score_groups
from w2sr.rewards.examples import rollout
from w2sr.types import Rollout, RolloutGroup

TOLERANCE = 1e-12
"""Two ways to one cosine differ in the last bits of float64."""


def group(*rollouts: Rollout) -> RolloutGroup:
    return RolloutGroup(rollouts[0].problem, rollouts)


def test_an_answer_that_was_not_graded_in_time_is_wrong_and_a_missing_one_is_not() -> None:
    reward = Correct(right=2.0, wrong=-3.0, no_answer=-5.0)
    labels: list[Any] = ["correct", "incorrect", "timeout", "no_answer"]
    assert [reward(rollout(label=label)) for label in labels] == [2.0, -3.0, -3.0, -5.0]
    assert [Correct()(rollout(label=label)) for label in labels] == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "finish", "boxed", "tagged"),
    [
        (r"It is \boxed{7}.", "stop", 1.0, 0.0),
        (r"It is \boxed{7}.", "length", 0.0, 0.0),  # went on behind its answer until it was cut off
        (r"It is \boxed{7}.", "unknown", 0.0, 0.0),
        (r"It is \boxed{}.", "stop", 0.0, 0.0),
        ("It is 7.", "stop", 0.0, 0.0),
        ("<think>2 + 5</think><answer>7</answer>", "stop", 0.0, 1.0),
        (r"<think>2 + 5 \boxed{7} <answer>7</answer>", "stop", 0.0, 0.0),  # thinking that never ends
        ("", "stop", 0.0, 0.0),
    ],
)
def test_format_asks_for_the_demanded_form_and_an_end(text: str, finish: Any, boxed: float, tagged: float) -> None:
    for label in ("correct", "incorrect"):
        one = rollout(text, label, finish=finish)  # type: ignore[arg-type]
        assert (Format()(one), Format(("answer_tag",))(one)) == (boxed, tagged)
    assert Format(("answer_tag", "boxed"))(rollout(text, finish=finish)) == max(boxed, tagged)


def test_overlong_falls_over_the_buffer_only() -> None:
    reward = Overlong(max_tokens=50, buffer_tokens=20, penalty=0.5)
    # 50 - 20 = 30 tokens are free; then 0.5/20 = 0.025 a token
    paid = {30: 0.0, 31: -0.025, 40: -0.25, 50: -0.5, 51: -0.5, 0: 0.0}
    for num_tokens, expected in paid.items():
        assert reward(rollout(num_tokens=num_tokens)) == pytest.approx(expected, abs=TOLERANCE)
    assert math.copysign(1, reward(rollout(num_tokens=3))) == 1, "no negative zero"


def test_overlong_is_the_published_formula_for_every_length() -> None:
    """Equation 13 of DAPO, in its three cases."""
    limit, cache = 37, 11
    for length in range(50):
        if length <= limit - cache:
            expected = 0.0
        elif length <= limit:
            expected = ((limit - cache) - length) / cache
        else:
            expected = -1.0
        assert Overlong(limit, cache)(rollout(num_tokens=length)) == pytest.approx(expected, abs=TOLERANCE)


def test_repetition_counts_ngrams_that_stood_there_before() -> None:
    # 6 words, 5 bigrams: "a b" "b a" "a b" "b a" "a c"; 3 are distinct
    assert Repetition(ngram=2, penalty=2.0)(rollout("a b A b a c")) == pytest.approx(-2.0 * 2 / 5, abs=TOLERANCE)
    assert Repetition(ngram=2)(rollout("a")) == 0.0, "fewer words than an n-gram"
    assert Repetition()(rollout("")) == 0.0
    assert Repetition()(rollout("wait " * 1_002)) == -999 / 1_000


def test_length_is_between_its_ends_and_each_verdict_has_its_own() -> None:
    reward = Length(max_tokens=40, right_short=3.0, right_long=1.0, wrong_short=-4.0, wrong_long=-2.0)
    # progress 1/4: (1 + cos(45°)) / 2 = 0.853553…
    share = (1 + math.sqrt(0.5)) / 2
    assert reward(rollout(num_tokens=10)) == pytest.approx(1 + 2 * share, abs=TOLERANCE)
    assert reward(rollout(num_tokens=10, label="no_answer")) == pytest.approx(-2 - 2 * share, abs=TOLERANCE)
    assert reward(rollout(num_tokens=40)) == reward(rollout(num_tokens=60)) == 1.0
    assert reward(rollout(num_tokens=0)) == 3.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Overlong(10, 11), "buffer_tokens=11, max_tokens=10"),
        (lambda: Overlong(10, 0), "buffer_tokens=0"),
        (lambda: Overlong(10, 5, -1.0), "penalty=-1.0"),
        (lambda: Repetition(0), "ngram=0"),
        (lambda: Repetition(2, float("inf")), "penalty=inf"),
        (lambda: Length(0), "max_tokens >= 1; it has 0"),
        (lambda: Format(("boxd",)), "Unknown extraction rule 'boxd'. Did you mean boxed?"),
        (lambda: RewardTerm(Correct(), float("nan")), "weight=nan"),
    ],
)
def test_wrong_settings_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        make()


def test_the_total_is_the_weighted_sum_and_the_parts_are_apart() -> None:
    groups = [
        group(rollout("a a a", "correct", num_tokens=5), rollout("a b", "incorrect", num_tokens=9)),
        group(rollout("a b", "correct", num_tokens=8), rollout("a a", "incorrect", num_tokens=6)),
        group(rollout("", "no_answer"), rollout("", "no_answer")),
    ]
    terms = {
        "correct": RewardTerm(Correct(no_answer=-1.0), 2.0),
        "short": RewardTerm(Overlong(max_tokens=9, buffer_tokens=4), 0.5),
        "watched": RewardTerm(len_of_text, 0.0),
    }
    rewards = score_groups(groups, terms)
    assert rewards.total.dtype == np.float64 and rewards.total.shape == (3, 2)
    np.testing.assert_array_equal(rewards.parts["correct"], [[1, 0], [1, 0], [-1, -1]])
    np.testing.assert_array_equal(rewards.parts["short"], [[0, -1], [-0.75, -0.25], [0, 0]])
    np.testing.assert_array_equal(rewards.parts["watched"], [[5, 3], [3, 3], [0, 0]])
    np.testing.assert_array_equal(rewards.total, [[2, -0.5], [2 - 0.375, -0.125], [-2, -2]])


def len_of_text(one: Rollout) -> int:
    return len(one.completion.text)


def test_rewards_of_single_groups_join_to_those_of_all() -> None:
    groups = [group(rollout(label="correct"), rollout(label=label)) for label in ("correct", "incorrect")]  # type: ignore[arg-type]
    terms = {"a": RewardTerm(Correct()), "b": RewardTerm(Format(), 0.25)}
    joined = Rewards.concat([score_groups([one], terms) for one in groups])
    whole = score_groups(groups, terms)
    np.testing.assert_array_equal(joined.total, whole.total)
    assert joined.parts.keys() == whole.parts.keys()
    assert all(np.array_equal(joined.parts[name], whole.parts[name]) for name in terms)


def test_equal_rollouts_earn_exactly_the_same() -> None:
    """Weights that no binary fraction is: the sum of a rollout's parts must not depend on where it stands."""
    terms = {"a": RewardTerm(Correct(), 0.1), "b": RewardTerm(Repetition(1), 0.2), "c": RewardTerm(Length(7), 0.3)}
    rewards = score_groups([group(*[rollout("a a a b", num_tokens=3)] * 7)], terms)
    assert len(set(rewards.total[0].tolist())) == 1


def _raises(one: Rollout) -> float:
    return 1 / len(one.completion.token_ids)


LONG = "Let me think " * 20


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (_raises, "It raised ZeroDivisionError: division by zero."),
        (lambda one: float("nan"), "It returned nan, which would make every weight of the policy NaN."),
        (lambda one: -math.inf, "It returned -inf"),
        (lambda one: None, "It returned None (NoneType), no float."),
        (lambda one: "1.0", "It returned '1.0' (str), no float."),
        (lambda one: np.ones(3), "(ndarray), no float."),
    ],
)
def test_a_reward_that_fails_is_named_with_its_rollout(reward: Any, said: str) -> None:
    bad = rollout(LONG, problem_id="gsm8k/12", sample_index=3)
    with pytest.raises(ValueError) as caught:
        score_groups([group(bad)], {"mine": RewardTerm(reward)})
    letter = str(caught.value)
    assert said in letter
    assert "model.rewards.mine" in letter and "sample 3 of problem 'gsm8k/12'" in letter
    assert repr(LONG[:60] + "…") in letter and LONG[:70] not in letter
    assert isinstance(caught.value.__cause__, ZeroDivisionError) == (reward is _raises)


def test_numbers_of_other_kinds_are_numbers() -> None:
    for value in (True, 1, np.float32(1), np.int64(1)):
        assert score_groups([group(rollout())], {"x": RewardTerm(lambda one, value=value: value)}).total == [[1.0]]  # type: ignore[misc]


def test_a_reward_may_be_stopped_by_the_user() -> None:
    def interrupted(one: Rollout) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_groups([group(rollout())], {"x": RewardTerm(interrupted)})


def test_no_term_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.rewards has no term"):
        score_groups([group(rollout())], {})


class Rewarded(L.LightningModule):
    """A module with the key that GRPO has."""

    def __init__(self, rewards: dict[str, RewardTerm] | None = None) -> None:
        super().__init__()
        self.rewards = rewards


def parsed(*words: str) -> Any:
    cli = LightningCLI(
        Rewarded,
        L.LightningDataModule,
        run=False,
        save_config_callback=None,
        parser_class=Parser,
        trainer_defaults={"logger": False, "accelerator": "cpu"},
        args=list(words),
    )
    return cli.model.rewards


CORRECT = "{reward: {class_path: w2sr.rewards.Correct, init_args: {wrong: -1}}, weight: 2}"


def test_the_command_line_names_classes_and_functions() -> None:
    rewards = parsed(
        f"--model.rewards={{correct: {CORRECT}, mine: {{reward: w2sr.rewards.examples.rollout}}}}",
        "--model.rewards.mine.weight=0.5",
    )
    assert rewards["correct"] == RewardTerm(Correct(wrong=-1.0), 2.0)
    assert rewards["mine"] == RewardTerm(rollout, 0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([f"--model.rewards={{correct: {CORRECT}}}", "--model.rewards.corect.weight=0.5"], "required: reward"),
        (["--model.rewards={c: {reward: {class_path: w2sr.rewards.Corect}}}"], "has no attribute 'Corect'"),
        (["--model.rewards={c: {reward: w2sr.rewards.examples.nothing}}"], "has no attribute 'nothing'"),
        ([f"--model.rewards={{c: {CORRECT}}}", "--model.rewards.c.wieght=2"], "wieght"),
    ],
)
def test_an_unknown_name_is_refused_by_the_command_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    message = capsys.readouterr().err
    assert said in message and "Expected a path" not in message
