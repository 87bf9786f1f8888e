"""Engines that write completions, behind one streaming protocol."""

from w2sr.rollouts.embedded import Embedded, EmbeddedGenerator
from w2sr.rollouts.openai_server import OpenAIServer
from w2sr.rollouts.protocol import Generator, PolicyGenerator, RolloutEngine, sample_requests
from w2sr.rollouts.tool_use import ToolGenerator
from w2sr.rollouts.vllm_local import VLLM

__all__ = [
    "VLLM",
    "Embedded",
    "EmbeddedGenerator",
    "Generator",
    "OpenAIServer",
    "PolicyGenerator",
    "RolloutEngine",
    "ToolGenerator",
    "sample_requests",
]
