"""Engines that write completions, behind one streaming protocol."""

from w2sr.rollouts.embedded import EmbeddedGenerator
from w2sr.rollouts.protocol import Generator

__all__ = ["EmbeddedGenerator", "Generator"]
