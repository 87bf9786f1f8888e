"""A round's groups: which are kept when some teach nothing, what is counted, and what is refused before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from test_groups import OneChat, SaysRight

from w2sr.curriculum import DynamicSampling
from w2sr.modules import GRPOModule
from w2sr.modules.collect import Collected, Collector, check_positive, check_room, check_sampling
from w2sr.modules.phases import Phases
from w2sr.rewards import Correct, RewardTerm
from w2sr.types import Completion, Problem, SampleRequest, Sampling

PROBLEMS = [Problem(name, "quiz", name, "right") for name in "abcdefgh"]


class InOrder:
    """A stream that asks the problems in the file's order, round and round, and keeps what is recorded."""

    def __init__(self) -> None:
        self.place, self.recorded = 0, list[tuple[str, int, int, int]]()

    def take(self, number: int) -> list[int]:
        taken = [(self.place + step) % len(PROBLEMS) for step in range(number)]
        self.place += number
        return taken

    def record(self, *of_group: Any) -> None:
        self.recorded.append(of_group)

    def num_wanted(self) -> int:
        return len(PROBLEMS)

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}


class Scripted:
    """Answers every sample of the problems `split` half right and half wrong, of all others right."""

    policy_version = 5

    def __init__(self, split: str) -> None:
        self.split, self.asked = split, list[tuple[str, int]]()

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Any:
        for request in reversed(requests):
            self.asked.append((request.problem_id, request.sample_index))
            right = request.problem_id not in self.split or request.sample_index % 2 == 0
            tokens = (7,) * (3 if right else 2)
            yield Completion(
                request.problem_id, request.sample_index, tokens, "right" if right else "wrong", "stop",
                logprobs=(-1.0,) * len(tokens), policy_version=5,
            )  # fmt: skip


def collected(
    split: str, num_groups: int, max_batches: int | None, num_problems: int = 8
) -> tuple[Collected, InOrder, Scripted]:
    stream, generator = InOrder(), Scripted(split)
    collector = Collector(
        chat=OneChat(),  # type: ignore[arg-type]
        verifiers={"quiz": SaysRight()},  # type: ignore[dict-item]
        rewards={"correct": RewardTerm(Correct())},
        sampling=Sampling(1.0, max_new_tokens=4),
        group_size=2,
        max_staleness=0,
        dynamic=None if max_batches is None else DynamicSampling(max_batches),
        rank=0,
        world_size=1,
        phases=Phases(),
    )
    made = collector.collect(PROBLEMS[:num_problems], stream, generator, num_groups, 5)  # type: ignore[arg-type]
    return made, stream, generator


def names(made: Collected) -> str:
    return "".join(group.problem.problem_id for group in made.groups)


def test_groups_that_teach_are_kept_before_those_that_do_not() -> None:
    """Of a, b, c only b teaches; then d and e are asked, of which e teaches; the bound of 2 is met, and a fills up."""
    made, _, generator = collected("be", num_groups=3, max_batches=2)
    assert names(made) == "bea" and made.rewards.total.tolist() == [[1, 0], [1, 0], [1, 1]]
    assert made.num_sampled == 5 and {name for name, _ in generator.asked} == set("abcde")
    assert [rollout.verdict.is_correct for rollout in made.groups[0].rollouts] == [True, False]


def test_a_round_ends_as_soon_as_it_is_full() -> None:
    """a teaches, b, c and d do not, e does: 2 + 1 + 1 + 1 groups are sampled, and f is not asked."""
    made, stream, _ = collected("aef", num_groups=2, max_batches=10)
    assert names(made) == "ae" and made.num_sampled == 5 and stream.place == 5
    assert made.num_tokens == 2 * 5 + 3 * 6, "of all that were sampled: 3 and 2 tokens, or twice 3"
    made, stream, _ = collected("ab", num_groups=2, max_batches=10)
    assert names(made) == "ab" and made.num_sampled == stream.place == 2


def test_without_dynamic_sampling_a_round_is_what_was_asked_first() -> None:
    made, stream, _ = collected("b", num_groups=3, max_batches=None)
    assert names(made) == "abc" and made.num_sampled == 3 and stream.place == 3


def test_every_group_is_recorded_with_its_number_of_right_rollouts() -> None:
    _, stream, _ = collected("be", num_groups=3, max_batches=2)
    assert stream.recorded == [("a", 2, 2, 5), ("b", 1, 2, 5), ("c", 2, 2, 5), ("d", 2, 2, 5), ("e", 1, 2, 5)]


def test_a_problem_that_is_asked_again_in_a_round_gets_other_samples() -> None:
    """Two problems that teach nothing, asked twice each: sample indices 0 and 1, then 2 and 3."""
    made, _, generator = collected("", num_groups=2, max_batches=2, num_problems=8)
    assert names(made) == "ab" and made.num_sampled == 4
    made, _, generator = collected("", num_groups=8, max_batches=2)
    assert sorted(index for name, index in generator.asked if name == "a") == [0, 1, 2, 3]


def test_rollouts_that_cannot_teach_are_refused() -> None:
    check_sampling(Sampling(0.1, 1.0))
    for bad in (Sampling(0.0, 1.0), Sampling(1.0, 0.99)):
        with pytest.raises(ValueError, match=rf"temperature={bad.temperature:g} and top_p={bad.top_p:g}"):
            check_sampling(bad)
    check_positive(group_size=1)
    with pytest.raises(ValueError, match=r"model\.passes=0 must be at least 1"):
        check_positive(group_size=1, passes=0)


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "wanted"), [(3, -1, 60), (3, 7, 7), (3, 1, 1), (-1, 7, 7), (None, 7, 7), (3, 61, 60)]
)
def test_a_run_has_the_optimizer_steps_of_its_rounds_or_the_limit(
    max_epochs: int | None, max_steps: int, wanted: int
) -> None:
    """5 rounds an epoch, each of 2 mini-batches in 2 passes: 20 steps an epoch."""
    module = GRPOModule("no model is loaded", minibatches=2, passes=2)
    fit_loop = SimpleNamespace(setup_data=lambda: None)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        fit_loop=fit_loop, max_epochs=max_epochs, max_steps=max_steps, num_training_batches=5.0
    )
    assert module.num_steps() == wanted


def test_a_run_without_an_end_is_refused() -> None:
    module = GRPOModule("no model is loaded")
    fit_loop = SimpleNamespace(setup_data=lambda: None)
    module._trainer = SimpleNamespace(fit_loop=fit_loop, max_epochs=-1, max_steps=-1, num_training_batches=5.0)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"trainer\.max_epochs=-1 and trainer\.max_steps=-1 give the run no end"):
        module.num_steps()


class Words(OneChat):
    """A prompt of so many tokens as the problem has letters."""

    def prompt_ids(self, problem: str) -> list[int]:
        return [1] * len(problem)


def test_the_longest_prompt_with_its_completion_fits_exactly_or_is_named() -> None:
    """Prompts of 2 and 5 tokens, completions of up to 4: 9 are needed."""
    problems = [Problem("short", "quiz", "ab", "4"), Problem("long", "quiz", "abcde", "4")]
    sampling, chat = Sampling(1.0, max_new_tokens=4), Words()
    check_room(problems, chat, sampling, 9, 9)  # type: ignore[arg-type]
    check_room(problems, chat, sampling, None, 9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Problem 'long' has a prompt of 5 tokens; .* 9 tokens, and the model has 8"):
        check_room(problems, chat, sampling, 8, 9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a row holds model\.max_tokens=8\. Raise it to 9"):
        check_room(problems, chat, sampling, 9, 8)  # type: ignore[arg-type]
