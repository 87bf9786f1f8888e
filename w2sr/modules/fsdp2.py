"""`trainer.strategy: fsdp2`: the model sharded over all processes by FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from w2sr.modules.sharded_checkpoints import by_name, read_rest, remove, write_sharded
from w2sr.runs import Progress, check_checkpoint
from w2sr.sharding import Sharding
from w2sr.untried import say_if_untried

COMPUTE_DTYPES: dict[str, torch.dtype | None] = {"32-true": None, "bf16-true": None, "bf16-mixed": torch.bfloat16}
"""`trainer.precision` → what weights are gathered as; None: as they are kept."""


class FSDP2(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over all processes.

    With `trainer.precision=bf16-mixed`, shards and optimizer state are float32, the arithmetic is bfloat16 and
    gradients are summed in float32; generation in validation computes in bfloat16 too.

    Args:
        cpu_offload: shards, gradients and optimizer state stay in the CPU's memory: slower, and for models that fit in
            no other way.
        process_group_backend: chosen from the device without it.
        timeout: how long ranks wait for each other.
    """

    def __init__(
        self,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend, timeout=timeout)
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's `auto` is one rank a node
        if self.cpu_offload and self.root_device.type == "cuda" and self._process_group_backend is None:
            self._process_group_backend = "cpu:gloo,cuda:nccl"  # the norm of gradients is summed where they are
        super().setup_environment()

    def model_to_device(self) -> None:
        if self.cpu_offload:
            cast(Any, self.model)._device = self.root_device  # only this is told; shards stay where they are
        else:
            super().model_to_device()

    def sharding(self) -> Sharding:
        """How a model is to be laid over the processes. Raises a ValueError for a precision that is not known here."""
        precision = str(self.precision_plugin.precision)
        if precision not in COMPUTE_DTYPES:
            raise ValueError(
                f"trainer.strategy=fsdp2 knows trainer.precision {', '.join(COMPUTE_DTYPES)}, not {precision!r}. "
                "Take bf16-mixed: float32 shards, bfloat16 arithmetic."
            )
        if self.root_device.type == "cuda":
            say_if_untried("trainer.strategy=fsdp2")
        return Sharding(
            self.device_mesh["data_parallel"], self.root_device, COMPUTE_DTYPES[precision], self.cpu_offload
        )

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        assert storage_options is None, "shards are written where the run directory is"
        path = Path(self.broadcast(str(filepath)))
        rest = dict(checkpoint)
        optimizers = rest.pop("optimizer_states", [])
        tensors = {f"optimizer_{index}": state["state"] for index, state in enumerate(optimizers)}
        tensors["state_dict"] = rest.pop("state_dict")
        rest["param_groups"] = [state["param_groups"] for state in optimizers]
        progress = Progress(rest["global_step"], rest.get("num_steps"), rest["epoch"])
        write_sharded(path, tensors, rest, progress)

    def remove_checkpoint(self, filepath: Any) -> None:
        if self.is_global_zero:
            remove(Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """What a checkpoint holds beside its tensors. `load_model_state_dict` reads those, once the module has seen
        whether the checkpoint is of its model. One that a single process wrote is mapped, not read."""
        path = Path(self.broadcast(str(checkpoint_path)))
        self._from = path
        if path.is_dir():
            return read_rest(path)
        check_checkpoint(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        if self._from.is_dir():
            self._load_shards(checkpoint, self._from)
            return
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        name_of = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            set_optimizer_state_dict(self.model, optimizer, by_name(state, names), options=options)

    def _load_shards(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        assert self.model is not None
        weights = {"state_dict": get_model_state_dict(self.model)}
        dcp.load(weights, checkpoint_id=path)
        set_model_state_dict(self.model, weights["state_dict"])
        for index, optimizer in enumerate(self.optimizers):
            state = get_optimizer_state_dict(self.model, optimizer)["state"]
            dcp.load({f"optimizer_{index}": state}, checkpoint_id=path)
            whole = {"state": state, "param_groups": checkpoint["param_groups"][index]}
            set_optimizer_state_dict(self.model, optimizer, whole)


def sharding_of(module: L.LightningModule) -> Sharding | None:
    """How the module's trainer wants a model sharded; None where every process holds all of it.

    Raises:
        ValueError: the trainer's strategy shards in a way that our modules do not implement.
    """
    strategy = None if module._trainer is None else module.trainer.strategy
    if isinstance(strategy, FSDP2):
        return strategy.sharding()
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) or "DeepSpeed" in type(strategy).__name__:
        raise ValueError(
            f"trainer.strategy is {type(strategy).__name__}, under which nothing would shard the model. "
            "Set trainer.strategy=fsdp2."
        )
    return None
