"""The arithmetic of w2sr.scaling against models: parameters and states exactly, activations within a stated factor."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from w2sr.flops import training_flops
from w2sr.packing import pack_row
from w2sr.policy import new_policy
from w2sr.scaling import (
    GIB,
    H100,
    QWEN2_5,
    Checkpointing,
    Plan,
    Shape,
    activation_bytes,
    least_checkpointing,
    memory,
    num_recomputed,
    step_flops,
    step_time,
    table,
)
from w2sr.types import IGNORE_INDEX, Segment

ACTIVATION_FACTOR = 1.25
"""What one row leaves on the CPU, where attention copies its inputs into a grid, beside the count of a fused kernel."""
TRACED_FACTOR = 1.25
"""Of models so small that what is gathered for a block weighs; docs/results/traced_memory.md has real ones."""
REAL = {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "7B": 7_615_616_512, "14B": 14_770_033_664, "32B": 32_763_876_352}
"""Weights in the files of Qwen2.5 on the hub."""
SMALL = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MEDIUM = SMALL | {"vocab_size": 4_000, "hidden_size": 512, "intermediate_size": 1400, "num_hidden_layers": 8}
REPOSITORY = Path(__file__).resolve().parents[2]

RECOMPUTE: dict[str, Any] = {"none": False, "selective": "selective", "full": True}
QWEN3 = Qwen3Config(**SMALL, head_dim=24)


@pytest.fixture(scope="module")
def traced_memory() -> Iterator[Any]:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import traced_memory

        yield traced_memory
    finally:
        sys.path.remove(str(REPOSITORY / "benchmarks"))


@pytest.mark.parametrize("name", QWEN2_5)
def test_parameters_of_the_papers_models(traced_memory: Any, name: str) -> None:
    shape, config = QWEN2_5[name], traced_memory.config_of(f"Qwen2.5-{name}")
    assert shape.num_parameters == REAL[name]
    assert Shape.of(config.to_dict()) == shape
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in lm.parameters()) == REAL[name]


@pytest.mark.parametrize("config", [Qwen2Config(**SMALL), LlamaConfig(**SMALL, tie_word_embeddings=True), QWEN3])
def test_weights_gradients_and_optimizer_of_a_real_step(config: Any) -> None:
    policy = new_policy(config)
    optimizer = torch.optim.AdamW(policy.parameters())
    policy(row(30), reduction="sum").backward()
    optimizer.step()
    parts = memory(Shape.of(config.to_dict()), Plan(1, sharded=False, precision="32-true"))
    weights = list(policy.parameters())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert num_bytes(weights) == parts.weights
    assert num_bytes([weight.grad for weight in weights if weight.grad is not None]) == parts.gradients
    assert num_bytes(moments) == parts.optimizer


def num_bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def row(num_tokens: int) -> Any:
    ids = np.arange(num_tokens) % 500
    return pack_row([Segment("a", ids, np.append(ids[1:], IGNORE_INDEX))])


@pytest.mark.parametrize("config", [Qwen2Config(**SMALL), QWEN3])
@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("checkpointing", RECOMPUTE)
def test_activations_of_a_real_forward_pass(config: Any, layers: int, checkpointing: Any) -> None:
    """Every storage that autograd keeps, once, without weights. The loss keeps its gradient out of autograd's sight."""
    num_tokens = 256
    config = type(config)(**{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    policy = new_policy(config)
    policy.recompute(RECOMPUTE[checkpointing])
    recomputed = sum(block.gradient_checkpointing for block in policy.blocks())
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # so that no later storage gets its address
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = row(num_tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(batch, reduction="sum")
    shape = Shape.of(config.to_dict())
    expected = num_tokens * (activation_bytes(shape, checkpointing, compute_bytes=4).kept - 4 * shape.hidden)
    assert recomputed == num_recomputed(shape, checkpointing)
    assert expected / ACTIVATION_FACTOR < sum(kept.values()) < expected * ACTIVATION_FACTOR


@pytest.mark.parametrize("config", [Qwen2Config(**MEDIUM), Qwen3Config(**MEDIUM, head_dim=64)])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(1, sharded=False, precision="bf16-mixed", row_tokens=2048),
        Plan(1, sharded=False, precision="bf16-mixed", checkpointing="full", row_tokens=8192),
        Plan(1, sharded=False, precision="bf16-true", checkpointing="selective", row_tokens=4096),
        Plan(4, sharded=True, precision="bf16-mixed", row_tokens=2048),
        Plan(4, sharded=True, precision="bf16-mixed", checkpointing="full", row_tokens=4096),
    ],
    ids=lambda plan: f"{plan.num_gpus}-{plan.precision}-{plan.checkpointing}",
)
def test_the_whole_of_a_traced_step(traced_memory: Any, config: Any, plan: Plan) -> None:
    """Every operation of two rows and the optimizer on tensors without data, as on a GPU. Where the arithmetic is off,
    it is above: a plan that fits must fit."""
    if plan.sharded and plan.checkpointing == "full" and Version(torch.__version__) < Version("2.13"):
        pytest.skip("FSDP2 of older torch holds more than the arithmetic says while it makes blocks anew")
    peak = max(traced_memory.traced(traced_memory.Step(config, plan)).values())
    assert 0.98 < memory(Shape.of(config.to_dict()), plan).total / peak < TRACED_FACTOR


def test_operations_are_those_of_flops() -> None:
    config = Qwen2Config(**SMALL)
    lm = new_policy(config).lm
    plan = Plan(1, sharded=False, step_tokens=600, segment_tokens=100)
    assert step_flops(Shape.of(config.to_dict()), plan) == training_flops(lm, [100] * 6, 600)


def test_sharding_divides_and_costs() -> None:
    shape = QWEN2_5["7B"]
    one, eight = (memory(shape, Plan(n, sharded=n > 1)) for n in (1, 8))
    assert one.weights == 2 * REAL["7B"] and eight.optimizer == one.optimizer / 8
    assert one.gathered == 0 < eight.gathered < one.weights
    # 64 rows of 4,096 tokens are 8 a GPU, each with two gathers in 2 bytes and a scatter in 4; 7/8 of it through a GPU
    seconds = step_time(shape, Plan(8, sharded=True))
    assert seconds.communication_s == pytest.approx(8 * 8 * REAL["7B"] * 7 / 8 / H100.node_bandwidth)
    assert step_time(shape, Plan(1, sharded=False)).communication_s == 0
    flops = 8 * seconds.compute_s * H100.peak_flops * H100.mfu
    assert flops == pytest.approx(6 * 128 * 2048 * REAL["7B"], rel=0.1), "about 6 a weight and token"


def test_full_checkpointing_costs_a_third_and_saves_memory() -> None:
    shape = QWEN2_5["14B"]
    none, selective, full = (activation_bytes(shape, kind, 2).recomputing for kind in ("none", "selective", "full"))
    assert none > 1.5 * selective > 3 * full
    kinds: tuple[Checkpointing, ...] = ("none", "selective", "full")
    plain, half, again = (step_time(shape, Plan(8, True, checkpointing=kind)).compute_s for kind in kinds)
    assert 1.25 < again / plain < 4 / 3
    assert half - plain == pytest.approx((again - plain) / 2)  # 24 of 48 blocks


def test_the_least_checkpointing_that_fits() -> None:
    """Room between two plans' memories takes the smaller one; no room takes all of it."""
    shape, plan = QWEN2_5["7B"], Plan(8, sharded=True)
    none, selective, full = (memory(shape, plan._replace(checkpointing=kind)).total for kind in RECOMPUTE)  # type: ignore[arg-type]
    assert none > selective > full
    rooms = {none + 1: "none", none: "selective", selective + 1: "selective", selective: "full", 0: "full"}
    assert {room: least_checkpointing(shape, plan, room).checkpointing for room in rooms} == rooms


def test_the_memory_of_16_bytes_a_weight() -> None:
    """ZeRO's count for mixed precision with AdamW: 4 + 4 + 8 bytes with float32 weights."""
    parts = memory(QWEN2_5["7B"], Plan(1, sharded=False, precision="bf16-mixed"))
    assert (parts.weights + parts.gradients + parts.optimizer) / REAL["7B"] == 16
    assert 16 * REAL["7B"] / GIB == pytest.approx(113.5, abs=0.05)


def test_the_page_shows_this_table() -> None:
    page = (REPOSITORY / "docs" / "scaling.md").read_text()
    assert table() in page
    assert re.findall(r"python -m w2sr\.scaling", page)


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'mamba'"):
        Shape.of({"model_type": "mamba"})
