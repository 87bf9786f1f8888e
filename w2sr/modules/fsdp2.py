"""`trainer.strategy: fsdp2`: the model sharded over all processes by FSDP2."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from w2sr.sharding import Sharding

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
        return Sharding(
            self.device_mesh["data_parallel"], self.root_device, COMPUTE_DTYPES[precision], self.cpu_offload
        )


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
