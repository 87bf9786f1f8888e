"""Supervised fine-tuning of a student on packed traces.

    loss = - (1 / M) Σ_i Σ_t log p(y_it | x_i, y_i<t),   M the loss tokens of the whole optimizer step

Source: arXiv 2505.20072. Not here: the authors train unpacked, with the mean of each device's mean, so that a short
micro-batch weighs as much as a long one; here every token of a step weighs the same on any number of ranks.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from w2sr.attention import Engine
from w2sr.chat import Chat
from w2sr.kernels import Kernels
from w2sr.losses import sft_loss
from w2sr.metrics import PassAtK
from w2sr.modules.cards import sft_card
from w2sr.modules.checkpoints import check_same_student, student_identity, write_whole_checkpoints
from w2sr.modules.collect import check_positive
from w2sr.modules.fsdp2 import sharding_of
from w2sr.modules.optimization import (
    OptimizerCallable,
    WarmupCosine,
    build_optimizer,
    clip_gradients,
    gradient_sync,
    require_finite,
    seed_dropout,
)
from w2sr.modules.students import place_policy, student_chat
from w2sr.modules.validation import EQUAL_ON_RANKS, answer_validation
from w2sr.policy import DTypeName, LoRA, Policy, Recompute
from w2sr.rollouts import EmbeddedGenerator
from w2sr.sharding import save_policy
from w2sr.templates import Template
from w2sr.types import IGNORE_INDEX, EvalRecord, ProblemBatch, Sampling, StepBatch


class SFTModule(L.LightningModule):
    """Trains a student on the traces of a teacher. One batch is one whole optimizer step (see `StepBatch`).

    Optimisation is manual, because the number of rows of a step differs from step to step: clipping is the key
    `clip_norm` here, and `trainer.accumulate_grad_batches` stays 1.

    Args:
        student: directory or hub name of the model that is trained.
        teacher: directory or hub name of the model that wrote the traces, for the final table; its row is left out
            without it.
        template: `auto` for the model's own chat template, or `qwen-base`, `qwen-instruct`, `simple`.
        stop_token: the token that ends a completion; found from the template without it.
        template_date: the day that a chat template with a date shows, as 2026-11-30; by default the day of the run.
        dtype: dtype of the weights. With `trainer.precision=bf16-mixed` leave float32.
        attention: packed attention engine.
        trust_remote_code: allow code from the model's repository.
        check_model: compare each model that is loaded with its own forward pass on a few packed tokens.
        gradient_checkpointing: compute the activations of every block (true), or of every second one (`selective`),
            again in the backward pass.
        kernels: how the blocks are computed: by torch as written, compiled, or by Liger's kernels.
        lora: train low-rank adapters and the stop token's embedding instead of all weights.
        optimizer: optimizer class with its arguments; its `lr` is overruled by `learning_rates.sft`.
        learning_rates: kind of training (`sft`, `grpo`) → peak learning rate that suits this student.
        warmup_frac: share of all optimizer steps with a rising learning rate.
        min_lr_frac: where the cosine ends, as a share of the peak.
        clip_norm: gradients are scaled down to this global norm; 0 leaves them.
        sampling: how validation and test problems are answered.
        num_slots: sequences that are generated together.
    """

    def __init__(
        self,
        student: str,
        teacher: str | None = None,
        template: Template = "auto",
        stop_token: str | None = None,
        template_date: str | None = None,
        dtype: DTypeName = "float32",
        attention: Engine | Literal["auto"] = "auto",
        trust_remote_code: bool = False,
        check_model: bool = True,
        gradient_checkpointing: Recompute = False,
        kernels: Kernels = Kernels(),
        lora: LoRA | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        learning_rates: dict[str, float] | None = None,
        warmup_frac: float = 0.1,
        min_lr_frac: float = 0.0,
        clip_norm: float = 1.0,
        sampling: Sampling = Sampling(),
        num_slots: int = 128,
    ) -> None:
        super().__init__()
        check_positive(num_slots=num_slots)
        self.automatic_optimization = False
        self.student, self.teacher = student, teacher
        self.template, self.stop_token, self.template_date = template, stop_token, template_date
        self.dtype_name, self.attention, self.trust_remote_code = dtype, attention, trust_remote_code
        self.check_model = check_model
        self.gradient_checkpointing, self.kernels, self.lora = gradient_checkpointing, kernels, lora
        self.optimizer, self.warmup_frac, self.min_lr_frac = optimizer, warmup_frac, min_lr_frac
        self.clip_norm = clip_norm
        self.learning_rate = (learning_rates or {}).get("sft", 1e-5)
        self.sampling, self.num_slots = sampling, num_slots
        self.policy: Policy | None = None
        self.num_trained_tokens = 0
        self.validation_records: list[EvalRecord] = []
        self._pass_at_k: PassAtK | None = None

    @cached_property
    def chat(self) -> Chat:
        """The student's tokenizer, template and stop token. The datamodule turns traces into segments with it."""
        return student_chat(self)

    def setup(self, stage: str) -> None:
        write_whole_checkpoints(self.trainer.strategy)

    def configure_model(self) -> None:
        """Loads the student, sharded where the strategy says so.

        Lightning calls this again for every stage, so a loaded one is kept.
        """
        if self.policy is not None:
            return
        self.policy = place_policy(
            self.student,
            sharding_of(self),
            self.chat,
            dtype=self.dtype_name,
            attention=self.attention,
            trust_remote_code=self.trust_remote_code,
            checked=self.check_model,
            lora=self.lora,
            gradient_checkpointing=self.gradient_checkpointing,
            kernels=self.kernels,
        )

    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()
        rank_zero_info(f"Packed attention on {self.device}: {self._loaded().engine()} (attention={self.attention}).")

    def configure_optimizers(self) -> Any:
        """Our own, because a scheduler that LightningCLI injects is stepped once an epoch."""
        optimizer = build_optimizer(self.optimizer, self.learning_rate, self.named_parameters())
        num_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = WarmupCosine(optimizer, num_steps, self.warmup_frac, self.min_lr_frac)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        optimizer, scheduler = cast(Any, self.optimizers()), cast(Any, self.lr_schedulers())
        policy = self._loaded()
        optimizer.zero_grad()
        seed_dropout(self._seed, optimizer_step=self.trainer.global_step, rank=self.global_rank)
        loss = torch.zeros((), device=self.device, dtype=torch.float32)  # under bf16-true the default is bfloat16
        for index, row in enumerate(step.rows):
            with gradient_sync(cast(Any, self.trainer.strategy.model), last=index == len(step.rows) - 1):
                row_loss = sft_loss(policy(row, reduction="sum"), step.num_loss_tokens)
                # DDP and FSDP average over ranks; the parts of a step are summed
                self.manual_backward(row_loss * self.trainer.world_size)
            loss += row_loss.detach()
        grad_norm = clip_gradients(self.parameters(), self.clip_norm)
        where = f"Optimizer step {self.trainer.global_step} (epoch {self.trainer.current_epoch})"
        require_finite(where, "Traces", step.trace_ids, loss, grad_norm, "sft")
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        self.num_trained_tokens += sum(step.lengths) * self.trainer.world_size
        self._log_step(step, loss, grad_norm, learning_rate)

    def validation_step(self, batch: StepBatch | ProblemBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Teacher-forced loss on held-out traces, or Pass@1 on validation problems, by what the batch holds."""
        if isinstance(batch, StepBatch):
            for row in batch.rows:
                self._val_loss[0] -= self._loaded()(row, reduction="sum").double()
                self._val_loss[1] += float((row.labels != IGNORE_INDEX).sum())
            return
        assert self._pass_at_k is not None, "validation problems come from validation sources"
        verifiers = cast(Any, self.trainer).datamodule.verifiers
        # in the weights' own precision, as `test` and the final table generate, whatever the trainer's autocast
        with torch.autocast(self.device.type, enabled=False):
            self.validation_records += answer_validation(
                batch, self.chat, self.generator(), verifiers, self.sampling, self._pass_at_k
            )

    def on_validation_epoch_start(self) -> None:
        self.validation_records = []
        self._val_loss = torch.zeros(2, dtype=torch.float64, device=self.device)
        sources = tuple(cast(Any, self.trainer).datamodule.validation)
        self._pass_at_k = PassAtK(sources=sources).to(self.device) if sources else None

    def on_validation_epoch_end(self) -> None:
        loss_sum, num_tokens = cast(Tensor, self.trainer.strategy.reduce(self._val_loss.clone(), reduce_op="sum"))
        if num_tokens > 0:
            self.log("val/loss", (loss_sum / num_tokens).float(), prog_bar=True, **EQUAL_ON_RANKS)
        if self._pass_at_k is not None:
            self.log("val/pass@1", self._pass_at_k.scalars()["pass@1/pooled"], prog_bar=True, **EQUAL_ON_RANKS)

    def generator(self) -> EmbeddedGenerator:
        """The embedded engine on the policy as it is now."""
        return EmbeddedGenerator(self._loaded(), self.chat.stop_token_ids, self.chat.decode, num_slots=self.num_slots)

    def save_student(self, folder: Path) -> None:
        """Writes the policy and its tokenizer as a Hugging Face directory. Every process must call it."""
        save_policy(self._loaded(), folder, self.chat)

    @property
    def arm(self) -> str:
        """What tables call this student: W2SR-P, W2SR-N, W2SR."""
        return f"W2SR-{cast(Any, self.trainer).datamodule.keep}".removesuffix("-all")

    def watched(self) -> dict[str, Any]:
        """What `result.json` says of training beyond its cost: nothing."""
        return {}

    def card(self) -> tuple[str, str]:
        """Title and text of the model card."""
        return sft_card(json.loads((Path(self.trainer.default_root_dir) / "selection.json").read_text()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["num_trained_tokens"] = self.num_trained_tokens
        checkpoint["student"] = student_identity(self.student, self._loaded(), self.lora)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same_student(checkpoint.get("student"), student_identity(self.student, self._loaded(), self.lora))
        self.num_trained_tokens = checkpoint["num_trained_tokens"]

    def _loaded(self) -> Policy:
        assert self.policy is not None, "configure_model loads the policy"
        return self.policy

    def _log_step(self, step: StepBatch, loss: Tensor, grad_norm: Tensor, learning_rate: float) -> None:
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, reduce_fx="sum")
        self.log("train/grad_norm", grad_norm)
        self.log("train/learning_rate", learning_rate)
        self.log("train/fill", sum(step.lengths) / step.capacity if step.capacity else 0.0)
        self.log("train/loss_tokens", float(step.num_loss_tokens))
