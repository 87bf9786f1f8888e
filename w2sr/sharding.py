"""A policy sharded over ranks by FSDP2: weights are read straight into the shards, and gathered where they are used.

Every transformer block is a group of its own, gathered for its forward and backward pass; what is left (embeddings, the
last norm, a change of the stop token's row) is the group of the policy itself. So only `Policy.forward`,
`Policy.next_logits` and `Policy.own_logits` may be called from outside: they gather that group, which projects to the
vocabulary too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from w2sr.chat import Chat
from w2sr.locations import locate_model
from w2sr.policy import Policy
from w2sr.policy.stored import StoredWeights, memory_name, stored_form
from w2sr.ranks import meet, rank
from w2sr.weight_files import WeightFiles, write_weights

HUB_FILES = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Sharding:
    """How a policy lies on the ranks.

    Attributes:
        mesh: the ranks, in one dimension.
        device: where this rank computes.
        compute_dtype: gathered weights and activations are of this dtype, and gradients are summed over ranks in
            float32. None: of the weights' own dtype.
        cpu_offload: shards, gradients and optimizer state stay in the memory of the CPU.
    """

    mesh: DeviceMesh
    device: torch.device
    compute_dtype: torch.dtype | None = None
    cpu_offload: bool = False


def shard_policy(policy: Policy, sharding: Sharding) -> None:
    """Shards a policy of the meta device (`empty_policy`); `load_shards` then fills it.

    Everything is resharded after its forward pass, the root too: its weights are as large as several blocks, and what
    looks at parameters between two passes (an optimizer, a checkpoint) must see shards.
    """
    precision = MixedPrecisionPolicy(param_dtype=sharding.compute_dtype, reduce_dtype=torch.float32)
    pinned = torch.cuda.is_available()
    offload = CPUOffloadPolicy(pin_memory=pinned) if sharding.cpu_offload else OffloadPolicy()
    blocks = policy.blocks()
    if not blocks:
        raise ValueError(
            f"{type(policy.lm).__name__} names no transformer blocks, so it cannot be sharded block by block. "
            "Use trainer.strategy=ddp, or another model."
        )
    options: dict[str, Any] = {"mesh": sharding.mesh, "mp_policy": precision, "offload_policy": offload}
    for block in blocks:
        fully_shard(block, **options, reshard_after_forward=True)
    fully_shard(policy, **options, reshard_after_forward=True)
    for method in ("next_logits", "own_logits"):
        register_fsdp_forward_method(policy, method)
    policy.compute_device, policy.compute_dtype = sharding.device, sharding.compute_dtype
    policy.to_empty(device="cpu" if sharding.cpu_offload else sharding.device)
    compute_buffers(policy, sharding.device)


def is_sharded(policy: Policy) -> bool:
    """Whether the weights lie on several ranks, which must then make equally many forward passes."""
    return isinstance(policy, FSDPModule)


@torch.no_grad()
def load_shards(policy: Policy, model_name_or_path: str | Path) -> None:
    """Fills a sharded policy from a model directory or hub name: each rank reads its own rows of each tensor.

    A weight that transformers makes of several when it loads (experts) is made whole on each rank, one at a time.
    Adapters get peft's initialisation: A uniform, B zero. Rows are drawn independently, so ranks need not agree.

    Raises:
        ValueError: the files lack a weight of the model, or hold it in another shape.
    """
    name = locate_model(model_name_or_path)
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    files = WeightFiles(folder)
    stored = StoredWeights(policy.lm, files.names(), files.read)
    for weight_name, weight in _weights(policy):
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        rows = local_rows(weight)
        if stored.sources(weight_name):
            whole = stored.convert(weight_name)
            shape, part = tuple(whole.shape), whole[rows]
        elif weight_name in stored.renamed:
            stored_name = stored.renamed[weight_name]
            shape, part = files.shape(stored_name), files.read(stored_name, rows)
        else:
            raise ValueError(
                f"{folder} has no weight {weight_name!r}, which {type(policy.lm).__name__} needs, and none that "
                f"transformers {transformers.__version__} makes it from. Is it of another model, or quantized?"
            )
        if shape != tuple(weight.shape):
            raise ValueError(
                f"{weight_name!r} has the shape {shape} in {folder}; its config.json asks for "
                f"{tuple(weight.shape)}. The two do not belong together."
            )
        local.copy_(part)
    for parameter_name, parameter in policy.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if ".lora_A." in parameter_name:
            # the bound of kaiming_uniform_(a=√5): 1 / √(number of inputs)
            local.uniform_(-1 / math.sqrt(parameter.shape[1]), 1 / math.sqrt(parameter.shape[1]))
        elif ".lora_B." in parameter_name or parameter is policy.stop_row_E:
            local.zero_()


def save_policy(policy: Policy, folder: Path, chat: Chat) -> None:
    """Writes a policy as a Hugging Face directory (see `Policy.save`), on rank 0. Every rank must call it.

    A sharded one is gathered one tensor after the other: rank 0 holds no more than one file of the directory.
    """
    writes = rank() == 0
    if is_sharded(policy):
        if writes:
            policy.save_description(folder, chat)
        _write_gathered(stored_form(policy.lm, policy.merged_weights(_gathered)), folder if writes else None)
    elif writes:
        policy.save(folder, chat)
    meet()


def save_copy(policy: Policy, folder: Path | None) -> None:
    """Writes a policy for an engine with a copy of it (see `Policy.save_untied`), on the ranks that name a folder.

    Every rank must call it where the policy is sharded. It is gathered one tensor after the other.
    """
    if not is_sharded(policy):
        if folder is not None:
            policy.save_untied(folder)
        return
    with policy.untied():
        if folder is not None:
            policy.save_config(folder)
        _write_gathered(stored_form(policy.lm, policy.merged_weights(_gathered, untied=True)), folder)


def _gathered(weight: Tensor) -> Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _write_gathered(weights: Iterator[tuple[str, Tensor]], folder: Path | None) -> None:
    """Writes the weights into a folder, or only takes part in gathering them."""
    try:
        if folder is not None:
            write_weights(folder, weights)
    finally:  # also after a full disk: the others wait for this rank's shards
        for _ in weights:
            pass


def local_rows(weight: Tensor) -> slice:
    """The rows of a weight that this rank holds: as even as `torch.chunk` makes them, none for a late rank of many."""
    if not isinstance(weight, DTensor):
        return slice(None)
    num_rows, mesh = weight.shape[0], weight.device_mesh
    size = -(-num_rows // mesh.size())
    start = min(mesh.get_local_rank() * size, num_rows)
    rows = slice(start, min(start + size, num_rows))
    assert weight.to_local().shape[0] == rows.stop - rows.start, "FSDP2 shards the first dimension into chunks"
    return rows


def _weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Parameters and stored buffers under the names that a model directory has for them; tied ones once."""
    seen = set()
    for name, weight in policy.lm.state_dict(keep_vars=True).items():
        if ".lora_" not in name and id(weight) not in seen:
            seen.add(id(weight))
            yield memory_name(name), weight


@torch.no_grad()
def compute_buffers(policy: Policy, device: torch.device) -> None:
    """Computes what no file holds: rotary frequencies and the like. What is not computed would be garbage, silently."""
    owners: dict[nn.Module, list[str]] = {}
    for module in policy.modules():
        stored = module.state_dict(keep_vars=True)
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=name in stored)
            if name not in stored:
                owners.setdefault(module, []).append(name)
    for module, names in owners.items():
        for name in names:
            if module.get_buffer(name).is_floating_point():
                module.get_buffer(name).fill_(math.nan)
        cast(Any, policy.lm)._init_weights(module)
        for name in names:
            if bool(module.get_buffer(name).isnan().any()):
                raise ValueError(
                    f"{type(policy.lm).__name__} keeps {name!r} of its {type(module).__name__} in no file and does not "
                    "say how to compute it, so it cannot be sharded. Use trainer.strategy=ddp, or another model."
                )
