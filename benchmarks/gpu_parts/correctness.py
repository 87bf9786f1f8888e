"""Is the arithmetic right? Engines, fused loss, generation and compiled blocks against references in float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from gpu_parts.bench import Bench, Row
from gpu_parts.rows import document, on
from w2sr.attention import Engine, available_engines, packed_layout
from w2sr.kernels import compile_blocks
from w2sr.logprobs import summed_logprobs
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import IGNORE_INDEX, PackedBatch, SampleRequest, Sampling, Segment

FLOAT32_ATOL = 1e-4
"""Float32 on both sides, sums in another order; a GPU's products may be of other blocks."""
BFLOAT16_ATOL = 0.15
"""Two layers in bfloat16 (8 bits) against float32: log-probabilities near -4 step by 0.03."""
GRADIENT_RTOL = 0.1
"""The largest difference of a bfloat16 gradient, as a share of the largest gradient of its weight."""


def correctness(bench: Bench) -> Iterator[Row]:
    """Engines, fused loss, generation and, last because a compiler may be missing, compiled blocks."""
    reference = small_model(bench)
    row = on(bench.device, small_row(reference.vocab_size, [40, 3, 129, 17]))
    expected = eager_logprobs(reference, row)
    yield verdict(bench, "float32", "sdpa", reference(row), expected, FLOAT32_ATOL)
    engines: list[Engine] = available_engines(bench.device)
    expected_grads = gradients(reference, row)
    for engine in engines:
        moved = small_model(bench).to(torch.bfloat16)
        moved.attention = engine
        yield verdict(bench, "bfloat16 logprobs", engine, moved(row), expected, BFLOAT16_ATOL)
        shares = [
            float((ours.float() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
            for ours, theirs in zip(gradients(moved, row), expected_grads, strict=True)
        ]
        yield verdict(bench, "bfloat16 gradients", engine, torch.tensor(max(shares)), torch.tensor(0.0), GRADIENT_RTOL)
    for name in sorted({"flash3", "flash", "varlen"} - set(engines)):
        yield {"what": "attention", "of": name, "result": "not available here"}
    yield from loss_correctness(bench)
    yield generation_correctness(bench)
    yield from kernel_correctness(bench, row, expected)


def small_model(bench: Bench) -> Policy:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    return new_policy(Qwen3Config(**sizes, **heads, tie_word_embeddings=True)).to(bench.device)


def small_row(vocabulary: int, lengths: Sequence[int]) -> PackedBatch:
    rng = np.random.default_rng(1)
    return pack_row([document(rng, length, 1, vocabulary) for length in lengths])


@torch.no_grad()
def eager_logprobs(policy: Policy, row: PackedBatch) -> Tensor:
    """transformers' own eager attention, a segment at a time: the slow and obvious way."""
    lm = AutoModelForCausalLM.from_config(copy.deepcopy(policy.lm.config), attn_implementation="eager").to(
        row.input_ids.device
    )
    lm.load_state_dict(policy.lm.state_dict())
    parts = []
    for start, end in zip(row.cu_seqlens[:-1].tolist(), row.cu_seqlens[1:].tolist(), strict=True):
        labels = row.labels[start:end]
        logprobs = lm(input_ids=row.input_ids[None, start:end]).logits[0].float().log_softmax(-1)
        found = logprobs.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
        parts.append(torch.where(labels == IGNORE_INDEX, 0.0, found))
    return torch.cat(parts)


def gradients(policy: Policy, row: PackedBatch) -> list[Tensor]:
    policy.zero_grad()
    policy(row).sum().backward()
    return [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]


def verdict(bench: Bench, what: str, of: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Row:
    error = float((ours.detach().float() - theirs.detach().float()).abs().max())
    if not error <= tolerance:
        bench.wrong.add(of)
    result = "right" if error <= tolerance else "WRONG"
    return {"what": what, "of": of, "error": error, "tolerance": tolerance, "result": result}


def loss_correctness(bench: Bench) -> Iterator[Row]:
    """The fused loss on Qwen's vocabulary against a whole softmax in float64."""
    tokens, vocabulary, hidden = (40, 512, 64) if bench.tiny else (300, 151_936, 256)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(tokens, hidden, generator=generator)
    w = torch.randn(vocabulary, hidden, generator=generator) / hidden**0.5
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator).to(bench.device)
    wide = [x.to(bench.device, bench.dtype).double().requires_grad_() for x in (h, w)]
    (wide[0] @ wide[1].T).log_softmax(-1).gather(-1, targets[:, None]).sum().backward()
    ours = [x.to(bench.device, bench.dtype).requires_grad_() for x in (h, w)]
    summed_logprobs(ours[0], ours[1], targets).backward()
    for name, mine, right in zip(("hidden", "embedding"), ours, wide, strict=True):
        assert mine.grad is not None and right.grad is not None
        share = (mine.grad.double() - right.grad).norm() / right.grad.norm()
        yield verdict(bench, f"fused loss, gradient of {name}", "summed_logprobs", share, torch.tensor(0.0), 0.02)


def kernel_correctness(bench: Bench, row: PackedBatch, expected: Tensor) -> Iterator[Row]:
    """Compiled blocks on rows of several lengths."""
    compiled = small_model(bench)
    compile_blocks(compiled, bench.backend)
    graphs = []
    for lengths in ([40, 3, 129, 17], [70, 20], [200, 9, 9], [33, 33, 33]):
        batch = on(bench.device, small_row(97, lengths))
        compiled(batch).sum().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    yield verdict(bench, "float32", "compile", compiled(row), expected, FLOAT32_ATOL)
    same = torch.tensor(float(graphs[-1] - graphs[0]))
    yield verdict(bench, f"graphs after rows of four lengths: {graphs}", "compile", same, torch.tensor(0.0), 0.0)


def generation_correctness(bench: Bench) -> Row:
    """Greedy completions of the embedded generator against the whole sequence fed again for every token."""
    policy, new = small_model(bench).eval(), 8
    prompts = [tuple(range(5, 5 + length)) for length in (3, 9, 4)]
    requests = [SampleRequest(str(n), 0, prompt) for n, prompt in enumerate(prompts)]
    stream = EmbeddedGenerator(policy, [-1], str, num_slots=2).stream(requests, Sampling(max_new_tokens=new))
    ours = {done.problem_id: done.token_ids for done in stream}
    different = 0
    for n, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(new):
            row = pack_row([Segment("", np.array(ids), np.full(len(ids), IGNORE_INDEX))])
            row = on(bench.device, row)
            with torch.no_grad():
                hidden = policy.hidden(row.input_ids, row.position_ids, packed_layout(row, policy.engine()))
                ids.append(int(policy.logits(hidden[-1:]).argmax()))
        different += tuple(ids[len(prompt) :]) != ours[str(n)]
    return verdict(bench, "greedy completions", "generator", torch.tensor(float(different)), torch.tensor(0.0), 0.0)
