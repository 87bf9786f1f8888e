"""Liger's kernels beside transformers' own blocks, in Triton's interpreter: prints how far apart they are, as JSON.

A program of its own, because Triton reads TRITON_INTERPRET when it is imported, and because Liger's kernels replace
those of a model type in the whole process.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from triton.runtime import interpreter

from w2sr.kernels import Kernels, use_kernels
from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, new_policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import IGNORE_INDEX, PackedBatch, SampleRequest, Sampling, Segment

VOCAB = 53
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
ADAPTED = "qwen3"
"""The one of them that has adapters here."""


def teach_the_interpreter() -> None:
    """What it lacks of a compiled launch: numbers as scalars of a kernel's own type, and CUDA's reciprocal root."""
    convert = interpreter._implicit_cvt

    def with_numbers(argument: Any) -> Any:
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(argument)

    interpreter._implicit_cvt = with_numbers
    rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # the interpreter finds what is called through `tl`


def policy_of(model_type: str) -> Policy:
    torch.manual_seed(0)
    policy = new_policy(CONFIGS[model_type](**SHAPE, head_dim=8))
    if model_type == ADAPTED:
        policy.add_lora(LoRA(rank=2, alpha=4), stop_token_id=1)
    for weight in policy.parameters():  # as made, norms are ones, biases and half of the adapters zeros
        weight.data.add_(0.05 * torch.randn_like(weight))
    return policy


def row() -> PackedBatch:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, VOCAB, length) for length in (31, 1, 8)]
    return pack_row([Segment(str(n), ids, np.append(ids[1:], IGNORE_INDEX)) for n, ids in enumerate(parts)])


def found(policy: Policy) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    """Log-probabilities and every gradient of a packed row, and sampled completions."""
    policy.zero_grad()
    logprobs_T = policy(row())
    logprobs_T.square().sum().backward()
    gradients = [weight.grad.clone() for weight in policy.parameters() if weight.grad is not None]
    requests = [SampleRequest(f"p{n}", 0, tuple(range(2, 5 + n))) for n in range(3)]
    generator = EmbeddedGenerator(policy, [1], str, num_slots=2)
    stream = generator.stream(requests, Sampling(temperature=1.0, max_new_tokens=8))
    sampled = [done.token_ids for done in sorted(stream, key=lambda done: done.problem_id)]
    return [logprobs_T.detach(), *gradients], sampled


def main() -> None:
    teach_the_interpreter()
    report: dict[str, dict[str, Any]] = {}
    launch = interpreter.GridExecutor.__call__
    for model_type in CONFIGS:
        policy = policy_of(model_type)
        expected, expected_tokens = found(policy)
        with mock.patch("torch.cuda.is_available", return_value=True):
            use_kernels(policy, Kernels(liger=True))
        with mock.patch.object(interpreter.GridExecutor, "__call__", autospec=True, side_effect=launch) as launched:
            tensors, tokens = found(policy)
        pairs = zip(tensors, expected, strict=True)
        report[model_type] = {
            "apart": max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs),
            "gradients": len(tensors) - 1,
            "tokens": [tokens, expected_tokens],
            "kernels": sorted({call.args[0].fn.__name__ for call in launched.call_args_list}),
        }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
