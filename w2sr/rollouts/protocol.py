"""The one protocol of everything that writes completions, and what a configuration names to get one.

An engine either runs a model that stays as it is (`open`), or follows a policy that is trained (`follow`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from w2sr.chat import Chat
from w2sr.policy import Policy
from w2sr.types import Completion, Problem, SampleRequest, Sampling


class Generator(Protocol):
    """Streams completions. Each comes as soon as it is finished, so the order is not the order of the requests."""

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """One completion for each request. What a request yields does not depend on the requests beside it."""
        ...


class PolicyGenerator(Generator, Protocol):
    """Samples from a policy that is trained. Its completions bear `logprobs` and the `policy_version` that wrote them.

    It samples from the weights of the last `update`, and the noise of a token depends on its version. One stream at a
    time, and no `update` while one runs. All ranks call `update` and `rest` together.
    """

    @property
    def policy_version(self) -> int:
        """Stamp of the weights; -1 before the first `update`."""
        ...

    def update(self, version: int) -> None:
        """Brings the engine to the policy's present weights, and stamps what is sampled from now on with `version`."""
        ...

    def rest(self) -> None:
        """Frees what training needs more than the engine does. The next call is `update`."""
        ...


class RolloutEngine(ABC):
    """A way to run a model, as a configuration names it (`engine: {class_path: w2sr.rollouts.Embedded}`)."""

    @abstractmethod
    def open(self, model: str, chat: Chat, device: torch.device) -> AbstractContextManager[Generator]:
        """Loads the model (a directory or hub name), for as long as the `with` block lasts.

        Args:
            model: directory or hub name.
            chat: gives the stop tokens and decodes what the model wrote.
            device: where an engine in this process puts its weights; engines elsewhere have their own settings.
        """

    def follow(self, policy: Policy, chat: Chat, device: torch.device) -> AbstractContextManager[PolicyGenerator]:
        """A generator that samples from `policy` as it was at the last `update`, for as long as the `with` block lasts.

        Args:
            policy: the model that is trained.
            chat: gives the stop tokens and decodes what the model wrote.
            device: the trainer's device; see `open`.

        Raises:
            ValueError: this engine cannot follow a policy.
        """
        raise ValueError(
            f"engine={type(self).__name__} only runs models that stay as they are; a policy that is trained needs an "
            "engine that follows it. Set model.init_args.engine.class_path to w2sr.rollouts.Embedded or "
            "w2sr.rollouts.VLLM."
        )


def sample_requests(problem: Problem, chat: Chat, num_samples: int = 1) -> list[SampleRequest]:
    """What an engine is asked for `num_samples` completions of one problem: the prompt as ids, as text and as turns."""
    system = (("system", chat.system),) if chat.system else ()
    messages = (*system, ("user", problem.problem + chat.instruction))
    prompt_ids, prompt = tuple(chat.prompt_ids(problem.problem)), chat.render_prompt(problem.problem)
    return [
        SampleRequest(problem.problem_id, index, prompt_ids, prompt=prompt, messages=messages)
        for index in range(num_samples)
    ]


def check_positions(requests: Sequence[SampleRequest], sampling: Sampling, limit: int | None) -> None:
    """Raises a ValueError where the longest prompt and its completion exceed the positions that the model has."""
    worst = max(requests, key=lambda request: len(request.prompt_ids) - request.num_done)
    num_prompt_tokens = len(worst.prompt_ids) - worst.num_done
    longest = num_prompt_tokens + sampling.max_new_tokens
    if limit is not None and longest > limit:
        raise ValueError(
            f"problem '{worst.problem_id}' has a prompt of {num_prompt_tokens:,} tokens; with "
            f"max_new_tokens={sampling.max_new_tokens:,} it needs {longest:,} positions; the model has {limit:,}. "
            "Lower max_new_tokens, or leave the problem out."
        )
