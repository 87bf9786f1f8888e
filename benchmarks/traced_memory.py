"""Peak memory of a training step on GPUs, traced without one: the step runs on tensors that have shapes and no data.

    python benchmarks/traced_memory.py --out docs/results/traced_memory.md

Every operation of the real policy, loss, backward pass and optimizer is dispatched (torch's FakeTensorMode), and the bytes
of all storages that are alive are added up. Beside it stands what `w2sr.scaling.memory` says without running anything, and
one model of plain transformers. Minutes on one core, a few hundred MiB of memory, whatever the size of the model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import common
import torch
import torch.distributed as dist
from gpu_parts.shapes import SHAPES, SIZES
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from w2sr import logprobs
from w2sr.losses import Objective, policy_loss, sft_loss
from w2sr.policy import Policy, Recompute, new_policy
from w2sr.scaling import GIB, QWEN2_5, Checkpointing, Plan, Precision, Shape, is_autocast, memory
from w2sr.sharding import Sharding, shard_policy
from w2sr.types import PackedBatch, PolicyRow

RECOMPUTE: dict[Checkpointing, Recompute] = {"none": False, "selective": "selective", "full": True}
Trained = Literal["SFT", "GRPO", "SFT, foreach", "plain transformers"]


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that are alive inside of a FakeTensorMode.

    What the code reads of a tensor, which has no data here, is answered: `nonzero` has as many hits as it is told, a
    truth is false, a number is one.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.now = self.peak = 0
        self._bytes: dict[int, int] = {}

    def __enter__(self) -> Any:
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            self._resize(storage, size)
            self._count(storage)
            return storage

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*failure)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it comes back with the operations on its shards
        if func is torch.ops.aten.nonzero.default:
            out = torch.empty(self.num_labels, args[0].ndim, dtype=torch.int64, device=args[0].device)
        elif func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 1.0
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._bytes:
            weakref.finalize(storage, self._set, key, 0)
        self._set(key, storage.nbytes())

    def _set(self, key: int, size: int) -> None:
        self.now += size - self._bytes.get(key, 0)
        self.peak = max(self.peak, self.now)
        if size:
            self._bytes[key] = size
        else:
            self._bytes.pop(key, None)


class Step(NamedTuple):
    """What is traced: an optimizer step on one full row of `plan`."""

    config: PreTrainedConfig
    plan: Plan
    trained: Trained = "SFT"


def traced(step: Step) -> dict[str, int]:
    """Peak bytes of the last row's passes and of the optimizer, in a second step, when the optimizer has its state."""
    tokens = step.plan.row_tokens
    model, sharding, live = empty_model(step), sharding_of(step.plan), LiveBytes(num_labels=tokens)
    peaks: dict[str, int] = {}

    def phase(name: str, run: Callable[[], Any]) -> Any:
        live.peak = live.now
        made = run()
        peaks[name] = live.peak
        return made

    with as_on_a_gpu(), FakeTensorMode(allow_non_fake_inputs=True), live:
        place(model, sharding)
        foreach = step.trained == "SFT, foreach"
        optimizer = torch.optim.AdamW(model.parameters(), fused=not foreach, foreach=foreach)
        ids, labels, positions = (torch.zeros(tokens, dtype=torch.int64) for _ in range(3))
        row = PackedBatch(ids, labels, positions, torch.zeros(2, dtype=torch.int32), tokens)
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):  # the second row of a step finds the gradients of the first
                with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast(step.plan)):
                    loss = phase("forward", lambda: loss_of(model, row, step.trained))
                phase("backward", loss.backward)
                del loss
            phase("optimizer", lambda: (nn.utils.clip_grad_norm_(model.parameters(), 1.0), optimizer.step()))
    if sharding is not None:
        dist.destroy_process_group()
    return peaks


def loss_of(model: Any, row: PackedBatch, trained: Trained) -> Tensor:
    if trained == "plain transformers":
        loss: Tensor = model(input_ids=row.input_ids[None], labels=row.labels[None], use_cache=False).loss
        return loss
    if trained.startswith("SFT"):
        return sft_loss(model(row, reduction="sum"), row.max_seqlen)
    logprobs_T, entropies_T = model(row, entropies=True)
    ones = torch.ones(logprobs_T.shape)
    sampled = PolicyRow(row, ones, ones.clone(), ones.clone(), row.position_ids, ones.clone())
    return policy_loss(logprobs_T, entropies_T, sampled, Objective())[0]


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The choices of w2sr that look at the device, as on a GPU: chunks of logits, and varlen attention, whose cost in
    memory is that of FlashAttention. The tensors themselves are the CPU's: a CPU build of torch has no others."""
    before = logprobs.CHUNK_ELEMENTS, Policy.engine
    logprobs.CHUNK_ELEMENTS = logprobs.CUDA_CHUNK_ELEMENTS
    Policy.engine = lambda self: "varlen"  # type: ignore[method-assign]
    try:
        yield
    finally:
        logprobs.CHUNK_ELEMENTS, Policy.engine = before  # type: ignore[method-assign]


def empty_model(step: Step) -> nn.Module:
    """The model on the meta device, with its blocks recomputed as the plan says."""
    recompute = RECOMPUTE[step.plan.checkpointing]
    with torch.device("meta"):
        if step.trained == "plain transformers":
            plain = AutoModelForCausalLM.from_config(step.config, attn_implementation="sdpa").train()
            if recompute:
                plain.gradient_checkpointing_enable({"use_reentrant": False})
            return plain
        policy = new_policy(step.config)
    policy.recompute(recompute)
    return policy.train().to(torch.bfloat16 if step.plan.precision == "bf16-true" else torch.float32)


def sharding_of(plan: Plan) -> Sharding | None:
    """Rank 0 of `plan.num_gpus` that are not there."""
    if not plan.sharded:
        return None
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=plan.num_gpus)
    compute_dtype = torch.bfloat16 if plan.precision == "bf16-mixed" else None
    return Sharding(init_device_mesh("cpu", (plan.num_gpus,)), torch.device("cpu"), compute_dtype)


def place(model: nn.Module, sharding: Sharding | None) -> None:
    """Gives the weights their bytes: all of them, or those of one rank."""
    if sharding is not None:
        assert isinstance(model, Policy)
        shard_policy(model, sharding)
        return
    placed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            module._parameters[name] = placed.setdefault(
                id(weight), nn.Parameter(torch.empty_like(weight, device="cpu"))
            )
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device="cpu")


def config_of(name: str) -> PreTrainedConfig:
    """Qwen3-0.6B, or a size of Qwen2.5."""
    if name in SHAPES:
        kind, options = SHAPES[name]
        return kind(**SIZES[name], **options, max_position_embeddings=131_072)
    shape = QWEN2_5[name.removeprefix("Qwen2.5-")]
    return Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=131_072,
    )


def one_gpu(tokens: int, checkpointing: Checkpointing, precision: Precision = "bf16-mixed") -> Plan:
    return Plan(1, sharded=False, precision=precision, checkpointing=checkpointing, row_tokens=tokens)


def sharded(num_gpus: int, checkpointing: Checkpointing, tokens: int = 4_096) -> Plan:
    return Plan(num_gpus, sharded=True, precision="bf16-mixed", checkpointing=checkpointing, row_tokens=tokens)


CASES: tuple[tuple[str, Plan, Trained], ...] = (
    ("Qwen3-0.6B", one_gpu(8_192, "none"), "SFT"),
    ("Qwen3-0.6B", one_gpu(8_192, "full"), "SFT"),
    ("Qwen3-0.6B", one_gpu(16_384, "selective"), "SFT"),
    ("Qwen3-0.6B", one_gpu(65_536, "none"), "SFT"),
    ("Qwen3-0.6B", one_gpu(65_536, "selective"), "SFT"),
    ("Qwen3-0.6B", one_gpu(65_536, "full"), "SFT"),
    ("Qwen3-0.6B", sharded(1, "full", 65_536), "SFT"),
    ("Qwen3-0.6B", one_gpu(65_536, "full"), "GRPO"),
    ("Qwen3-0.6B", one_gpu(65_536, "full"), "plain transformers"),
    ("Qwen3-0.6B", one_gpu(16_384, "full"), "plain transformers"),
    ("Qwen2.5-1.5B", one_gpu(8_192, "none"), "SFT"),
    ("Qwen2.5-1.5B", one_gpu(16_384, "none"), "SFT"),
    ("Qwen2.5-7B", one_gpu(8_192, "none", "bf16-true"), "SFT"),
    ("Qwen2.5-7B", one_gpu(16_384, "full", "bf16-true"), "SFT"),
    ("Qwen2.5-7B", sharded(8, "none"), "SFT"),
    ("Qwen2.5-14B", sharded(8, "selective"), "SFT"),
    ("Qwen2.5-32B", sharded(8, "full"), "SFT"),
    ("Qwen2.5-32B", sharded(8, "full"), "SFT, foreach"),
    ("Qwen2.5-32B", sharded(16, "full"), "SFT"),
    ("Qwen2.5-32B", sharded(64, "selective"), "SFT"),
)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    made.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.case is not None:
        name, plan, trained = CASES[args.case]
        print(json.dumps(traced(Step(config_of(name), plan, trained))))
        return
    lines = []
    for number, case in enumerate(CASES):
        command = [sys.executable, __file__, "--out", os.devnull, "--case", str(number)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        lines.append(line(*case, json.loads(done.stdout.splitlines()[-1])))
        print(" | ".join(lines[-1]), flush=True)
    common.write(args.out, page(lines))


def line(name: str, plan: Plan, trained: Trained, peaks: dict[str, int]) -> list[str]:
    phase = max(peaks, key=lambda name: peaks[name])
    said = memory(Shape.of(config_of(name).to_dict()), plan).total
    ours = trained != "plain transformers"
    return [
        name,
        trained,
        "fsdp2" if plan.sharded else "one GPU",
        str(plan.num_gpus),
        plan.precision,
        f"{plan.row_tokens:,}",
        plan.checkpointing,
        *(f"{peaks[name] / GIB:.1f}" for name in ("forward", "backward", "optimizer")),
        f"{said / GIB:.1f}" if ours else "",
        f"{said / peaks[phase]:.2f}" if ours else "",
    ]


HEADER = (
    "model",
    "trained by",
    "strategy",
    "GPUs",
    "precision",
    "tokens of a row",
    "recomputed",
    "forward",
    "backward",
    "optimizer",
    "arithmetic",
    "arithmetic / largest",
)


def page(lines: list[list[str]]) -> str:
    note = """No GPU was used, and no tensor had data: the largest sum of the bytes of all tensors that were alive on one GPU in
the last row's passes and in the optimizer's step, in a second step, in GiB."""
    return f"""{common.head("Memory of a training step, traced", ("torch", "transformers"), note)}
{common.table(HEADER, lines)}
- *SFT* and *GRPO* are rows through `Policy`, `sft_loss` or `policy_loss` (with entropies), their backward passes, clipping
  and AdamW (fused, as a run on GPUs has it; *foreach* is what torch would choose). *Plain transformers*:
  `model(input_ids, labels).loss`, SDPA, the same optimizer. A step has two rows; the second finds the first one's gradients.
- *Arithmetic* is `w2sr.scaling.memory`, what `submit --dry-run` prints ([scaling](../scaling.md)).
- A row is one document, and all of its tokens carry loss. With `fsdp2` it is what one of the ranks holds; collectives
  are torch's fake ones, which move nothing.
- In it is what the code keeps and for how long. Not in it: the allocator's fragments, workspaces of kernels, cuBLAS and
  NCCL, buffers that a collective uses on its own, the CUDA context. Autocast is that of a CPU, whose lists of operations
  differ in little from CUDA's. Attention is `varlen`, by its description in torch; no kernel ran.
"""


if __name__ == "__main__":
    main()
