"""The shapes of real models, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from gpu_parts.bench import Bench
from w2sr.attention import available_engines
from w2sr.policy import Policy, new_policy

SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Qwen3-0.6B": (Qwen3Config, {"tie_word_embeddings": True}),
    "Qwen2.5-1.5B": (Qwen2Config, {"tie_word_embeddings": True}),
    "Qwen2.5-7B": (Qwen2Config, {"tie_word_embeddings": False}),
}


def _size(vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
    }


SIZES = {
    "Qwen3-0.6B": _size(151_936, 1024, 3072, 28, 16, 8),
    "Qwen2.5-1.5B": _size(151_936, 1536, 8960, 28, 12, 2),
    "Qwen2.5-7B": _size(152_064, 3584, 18_944, 28, 28, 4),
}


def config_of(bench: Bench, name: str) -> Any:
    """The shape of a model; `tiny`: two small layers in its place."""
    if bench.tiny:
        small: dict[str, Any] = {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        }
        small |= {"hidden_size": 64, "intermediate_size": 96}
        return SHAPES[name][0](**small, **SHAPES[name][1], head_dim=16)
    kind, shape = SHAPES[name]
    return kind(**SIZES[name], **shape, max_position_embeddings=131_072)


def new_model(bench: Bench, name: str) -> Policy:
    torch.manual_seed(0)
    with bench.device:
        policy = new_policy(config_of(bench, name))
    right = [engine for engine in available_engines(bench.device) if engine not in bench.wrong]
    if bench.wrong and right:
        policy.attention = right[0]  # `auto` would take the best, which may be wrong
    return policy


def plain_model(bench: Bench) -> Any:
    torch.manual_seed(0)
    with bench.device:
        return AutoModelForCausalLM.from_config(config_of(bench, "Qwen3-0.6B"), attn_implementation="sdpa")
