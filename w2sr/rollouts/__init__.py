"""Engines that write completions, behind one streaming protocol."""

from w2sr.rollouts.embedded import Embedded, EmbeddedGenerator
from w2sr.rollouts.protocol import Generator, RolloutEngine

__all__ = ["Embedded", "EmbeddedGenerator", "Generator", "RolloutEngine"]
