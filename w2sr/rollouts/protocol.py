"""The one protocol of every engine that writes completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from w2sr.types import Completion, SampleRequest, Sampling


class Generator(Protocol):
    """Streams completions. Each comes as soon as it is finished, so the order is not the order of the requests."""

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """One completion for each request. What a request yields does not depend on the requests beside it."""
        ...
