"""Compiled blocks against the same blocks as they are written; Liger and the CUDA engines as far as a CPU can tell."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AttentionInterface, Qwen3Config

from w2sr import attention, untried
from w2sr.groups import pack_sharing
from w2sr.kernels import Kernels, compile_blocks, use_kernels
from w2sr.modules.fsdp2 import FSDP2
from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, new_policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import IGNORE_INDEX, PackedBatch, SampleRequest, Sampling, Segment

ATOL = 1e-5
"""Of float32 log-probabilities and gradients: the same sums, in another order."""
VOCAB = 53
ROWS = [[7, 5], [9, 3, 4], [20], [6, 6, 6, 6, 2], [31, 1, 8]]


def tiny_policy(lora: bool = False) -> Policy:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    policy = new_policy(config)
    if lora:
        policy.add_lora(LoRA(rank=2, alpha=4), stop_token_id=1)
    return policy


def row(lengths: list[int]) -> PackedBatch:
    rng = np.random.default_rng(sum(lengths))
    parts = [rng.integers(0, VOCAB, length) for length in lengths]
    return pack_row([Segment(str(n), ids, np.append(ids[1:], IGNORE_INDEX)) for n, ids in enumerate(parts)])


def logprobs_and_gradients(policy: Policy, batch: PackedBatch) -> list[Tensor]:
    policy.zero_grad()
    logprobs = policy(batch)
    logprobs.sum().backward()
    return [logprobs.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    torch._dynamo.reset()
    counters.clear()
    untried.say_if_untried.cache_clear()
    # beyond its limit of graphs Dynamo would run blocks as they are written, and a comparison would say nothing
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        yield
    AttentionInterface.register(attention.ATTENTION_NAME, attention.packed_attention)


@pytest.mark.parametrize("variant", ["plain", "recompute", "lora"])
def test_compiled_blocks_equal_eager_and_compile_once_for_all_lengths(variant: str) -> None:
    expected, compiled = (tiny_policy(lora=variant == "lora") for _ in range(2))
    compiled.recompute(variant == "recompute")
    compile_blocks(compiled, backend="aot_eager")
    num_graphs = []
    for lengths in ROWS:
        for ours, theirs in zip(
            logprobs_and_gradients(compiled, row(lengths)),
            logprobs_and_gradients(expected, row(lengths)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, atol=ATOL, rtol=0)
        num_graphs.append(counters["stats"]["unique_graphs"])
    assert num_graphs[0] > 0
    assert num_graphs[-1] == num_graphs[0], f"graphs after each of the rows: {num_graphs}"


def shared_row(num_prompt: int, completions: list[int]) -> PackedBatch:
    """Rollouts of one prompt, which stands in the row once."""
    rng = np.random.default_rng(num_prompt)
    prompt = rng.integers(0, VOCAB, num_prompt)
    segments = []
    for number, length in enumerate(completions):
        ids = np.concatenate([prompt, rng.integers(0, VOCAB, length)])
        labels = np.append(ids[1:], IGNORE_INDEX)
        labels[: num_prompt - 1] = IGNORE_INDEX
        segments.append(Segment(str(number), ids, labels))
    return pack_sharing(segments, [num_prompt - 1] * len(segments))


def test_inductor_equals_eager_and_compiles_once_for_every_recomputation() -> None:
    """To the end of the compiler, g++ (about 40 CPU seconds with an empty cache): rows of all lengths, rows that share
    a prompt, and blocks computed again take the graphs that the first row made."""
    rows = [*map(row, ROWS), shared_row(9, [4, 6, 3]), shared_row(5, [2, 9]), row([57, 21, 40, 2, 60, 33])]
    expected = [logprobs_and_gradients(tiny_policy(), batch) for batch in rows]
    num_graphs = []
    for recompute in (False, "selective", True):
        compiled = tiny_policy()
        compiled.recompute(recompute)
        compile_blocks(compiled)
        for batch, theirs in zip(rows, expected, strict=True):
            for ours, right in zip(logprobs_and_gradients(compiled, batch), theirs, strict=True):
                torch.testing.assert_close(ours, right, atol=ATOL, rtol=0)
            num_graphs.append(counters["stats"]["unique_graphs"])
    assert num_graphs[0] > 0 and counters["inductor"], "guard: it was inductor that compiled"
    assert set(num_graphs) == {num_graphs[0]}, f"graphs after each of the rows: {num_graphs}"


def test_generation_with_compiled_blocks_samples_the_same_tokens() -> None:
    requests = [SampleRequest(f"p{n}", 0, tuple(range(2, 5 + n))) for n in range(5)]
    sampling = Sampling(temperature=1.0, max_new_tokens=12)

    def sampled(policy: Policy) -> list[tuple[int, ...]]:
        stream = EmbeddedGenerator(policy, [1], str, num_slots=2).stream(requests, sampling)
        return [done.token_ids for done in sorted(stream, key=lambda done: done.problem_id)]

    compiled = tiny_policy()
    compile_blocks(compiled, backend="aot_eager")
    assert sampled(compiled) == sampled(tiny_policy())
    first = counters["stats"]["unique_graphs"]
    sampled(compiled)
    assert counters["stats"]["unique_graphs"] == first


def test_no_way_of_computing_in_a_run_exceeds_the_graphs_that_there_may_be() -> None:
    """Rows with gradients, without, and in inference mode; prefill, decode, at last with one slot; a single token."""
    requests = [SampleRequest(f"p{n}", 0, tuple(range(2, 5 + n))) for n in range(3)]
    policy = tiny_policy()
    policy.recompute(True)
    compile_blocks(policy, backend="eager")
    policy(row([1])).sum().backward()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            policy(row([7, 5]))
            generator = EmbeddedGenerator(policy, [1], str, num_slots=2)
            assert len(list(generator.stream(requests, Sampling(temperature=1.0, max_new_tokens=6)))) == 3
    assert counters["stats"]["unique_graphs"] > 4 * 8, "guard: more than Dynamo's own limit for each of four parts"


def test_names_of_weights_stay() -> None:
    policy = tiny_policy()
    names = list(policy.state_dict())
    compile_blocks(policy, backend="aot_eager")
    assert list(policy.state_dict()) == names


def test_liger_is_refused_where_it_cannot_run() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(ValueError, match=r"model\.kernels\.liger=true needs liger-kernel .* CUDA device"):
        use_kernels(tiny_policy(), Kernels(liger=True))


def test_liger_patches_the_blocks_and_not_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    fake = ModuleType("liger_kernel.transformers")
    fake.apply_liger_kernel_to_qwen3 = lambda **options: asked.update(options)  # type: ignore[attr-defined]
    package = ModuleType("liger_kernel")
    package.__spec__ = sys.__spec__  # anything but None: it is looked for, not loaded
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    policy = tiny_policy()
    use_kernels(policy, Kernels(liger=True))
    assert asked.pop("model") is policy.lm
    assert asked == {
        "rope": True,
        "rms_norm": True,
        "swiglu": True,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    policy.lm.config.model_type = "gpt2"
    with pytest.raises(ValueError, match="knows no models of type 'gpt2'"):
        use_kernels(policy, Kernels(liger=True))


def naive_varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *_: Any, softmax_scale: float, causal: bool
) -> Tensor:
    assert causal
    parts = []
    for start, end in pairwise(bounds.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=True))
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.mark.parametrize("engine", ["flash", "flash3", "flash3 with log-sum-exps"])
def test_a_flash_engine_is_called_with_the_row(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn_interface" if "3" in engine else "flash_attn")
    with_lse = "lse" in engine or "log" in engine
    module.flash_attn_varlen_func = (  # type: ignore[attr-defined]
        (lambda *a, **k: (naive_varlen(*a, **k), None)) if with_lse else naive_varlen
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    policy, batch = tiny_policy(), row([7, 3, 5])
    expected, theirs = (
        policy.hidden(batch.input_ids, batch.position_ids, attention.packed_layout(batch, name))
        for name in ("sdpa", engine.split()[0])
    )
    torch.testing.assert_close(theirs, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("major, expected", [(9, ["flash3", "varlen", "sdpa"]), (8, ["varlen", "sdpa"])])
def test_flash3_is_for_hopper(monkeypatch: pytest.MonkeyPatch, major: int, expected: list[str]) -> None:
    there = {"flash_attn_interface", "torch.nn.attention.varlen"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in there or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert attention.available_engines(torch.device("cuda")) == expected


def test_an_untried_path_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untried, "RUN_ON_A_GPU", frozenset({"attention=varlen"}))
    with caplog.at_level(logging.WARNING, logger="w2sr.untried"):
        for path in ("attention=flash", "attention=flash", "attention=varlen"):
            untried.say_if_untried(path)
    assert [record.args for record in caplog.records] == [("attention=flash",)]
    assert "has never been run on a GPU" in caplog.text


def test_what_was_run_on_a_gpu_stands_on_a_page() -> None:
    pages = (Path(__file__).resolve().parents[2] / "docs" / "results" / "gpu").glob("*.md")
    text = "\n".join(page.read_text() for page in pages if page.name != "README.md")
    assert all(path in text for path in untried.RUN_ON_A_GPU)


def test_the_kernels_of_liger_equal_the_blocks_as_written() -> None:
    """The kernels themselves, run by Triton's interpreter on a CPU: rows, every gradient, and sampled tokens."""
    if not all(map(find_spec, ("triton", "liger_kernel"))) or Version(version("triton")) < Version("3.7"):
        pytest.skip("needs liger-kernel, and triton from 3.7 on: an older interpreter breaks off in its loops")
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "tests/numerics/liger_interpreted.py"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert set(report) == {"llama", "qwen2", "qwen3"}
    for model_type, found in report.items():
        assert found["apart"] < ATOL, model_type
        assert found["gradients"] >= 29, "guard: of every weight"
        tokens, expected = found["tokens"]
        assert tokens == expected and sum(map(len, tokens)) > 10
        kernels = "_rms_norm_backward_kernel _rms_norm_forward_kernel _swiglu_backward_kernel _swiglu_forward_kernel"
        assert found["kernels"] == [*kernels.split(), "_triton_rope"], model_type


def test_sharding_over_gpus_says_that_it_is_untried(caplog: pytest.LogCaptureFixture) -> None:
    def sharded(device: str) -> None:
        precision = SimpleNamespace(precision="bf16-mixed")
        strategy = SimpleNamespace(precision_plugin=precision, device_mesh={"data_parallel": None}, cpu_offload=False)
        strategy.root_device = torch.device(device)
        assert FSDP2.sharding(cast(FSDP2, strategy)).compute_dtype is torch.bfloat16

    with caplog.at_level(logging.WARNING, logger="w2sr.untried"):
        sharded("cpu")
        assert not caplog.records
        sharded("cuda")
    assert "trainer.strategy=fsdp2 has never been run on a GPU" in caplog.text
