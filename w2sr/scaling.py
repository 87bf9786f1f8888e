"""What training a model asks of memory and time: arithmetic on its shape, before anything is submitted.

Nothing here is measured but what `tests/unit/test_scaling.py` and `docs/scaling.md` say. Sources: memory of mixed
precision and sharding after Rajbhandari et al. (ZeRO, arXiv 1910.02054), activations counted after the manner of
Korthikanti et al. (arXiv 2205.05198) for the blocks of Llama and Qwen2, operations as in `w2sr.flops` (6 a weight and
token, and causal attention), volumes of ring collectives as in ZeRO.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
Checkpointing = Literal["none", "selective", "full"]
"""`model.gradient_checkpointing`: false, selective (every second block is computed again), true. From least to most."""

GIB = 2**30
LOGITS_CHUNK = 1 << 27
"""Logits that exist at once (`w2sr.logprobs.CUDA_CHUNK_ELEMENTS`), three times: as are, exponentiated, and rounded."""


class Shape(NamedTuple):
    """A decoder of the Llama and Qwen kind: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """The shape that a `config.json` describes.

        Raises:
            ValueError: it is of another kind.
        """
        kind = config.get("model_type")
        if kind not in ("qwen2", "qwen3", "llama", "mistral"):
            raise ValueError(f"the arithmetic knows models of type qwen2, qwen3, llama and mistral, not {kind!r}")
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
        )

    @property
    def num_block(self) -> int:
        """Weights of one block: four projections, three of the MLP, two norms, and Qwen3's of queries and keys."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = queries + 2 * keys if self.qkv_bias else 0
        attention = self.hidden * (2 * queries + 2 * keys) + biases
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + 3 * self.hidden * self.intermediate + norms

    @property
    def num_parameters(self) -> int:
        """All weights; a tied embedding counts once."""
        return self.layers * self.num_block + self.hidden + self.num_embeddings

    @property
    def num_embeddings(self) -> int:
        """Weights of the embedding, and of the head where it is another matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


QWEN2_5 = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 64, 151936, tied=True, qkv_bias=True),
    "1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151936, tied=True, qkv_bias=True),
    "7B": Shape(28, 3584, 18944, 28, 4, 128, 152064, tied=False, qkv_bias=True),
    "14B": Shape(48, 5120, 13824, 40, 8, 128, 152064, tied=False, qkv_bias=True),
    "32B": Shape(64, 5120, 27648, 40, 8, 128, 152064, tied=False, qkv_bias=True),
}
"""The paper's students and teachers, from their `config.json`."""


class Machine(NamedTuple):
    """One GPU of many. The rates are data sheets', `mfu` an assumption: nothing of it was measured.

    Attributes:
        peak_flops: of dense bfloat16 matrix products, a second.
        mfu: the share of it that training reaches, communication aside.
        node_bandwidth, network_bandwidth: bytes a second and GPU in one direction, inside a node and between nodes.
    """

    name: str
    gpus_per_node: int
    memory_gib: float
    peak_flops: float
    mfu: float
    node_bandwidth: float
    network_bandwidth: float


H100 = Machine("H100 SXM 80 GB, 400 Gb/s a GPU", 8, 80e9 / GIB, 989e12, 0.4, 450e9, 50e9)
"""NVIDIA's data sheet: 989 TFLOP/s, NVLink 900 GB/s both directions together."""


class Plan(NamedTuple):
    """How a model is trained.

    Attributes:
        sharded: FSDP2 over all GPUs; else each has the whole model (DDP, or one GPU).
        row_tokens: tokens of a packed row, which is one forward and backward pass.
        step_tokens: tokens of an optimizer step over all GPUs.
        segment_tokens: tokens of one trace, which attention does not leave.
    """

    num_gpus: int
    sharded: bool
    precision: Precision = "bf16-true"
    checkpointing: Checkpointing = "none"
    row_tokens: int = 4096
    step_tokens: int = 128 * 2048
    segment_tokens: int = 2048


class Memory(NamedTuple):
    """Bytes on one GPU where a step needs most: at the loss of a later row, or while its last block is made anew."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(self)


class Activations(NamedTuple):
    """Bytes a token: what is kept when the loss is computed, and the most while blocks are made anew."""

    kept: float
    recomputing: float


class StepTime(NamedTuple):
    """Seconds of an optimizer step: of arithmetic, and of communication, which hides behind it at best."""

    compute_s: float
    communication_s: float


def memory(shape: Shape, plan: Plan) -> Memory:
    """Bytes on one GPU. AdamW has two moments of the weights' own type, and so have the gradients.

    `gathered` is what FSDP2 holds beside the shards: two blocks (one is fetched while the other computes), the
    embeddings, and the gradient of one block before it is scattered. Without FSDP2 it is autocast's bfloat16 copy of
    every weight, and with DDP its buckets: each gradient again.
    """
    weight_bytes = 2 if plan.precision == "bf16-true" else 4
    compute_bytes = 4 if plan.precision == "32-true" else 2
    here = shape.num_parameters / (plan.num_gpus if plan.sharded else 1)
    if plan.sharded:
        gathered = float(compute_bytes * (3 * shape.num_block + shape.num_embeddings))
    else:
        gathered = here * ((plan.precision == "bf16-mixed") * 2 + (plan.num_gpus > 1) * weight_bytes)
    kept, recomputing = activation_bytes(shape, plan.checkpointing, compute_bytes, is_autocast(plan))
    chunks = 4 * 3 * min(LOGITS_CHUNK, plan.row_tokens * shape.vocabulary)
    # the loss needs its logits before any block is made anew
    at_the_loss = plan.row_tokens * kept + chunks > plan.row_tokens * recomputing
    return Memory(
        weights=weight_bytes * here,
        gradients=weight_bytes * here,
        optimizer=2 * weight_bytes * here,
        gathered=gathered,
        activations=plan.row_tokens * (kept if at_the_loss else recomputing),
        logits=4 * shape.vocabulary * shape.hidden + (chunks if at_the_loss else 0),
    )


def is_autocast(plan: Plan) -> bool:
    """Whether float32 weights meet bfloat16 arithmetic operation by operation. FSDP2 gathers them as bfloat16."""
    return plan.precision == "bf16-mixed" and not plan.sharded


def activation_bytes(
    shape: Shape, checkpointing: Checkpointing, compute_bytes: int, autocast: bool = False
) -> Activations:
    """What the forward pass leaves for the backward pass, with an attention kernel that keeps no matrix.

    Of a block, without checkpointing: two norms (each its input and what it makes of it in float32 or the compute type,
    and its output), queries, keys, values and what attention returns, and four rows of the MLP (gate, its SiLU, up,
    their product). Of a block that is made anew (`full`: each, `selective`: the first and every second after it) only
    the input is kept, until it is whole once more for its own backward pass: then no later block is there any longer.

    Under autocast the stream between blocks is float32, and each projection that reads a norm keeps a copy of its own
    of the norm's output: three before attention, two in the MLP.
    """
    attention = 2 * shape.heads * shape.head_dim + 2 * shape.kv_heads * shape.head_dim
    stream, copies = (4, 3 + 2) if autocast else (compute_bytes, 2)
    norms = (2 * (4 + stream) + copies * compute_bytes) * shape.hidden
    normed = (shape.heads + shape.kv_heads) * shape.head_dim if shape.qk_norm else 0
    block = norms + (4 + compute_bytes) * normed + compute_bytes * (attention + 4 * shape.intermediate)
    # the last norm: its input, what it makes of it, and the loss's gradient of its output
    ends = (4 + stream + compute_bytes) * shape.hidden
    again = num_recomputed(shape, checkpointing)
    whole = shape.layers - again
    # the last block that is made anew: before it, in place of each later one that was kept
    whole_then = {"none": whole, "selective": again, "full": 1}[checkpointing]
    inputs = again * stream * shape.hidden
    return Activations(whole * block + inputs + ends, whole_then * block + inputs + ends)


def num_recomputed(shape: Shape, checkpointing: Checkpointing) -> int:
    """Blocks that the backward pass computes again, as `Policy.recompute` chooses them."""
    return {"none": 0, "selective": -(-shape.layers // 2), "full": shape.layers}[checkpointing]


def least_checkpointing(shape: Shape, plan: Plan, room: float) -> Plan:
    """`plan` with the least checkpointing whose memory is below `room` bytes, else with all of it."""
    plans = [plan._replace(checkpointing=kind) for kind in get_args(Checkpointing)]
    return next((one for one in plans if memory(shape, one).total < room), plans[-1])


def step_flops(shape: Shape, plan: Plan, recomputed: bool = False) -> float:
    """Operations of an optimizer step: 6 a weight and token, and causal attention inside of segments.

    Args:
        recomputed: count the second forward pass of blocks that are made anew, which model operations leave out.
    """
    block = shape.num_block + shape.heads * shape.head_dim * plan.segment_tokens
    again = num_recomputed(shape, plan.checkpointing) if recomputed else 0
    ends = shape.hidden + shape.vocabulary * shape.hidden
    return plan.step_tokens * (6 * (shape.layers * block + ends) + 2 * again * block)


def step_time(shape: Shape, plan: Plan, machine: Machine = H100) -> StepTime:
    """Seconds of an optimizer step.

    FSDP2 gathers the weights twice and scatters float32 gradients once in each forward and backward pass of a row; DDP
    reduces the gradients once a step, which is a scatter and a gather. A ring moves (N - 1)/N of it through each GPU.
    """
    flops = step_flops(shape, plan, recomputed=True)
    compute_s = flops / (plan.num_gpus * machine.peak_flops * machine.mfu)
    bandwidth = machine.node_bandwidth if plan.num_gpus <= machine.gpus_per_node else machine.network_bandwidth
    gathered_bytes = 4 if plan.precision == "32-true" else 2
    if plan.sharded:
        rows_each = -(-plan.step_tokens // (plan.row_tokens * plan.num_gpus))
        moved = rows_each * (2 * gathered_bytes + 4) * shape.num_parameters
    else:
        moved = 2 * (2 if plan.precision == "bf16-true" else 4) * shape.num_parameters
    return StepTime(compute_s, moved * (plan.num_gpus - 1) / plan.num_gpus / bandwidth)


def estimate(name: str, shape: Shape, plan: Plan, machine: Machine = H100) -> list[str]:
    """One line of the table, as cells: see HEADER."""
    parts, seconds = memory(shape, plan), step_time(shape, plan, machine)
    total = parts.total / GIB
    states = (parts.weights + parts.gradients + parts.optimizer) / GIB
    fits = "yes" if parts.total < usable_bytes(machine) else "no"
    low, high = max(seconds), sum(seconds)
    return [
        name,
        f"{plan.num_gpus}",
        "fsdp2" if plan.sharded else "ddp" if plan.num_gpus > 1 else "one GPU",
        plan.precision,
        plan.checkpointing,
        f"{states:.1f}",
        f"{parts.gathered / GIB:.1f}",
        f"{parts.activations / GIB:.1f}",
        f"{parts.logits / GIB:.1f}",
        f"{total:.1f}",
        fits,
        f"{low:.1f} to {high:.1f}",
    ]


HEADER = (
    "model",
    "GPUs",
    "strategy",
    "precision",
    "checkpointing",
    "weights, gradients, AdamW (GiB)",
    "gathered",
    "activations",
    "logits",
    "GiB a GPU",
    "fits",
    "seconds a step",
)


def usable_bytes(machine: Machine) -> float:
    """What a plan may take of a GPU's memory: nine tenths, the rest for fragments and libraries."""
    return 0.9 * machine.memory_gib * GIB


def table(precision: Precision = "bf16-mixed", machine: Machine = H100) -> str:
    """Markdown: each of QWEN2_5 on 1 to 64 GPUs, with the least checkpointing that fits, else with all of it."""
    lines = [list(HEADER), ["---"] * len(HEADER)]
    for name, shape in QWEN2_5.items():
        for num_gpus in (1, 2, 4, 8, 16, 32, 64):
            plan = Plan(num_gpus, sharded=num_gpus > 1, precision=precision)
            plan = least_checkpointing(shape, plan, usable_bytes(machine))
            lines.append(estimate(name, shape, plan, machine))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(table())
