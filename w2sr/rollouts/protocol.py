"""The one protocol of everything that writes completions, and what a configuration names to get one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from w2sr.chat import Chat
from w2sr.types import Completion, Problem, SampleRequest, Sampling


class Generator(Protocol):
    """Streams completions. Each comes as soon as it is finished, so the order is not the order of the requests."""

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """One completion for each request. What a request yields does not depend on the requests beside it."""
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
