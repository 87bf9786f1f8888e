"""A model for a training module: whole on every process, or sharded over them, as the trainer's strategy says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from w2sr.attention import Engine
from w2sr.chat import Chat
from w2sr.kernels import Kernels, use_kernels
from w2sr.modules.fsdp2 import sharding_of
from w2sr.policy import DTypeName, LoRA, Policy, Recompute, check_model, empty_policy, load_policy
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
    checked: bool = True,
) -> Policy:
    """Loads a model whole (`sharding` None), or each rank its shard of it: never the whole model in one process.

    Args:
        chat: the model's own; its vocabulary must fit the embedding, and adapters train the row of its stop token.
        sharding: see `w2sr.modules.fsdp2.sharding_of`. Blocks are compiled first, then sharded: what gathers a block's
            weights stands outside of its graphs.
        checked: compare the model with its own forward pass, once its weights are there (see `check_model`).
    """
    options: Any = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
    if sharding is None:
        policy = load_policy(model, **options, checked=checked)
    else:
        policy = empty_policy(model, **options)
    chat.check_vocabulary(policy.vocab_size)
    if lora is not None:
        policy.add_lora(lora, chat.stop_token_ids[0])
    policy.recompute(gradient_checkpointing)
    use_kernels(policy, kernels)
    if sharding is not None:
        shard_policy(policy, sharding)
        load_shards(policy, model)
        if checked:
            check_model(policy)
    if rates := dropouts(policy.lm.config):
        said = ", ".join(f"{key}={rate}" for key, rate in rates.items())
        rank_zero_info(f"{model} trains with dropout: {said}. Set these keys of its config.json to 0 to train without.")
    if not checked:
        rank_zero_warn(f"check_model=false: {model} was not compared with its own forward pass on packed rows.")
    return policy


def dropouts(config: Any) -> dict[str, float]:
    """Key → rate of what a model drops at random while it trains, its attention and unused heads aside.

    GPT-2's resid_pdrop and embd_pdrop, OPT's dropout and layerdrop, and so on.
    """
    unused = ("att", "classifier", "summary")
    return {
        key: value
        for key, value in config.get_text_config().to_dict().items()
        if "drop" in key and isinstance(value, int | float) and value > 0 and not any(word in key for word in unused)
    }


def frozen_policy(
    module: L.LightningModule, model: str, chat: Chat, *, dtype: DTypeName = "float32", trust_remote_code: bool = False
) -> Policy:
    """Another model beside the one that `module` trains, on its device and placed as that one is, in eval mode."""
    sharding = sharding_of(module)
    checked = cast(Any, module).check_model
    policy = place_policy(model, sharding, chat, dtype=dtype, trust_remote_code=trust_remote_code, checked=checked)
    policy.requires_grad_(False).eval()
    return policy.to(module.device) if sharding is None else policy
