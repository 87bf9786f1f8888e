"""The one protocol of everything that writes completions, and what a configuration names to get one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from w2sr.chat import Chat
from w2sr.types import Completion, SampleRequest, Sampling


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
