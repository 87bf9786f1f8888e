"""Supervised fine-tuning: SFTModule under Lightning, one row an optimizer step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple, cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from gpu_parts.bench import MEASURED_STEPS, WARM_UP_STEPS, Bench, Row
from gpu_parts.rows import Protocol, steps_of
from gpu_parts.shapes import new_model
from w2sr.flops import training_flops
from w2sr.kernels import Kernels, compile_blocks, use_kernels
from w2sr.modules.fsdp2 import FSDP2, sharding_of
from w2sr.modules.sft import SFTModule
from w2sr.policy import Policy
from w2sr.scaling import GIB, Plan, Shape, least_checkpointing, memory
from w2sr.sharding import shard_policy
from w2sr.types import StepBatch

RECOMPUTE: dict[str, Any] = {"none": False, "selective": "selective", "full": True}


class Cell(NamedTuple):
    """One line of the training tables. `fsdp2`: on one GPU too it gathers weights as bfloat16, so that the stream between
    blocks is bfloat16, which autocast leaves as float32."""

    shape: str
    tokens: int
    protocol: Protocol
    kernels: Kernels = Kernels()
    pure_bf16: bool = False
    fsdp2: bool = False

    @property
    def options(self) -> list[str]:
        return [name for name in ("compile", "liger") if getattr(self.kernels, name)]

    @property
    def title(self) -> str:
        return ", ".join([self.shape, f"{self.tokens:,}", self.protocol, *self.options, *["fsdp2"] * self.fsdp2])


class RandomStudent(SFTModule):
    """Trains a student of random weights: one that is there, or, where the strategy shards, one that is made in place."""

    def __init__(self, policy: Policy, **options: Any) -> None:
        super().__init__(**options)
        self.given = [policy]  # in a list, because a module attribute would register every weight a second time

    def configure_model(self) -> None:
        if self.policy is None:
            self.policy = self.given.pop()
            if (sharding := sharding_of(self)) is not None:
                shard_policy(self.policy.to("meta"), sharding)
                with torch.no_grad():
                    for weight in self.policy.parameters():
                        local_of(weight).normal_(0, 0.02) if weight.ndim > 1 else local_of(weight).fill_(1)


def local_of(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


class StepClock(L.Callback):
    """Seconds of each optimizer step, waiting for the device."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.times = bench, list[float]()

    def on_train_batch_start(self, *_: Any) -> None:
        if len(self.times) == WARM_UP_STEPS and self.bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.bench.device)
        self.bench.wait()
        self._began = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.bench.wait()
        self.times.append(time.perf_counter() - self._began)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """Else Lightning ends by copying weights and optimizer state into the memory of the host."""
        module.policy, trainer.strategy.optimizers = None, []


def sft(bench: Bench, cells: Sequence[Cell]) -> Iterator[Row]:
    """SFTModule under Lightning's Trainer, one row an optimizer step, AdamW (fused)."""
    for cell in cells:
        if why := bench.why_not("summed_logprobs", *cell.options):
            yield {"what": cell.title, "result": why}
            continue
        bench.forget()
        try:
            yield trained(bench, cell)
        except torch.cuda.OutOfMemoryError:
            yield {"what": cell.title, "result": "out of memory"}
    bench.forget()


def trained(bench: Bench, cell: Cell) -> Row:
    tokens, peak = cell.tokens // 64 if bench.tiny else cell.tokens, bench.peak
    policy = new_model(bench, cell.shape)
    plan = Plan(1, sharded=cell.fsdp2, precision=precision_of(bench, cell), row_tokens=tokens)
    shape = Shape.of(policy.lm.config.to_dict())
    room = torch.cuda.get_device_properties(bench.device).total_memory if bench.device.type == "cuda" else 1e15
    published = cell.protocol == "full rows"
    plan = plan._replace(checkpointing="full") if published else least_checkpointing(shape, plan, 0.8 * room)
    policy.recompute(RECOMPUTE[plan.checkpointing])
    if cell.kernels.compile:
        compile_blocks(policy, bench.backend)
    use_kernels(policy, replace(cell.kernels, compile=False))
    if cell.pure_bf16:
        policy.to(bench.dtype)
    module = RandomStudent(policy, student=cell.shape, optimizer=partial(torch.optim.AdamW, fused=True))
    steps = steps_of(cell.protocol, tokens, policy.vocab_size, WARM_UP_STEPS + MEASURED_STEPS)
    clock = StepClock(bench)
    trainer_for(bench, cell, len(steps), clock).fit(
        module, DataLoader(cast(Any, steps), batch_size=None, collate_fn=cast(Any, as_it_is))
    )
    if dist.is_initialized():  # fsdp2 began it, and the parts after this one are of one process
        dist.destroy_process_group()
    times, counted = clock.times[WARM_UP_STEPS:], steps[WARM_UP_STEPS:]
    # rows differ: the rate of each, and the median of the rates
    rates = [sum(step.lengths) / seconds for step, seconds in zip(counted, times, strict=True)]
    used = [
        training_flops(policy.lm, step.lengths, step.num_loss_tokens) / seconds / peak
        for step, seconds in zip(counted, times, strict=True)
    ]
    return {
        "what": cell.title,
        "recompute": plan.checkpointing,
        "precision": plan.precision,
        "attention": attention_of(policy, bench),
        "tokens/s": median(rates),
        "MFU of measured peak": median(used),
        "peak GiB": bench.peak_gib(),
        "GiB by arithmetic": memory(shape, plan).total / GIB,
        "step s": [round(seconds, 4) for seconds in times],
    }


def as_it_is(step: StepBatch) -> StepBatch:
    return step


def attention_of(policy: Policy, bench: Bench) -> str:
    with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.device.type == "cuda"):
        return policy.engine()


def precision_of(bench: Bench, cell: Cell) -> Any:
    if bench.device.type != "cuda":
        return "32-true"
    return "bf16-true" if cell.pure_bf16 else "bf16-mixed"


def trainer_for(bench: Bench, cell: Cell, num_steps: int, clock: StepClock) -> L.Trainer:
    return L.Trainer(
        accelerator="gpu" if bench.device.type == "cuda" else "cpu",
        devices=1,
        strategy=FSDP2() if cell.fsdp2 else "auto",
        precision=precision_of(bench, cell),
        max_steps=num_steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def cells_of(shape: str, *, pure_bf16: bool = False) -> list[Cell]:
    lengths = (8_192, 16_384)
    if shape != "Qwen3-0.6B":
        return [Cell(shape, tokens, "real lengths", pure_bf16=pure_bf16) for tokens in lengths]
    full: list[Cell] = [Cell(shape, tokens, "full rows") for tokens in (*lengths, 65_536)]
    packed = [Cell(shape, tokens, "real lengths") for tokens in (*lengths, 65_536)]
    others = [Cell(shape, 16_384, "full rows", Kernels(compile=True)), Cell(shape, 16_384, "full rows", fsdp2=True)]
    return [*full, *packed, *others]
