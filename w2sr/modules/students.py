"""A model for a training module: whole on every process, or sharded over them, as the trainer's strategy says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L

from w2sr.attention import Engine
from w2sr.chat import Chat
from w2sr.kernels import Kernels, use_kernels
from w2sr.modules.fsdp2 import sharding_of
from w2sr.policy import DTypeName, LoRA, Policy, Recompute, empty_policy, load_policy
from w2sr.sharding import Sharding, load_shards, shard_policy


def student_chat(module: Any, *, instruction: str | None = None) -> Chat:
    """The student's tokenizer, template and stop token, by the keys of a module that has them.

    Raises:
        ValueError: what `Chat.load` raises.
    """
    return Chat.load(
        module.student,
        template=module.template,
        stop_token=module.stop_token,
        instruction=instruction,
        template_date=module.template_date,
        trust_remote_code=module.trust_remote_code,
    )


def place_policy(
    model: str | Path,
    sharding: Sharding | None,
    chat: Chat,
    *,
    dtype: DTypeName = "float32",
    attention: Engine | Literal["auto"] = "auto",
    trust_remote_code: bool = False,
    lora: LoRA | None = None,
    gradient_checkpointing: Recompute = False,
    kernels: Kernels = Kernels(),
) -> Policy:
    """Loads a model whole (`sharding` None), or each rank its shard of it: never the whole model in one process.

    Args:
        chat: the model's own; its vocabulary must fit the embedding, and adapters train the row of its stop token.
        sharding: see `w2sr.modules.fsdp2.sharding_of`. Blocks are compiled first, then sharded: what gathers a block's
            weights stands outside of its graphs.
    """
    load = load_policy if sharding is None else empty_policy
    policy = load(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    chat.check_vocabulary(policy.vocab_size)
    if lora is not None:
        policy.add_lora(lora, chat.stop_token_ids[0])
    policy.recompute(gradient_checkpointing)
    use_kernels(policy, kernels)
    if sharding is not None:
        shard_policy(policy, sharding)
        load_shards(policy, model)
    return policy


def frozen_policy(
    module: L.LightningModule, model: str, chat: Chat, *, dtype: DTypeName = "float32", trust_remote_code: bool = False
) -> Policy:
    """Another model beside the one that `module` trains, on its device and placed as that one is, in eval mode."""
    sharding = sharding_of(module)
    policy = place_policy(model, sharding, chat, dtype=dtype, trust_remote_code=trust_remote_code)
    policy.requires_grad_(False).eval()
    return policy.to(module.device) if sharding is None else policy
