"""The first half of a round: problems to groups of rollouts with their rewards, on every rank alike.

Each rank samples, verifies and scores its share of the problems. Then all of it is gathered on every rank, which is
small beside a model, so that all that follows (advantages, weights, rows) is computed alike everywhere.

Legend: N groups of the round, G rollouts of a group.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from w2sr.chat import Chat
from w2sr.curriculum import DynamicSampling, ProblemStream, is_dead
from w2sr.groups import group_requests, verified_groups
from w2sr.modules.phases import Phases
from w2sr.ranks import on_all_ranks
from w2sr.rewards import Rewards, RewardTerm, score_groups
from w2sr.rollouts import PolicyGenerator
from w2sr.rollouts.freshness import check_rollouts
from w2sr.runs import Stopped
from w2sr.stops import STOP, strongest
from w2sr.types import Problem, RolloutGroup, SampleRequest, Sampling
from w2sr.verify import Verifier


@dataclass(frozen=True)
class Collected:
    """The groups that a round trains on, their rewards, and how many groups and tokens were sampled for them."""

    groups: list[RolloutGroup]
    rewards: Rewards
    num_sampled: int
    num_tokens: int


@dataclass
class Collector:
    """What sampling a round takes.

    Attributes:
        chat: renders prompts.
        verifiers: one for each source of the problems.
        rewards: name → term.
        sampling: how rollouts are sampled.
        group_size: G.
        max_staleness: rounds that the sampling weights may be behind the present ones.
        dynamic: replace dead groups, or None to keep them.
        rank, world_size: this rank samples every `world_size`-th problem.
        phases: gets the seconds of sampling, verification and rewards.
    """

    chat: Chat
    verifiers: Mapping[str, Verifier]
    rewards: Mapping[str, RewardTerm]
    sampling: Sampling
    group_size: int
    max_staleness: int
    dynamic: DynamicSampling | None
    rank: int
    world_size: int
    phases: Phases
    ranks: Any = None  # their process group
    _asked: Counter[str] = field(default_factory=Counter)
    _has_told: bool = False

    def collect(
        self, problems: list[Problem], stream: ProblemStream, generator: PolicyGenerator, num_groups: int, number: int
    ) -> Collected:
        """The groups of round `number`: as many as `num_groups` that are not dead where `dynamic` asks for that.

        Where the bound of `dynamic` is met first, dead groups fill the round up: they count in its denominators, and
        have no gradient.

        Raises:
            Stopped: a stop is asked for. The stream is then where it was, so that the round can be asked again.
        """
        before = stream.state_dict()
        self._tell_if_few(stream, num_groups)
        try:
            return self._collect(problems, stream, generator, num_groups, number)
        except Stopped:
            stream.load_state_dict(before)
            raise

    def _tell_if_few(self, stream: ProblemStream, num_groups: int) -> None:
        """Warns once where the curriculum leaves less than a round asks."""
        if self._has_told or (num_wanted := stream.num_wanted()) >= num_groups:
            return
        self._has_told = True
        rank_zero_warn(
            f"data.curriculum (low={stream.curriculum.low:g}, high={stream.curriculum.high:g}) asks {num_wanted:,} of "
            f"{len(stream.problem_ids):,} problems in every pass, and a round asks data.step_problems={num_groups:,}: "
            "rounds ask some problems more than once. Widen the band, raise keep_frac, or lower data.step_problems."
        )

    def _collect(
        self, problems: list[Problem], stream: ProblemStream, generator: PolicyGenerator, num_groups: int, number: int
    ) -> Collected:
        self._asked = Counter()
        alive: list[tuple[RolloutGroup, Rewards]] = []
        dead: list[tuple[RolloutGroup, Rewards]] = []
        num_tokens = 0
        for _ in range(self.dynamic.max_batches if self.dynamic else 1):
            chosen = [problems[index] for index in stream.take(num_groups - len(alive))]
            for group, rewards in self._sample(chosen, generator, number):
                num_correct = sum(rollout.verdict.is_correct for rollout in group.rollouts)
                stream.record(group.problem.problem_id, num_correct, self.group_size, number)
                num_tokens += sum(len(rollout.completion.token_ids) for rollout in group.rollouts)
                (dead if self.dynamic and is_dead(rewards.total[0]) else alive).append((group, rewards))
            if len(alive) >= num_groups:
                break
        num_sampled = len(alive) + len(dead)
        kept = [*alive, *dead][:num_groups]
        return Collected([group for group, _ in kept], Rewards.concat([r for _, r in kept]), num_sampled, num_tokens)

    def _sample(
        self, problems: list[Problem], generator: PolicyGenerator, number: int
    ) -> list[tuple[RolloutGroup, Rewards]]:
        """A group of each problem, with its rewards, on all ranks in the problems' order."""
        requests = group_requests(problems, self.chat, self.group_size, self._asked)
        self._asked.update(problem.problem_id for problem in problems)
        mine = problems[self.rank :: self.world_size]
        own = [
            request
            for start in range(self.rank, len(problems), self.world_size)
            for request in requests[start * self.group_size : (start + 1) * self.group_size]
        ]
        scored, refusal, stop = self._score(mine, own, generator, number)
        with self.phases("wait"):  # where one rank's reward fails, or one is to stop, all raise: none waits for it
            parts = on_all_ranks((scored, refusal and str(refusal), stop), self.ranks)
        if (stopped := strongest(stop for _, _, stop in parts)) is not None:
            raise Stopped(stopped)
        if refusals := [text for _, text, _ in parts if text]:
            raise ValueError(refusals[0]) from refusal
        return [parts[place % self.world_size][0][place // self.world_size] for place in range(len(problems))]

    def _score(
        self, problems: list[Problem], requests: list[SampleRequest], generator: PolicyGenerator, number: int
    ) -> tuple[list[tuple[RolloutGroup, Rewards]], ValueError | None, signal.Signals | None]:
        """This rank's groups with their rewards; the reward that was refused; the signal that ended the sampling.

        It changes nothing that a checkpoint holds, so a stop need not wait for its end.
        """
        try:
            with STOP.at_once():
                with self.phases("rollouts"):
                    completions = list(generator.stream(requests, self.sampling))
                check_rollouts(completions, number, self.max_staleness)
                with self.phases("verify"):
                    groups = verified_groups(problems, requests, completions, self.verifiers, self.chat.opened)
                with self.phases("rewards"):
                    try:
                        return [(group, score_groups([group], self.rewards)) for group in groups], None, None
                    except ValueError as error:
                        if STOP.asked is not None:  # a reward that was interrupted is none that failed
                            return [], None, STOP.asked
                        return [], error, None
        except Stopped as stop:
            return [], None, stop.signum


def check_sampling(sampling: Sampling) -> None:
    """Raises a ValueError for rollouts that cannot teach."""
    if sampling.temperature == 0 or sampling.top_p < 1:
        raise ValueError(
            f"model.rollouts has temperature={sampling.temperature:g} and top_p={sampling.top_p:g}. Greedy rollouts of "
            "a group are all equal, and the ratio of the loss is one of whole distributions: set temperature > 0 and "
            "top_p=1."
        )


def check_room(
    problems: Sequence[Problem], chat: Chat, sampling: Sampling, positions: int | None, max_tokens: int
) -> None:
    """Raises a ValueError unless the longest prompt and its completion fit into the model and into a packed row.

    Args:
        problems: all that can be asked.
        chat: renders prompts.
        sampling: has the token limit of a completion.
        positions: of the model; None where it does not say.
        max_tokens: of a row.
    """
    lengths = {problem.problem_id: len(chat.prompt_ids(problem.problem)) for problem in problems}
    worst = max(lengths, key=lengths.__getitem__)
    needed = lengths[worst] + sampling.max_new_tokens
    told = (
        f"Problem '{worst}' has a prompt of {lengths[worst]:,} tokens; with model.rollouts.max_new_tokens="
        f"{sampling.max_new_tokens:,} (as in model.sampling, where it is not set) a rollout can have {needed:,} tokens"
    )
    if positions is not None and needed > positions:
        raise ValueError(f"{told}, and the model has {positions:,} positions. Lower max_new_tokens.")
    if needed > max_tokens:
        raise ValueError(f"{told}, and a row holds model.max_tokens={max_tokens:,}. Raise it to {needed:,} or more.")


def check_positive(**values: int) -> None:
    """Raises a ValueError unless all are at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"model.{name}={value} must be at least 1.")


def check_round(policy: nn.Module, minibatches: int, step_problems: int) -> None:
    """Raises a ValueError for a round that cannot be trained on as it is sampled.

    Some optimizer steps would have no group, or the policy has dropout: rollouts, old and reference log-probabilities
    are of the policy without it, so the gradient would be that of another policy.
    """
    if minibatches > step_problems:
        raise ValueError(
            f"model.minibatches={minibatches} divides the groups of a round, and data.step_problems={step_problems} "
            f"gives {step_problems}: some optimizer steps would have none. Lower model.minibatches to {step_problems} "
            "or less, or raise data.step_problems."
        )
    for name, module in policy.named_modules():
        numbers = {key: value for key, value in vars(module).items() if "drop" in key or "jitter" in key}
        if isinstance(module, nn.Dropout):
            numbers["p"] = module.p
        for key, value in numbers.items():
            if isinstance(value, float) and value > 0:
                raise ValueError(
                    f"{type(module).__name__} {name!r} of the policy has {key}={value:g}: its passes of training would "
                    "differ from the passes that sample rollouts and score them, by chance. Set model.lora.dropout=0; "
                    "for one of the model itself, set it to 0 in the model's config.json."
                )
