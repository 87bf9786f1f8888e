"""How a policy's transformer blocks are computed: by torch as they are written, compiled, or with Liger's kernels.

Left out: Liger's fused linear cross entropy. `w2sr.logprobs.summed_logprobs` is the same idea with the same products:
it makes the gradient in the forward pass, from logits that never exist whole. It knows a temperature, adds up the
gradient of the embedding in float32, and runs on a CPU too. Attention is no part of this page: see `w2sr.attention`.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import torch
from transformers import AttentionInterface

from w2sr.attention import ATTENTION_NAME, packed_attention
from w2sr.policy import Policy
from w2sr.untried import say_if_untried

MOST_GRAPHS = 64
"""Of one part of a block. A run needs more than Dynamo's 8, and beyond them Dynamo runs blocks as they are written and
only logs that: rows, prefill and decode, each with gradients, without, and in inference mode; once more for a single
token; and on a CPU for rows beyond two lengths, where inductor adds up more than 4,096 numbers otherwise."""


@dataclass(frozen=True)
class Kernels:
    """How the transformer blocks are computed.

    Attributes:
        compile: norms, rotary embeddings, MLP and projections by torch.compile, once for rows of all lengths. A block
            is parted at attention, which keeps its own kernels. The first steps wait for the compiler. What it gains
            and costs on a CPU: docs/results/compiled.md.
        liger: norms, rotary embeddings and SwiGLU by liger-kernel (arXiv 2410.10989), which needs a CUDA device. It
            replaces them in transformers' own module, so for every model of that type in the process.
    """

    compile: bool = False
    liger: bool = False


def use_kernels(policy: Policy, kernels: Kernels) -> None:
    """Has the blocks computed as `kernels` says. After `add_lora` and `recompute`, which change the blocks.

    Raises:
        ValueError: liger-kernel is asked for where it cannot run, or for a model that it does not know.
    """
    if kernels.liger:
        _use_liger(policy)
    if kernels.compile:
        if torch.cuda.is_available():
            say_if_untried("model.kernels.compile=true")
        compile_blocks(policy)


def compile_blocks(policy: Policy, backend: str = "inductor") -> None:
    """Compiles every block in place, names of weights unchanged: all blocks share the graphs, rows of all lengths too.

    Attention stays outside of the graphs: a layout is a Python object with numbers of its row (the longest segment, the
    shapes of the grid), and each new number would compile anew.
    """
    AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(packed_attention))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    for block in policy.blocks():
        block.compile(backend=backend, dynamic=True)


def _use_liger(policy: Policy) -> None:
    installed = importlib.util.find_spec("liger_kernel") is not None
    if not (installed and torch.cuda.is_available()):
        raise ValueError(
            f"model.kernels.liger=true needs liger-kernel (installed: {installed}) and a CUDA device (available: "
            f"{torch.cuda.is_available()}). pip install 'w2sr[cuda]' on a CUDA machine, or leave it false."
        )
    model_type = policy.lm.config.model_type
    patch = getattr(importlib.import_module("liger_kernel.transformers"), f"apply_liger_kernel_to_{model_type}", None)
    if patch is None:
        raise ValueError(
            f"model.kernels.liger=true, and liger-kernel knows no models of type {model_type!r}. Leave it false."
        )
    say_if_untried("model.kernels.liger=true")
    patch(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=policy.lm)
