"""How fast training goes, and how much of the machine that uses."""

from __future__ import annotations

import time
from typing import Any, cast

import lightning as L
import torch

from w2sr.flops import matmul_peak, training_flops
from w2sr.modules import SFTModule
from w2sr.types import StepBatch


class Throughput(L.Callback):
    """Logs `train/tokens_per_s` and `train/mfu`, averaged since the last line of the log.

    MFU = model operations (see `training_flops`) / (seconds · devices · peak rate of one device). Seconds count whole
    optimizer steps with their data; validation, checkpoints and the first step are left out.

    Args:
        peak_tflops: a device's peak in 10¹² operations a second; a matrix product is timed at the start without it.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak = peak_tflops * 1e12 if peak_tflops else None
        self._reset()
        self._began: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not isinstance(pl_module, SFTModule):
            raise ValueError(
                f"The callback Throughput measures SFTModule, and the model is {type(pl_module).__name__}. Leave it "
                "out; GRPO logs speed/rollout_tokens_per_s and speed/train_tokens_per_s itself."
            )
        if self.peak is None:
            dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
            self.peak = matmul_peak(pl_module.device, dtype)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: StepBatch, batch_idx: int) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        if self._began is None:
            return
        if trainer.global_step <= 1:  # the first step allocates
            self._began = None
            return
        self._seconds += time.perf_counter() - self._began
        self._began = time.perf_counter()
        self._num_tokens += sum(batch.lengths)
        num_loss_tokens = batch.num_loss_tokens / trainer.world_size
        self._flops += training_flops(pl_module.policy.lm, batch.lengths, int(num_loss_tokens))
        self._num_steps += 1
        if trainer.global_step % cast(Any, trainer).log_every_n_steps == 0 and self._seconds > 0:
            assert self.peak is not None
            rate = self._num_tokens * trainer.world_size / self._seconds
            pl_module.log("train/tokens_per_s", rate)
            pl_module.log("tokens/s", round(rate), prog_bar=True, logger=False)
            pl_module.log("train/mfu", self._flops / self._seconds / self.peak)
            self._reset()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._began = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._began = None

    def _reset(self) -> None:
        self._seconds, self._num_tokens, self._flops, self._num_steps = 0.0, 0, 0.0, 0
