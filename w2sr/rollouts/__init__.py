"""Engines that write completions, behind one streaming protocol."""

from w2sr.rollouts.embedded import Embedded, EmbeddedGenerator
from w2sr.rollouts.protocol import Generator, RolloutEngine, sample_requests
from w2sr.rollouts.tool_use import ToolGenerator

__all__ = ["Embedded", "EmbeddedGenerator", "Generator", "RolloutEngine", "ToolGenerator", "sample_requests"]
