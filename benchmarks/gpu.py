"""One GPU: is the arithmetic right there, and how fast is it? Correctness first, then rates beside measured ceilings.

    python benchmarks/gpu.py                        # all parts, at most nine minutes
    python benchmarks/gpu.py --part sft-0.6b        # one part
    python benchmarks/gpu.py --device cpu --tiny    # does the script itself work? nothing of it is a result

Needs torch, transformers, lightning, torchmetrics and peft. What else it measures beside (flash-attn, liger-kernel, TRL)
is left out where it is not installed, and the page says so. Weights are random: no model is downloaded. Two protocols:

- *full rows*: one document a row, every token has a loss, every block computed again: what is usually published.
- *real lengths*: traces of log-normal length packed into rows, the first fifth of each is its prompt and has no loss.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import common
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config, TrainerCallback

from w2sr.advantages import AdvantageRule, group_advantages
from w2sr.attention import Engine, available_engines, packed_layout
from w2sr.flops import matmul_peak, training_flops
from w2sr.groups import Experience, deal_rows, policy_row, step_weights
from w2sr.kernels import Kernels, compile_blocks, use_kernels
from w2sr.logprobs import summed_logprobs
from w2sr.losses import Objective, policy_loss
from w2sr.modules.optimization import clip_gradients
from w2sr.modules.sft import SFTModule
from w2sr.packing import pack_row, plan_epoch
from w2sr.policy import Policy, new_policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.scaling import GIB, Plan, Shape, memory
from w2sr.types import IGNORE_INDEX, PackedBatch, Problem, Rollout, SampleRequest, Sampling, Segment, StepBatch, Verdict

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "gpu"
MINIATURE = Path(__file__).resolve().parent.parent / "w2sr" / "miniature" / "student"
FLOAT32_ATOL = 1e-4
"""Float32 on both sides, sums in another order; a GPU's products may be of other blocks."""
BFLOAT16_ATOL = 0.15
"""Two layers in bfloat16 (8 bits) against float32: log-probabilities near -4 step by 0.03."""
GRADIENT_RTOL = 0.1
"""The largest difference of a bfloat16 gradient, as a share of the largest gradient of its weight."""
MEASURED_STEPS, WARM_UP_STEPS = 5, 2
SKIPPED = "skipped: out of time"

Protocol = Literal["full rows", "real lengths"]
Row = dict[str, Any]


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        device: where it runs.
        tiny: everything is shrunk: a check of the script.
        deadline: `time.monotonic()` at which no further measurement begins.
        wrong: engines and kernels that `correctness` found wrong: nothing is timed with them.
    """

    device: torch.device
    tiny: bool
    deadline: float
    wrong: set[str] = field(default_factory=set)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def backend(self) -> str:
        """Of torch.compile. On a CPU the script is checked without waiting for a C++ compiler."""
        return "inductor" if self.device.type == "cuda" else "aot_eager"

    @cached_property
    def peak(self) -> float:
        """Measured rate of a large matrix product, in operations a second."""
        return matmul_peak(self.device, self.dtype, 128 if self.tiny else None, 0.05 if self.tiny else 1.0)

    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Median wall seconds of `work`, after one call that is not counted."""
        work()
        times = []
        for _ in range(1 if self.tiny else repeats):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return median(times)

    def forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else float("nan")

    def config(self, name: str) -> Any:
        """The shape of a model; `tiny`: two small layers in its place."""
        if self.tiny:
            small = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
            small |= {"hidden_size": 64, "intermediate_size": 96}
            return (Qwen3Config if "Qwen3" in name else Qwen2Config)(**small, **SHAPES[name][1], head_dim=16)
        kind, shape = SHAPES[name]
        return kind(**SIZES[name], **shape, max_position_embeddings=131_072)


SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Qwen3-0.6B": (Qwen3Config, {"tie_word_embeddings": True}),
    "Qwen2.5-1.5B": (Qwen2Config, {"tie_word_embeddings": True}),
    "Qwen2.5-7B": (Qwen2Config, {"tie_word_embeddings": False}),
}


def _size(vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
    }


SIZES = {
    "Qwen3-0.6B": _size(151_936, 1024, 3072, 28, 16, 8),
    "Qwen2.5-1.5B": _size(151_936, 1536, 8960, 28, 12, 2),
    "Qwen2.5-7B": _size(152_064, 3584, 18_944, 28, 28, 4),
}


def new_model(bench: Bench, name: str) -> Policy:
    torch.manual_seed(0)
    with bench.device:
        policy = new_policy(bench.config(name))
    if available_engines(bench.device)[0] in bench.wrong:  # what `auto` would take
        policy.attention = "sdpa"
    return policy


# rows


def document(rng: np.random.Generator, length: int, num_prompt: int, vocabulary: int) -> Segment:
    input_ids = rng.integers(0, vocabulary, length)
    labels = np.append(input_ids[1:], IGNORE_INDEX)
    labels[: max(0, num_prompt - 1)] = IGNORE_INDEX
    return Segment("document", input_ids, labels)


def steps_of(protocol: Protocol, tokens: int, vocabulary: int, count: int) -> list[StepBatch]:
    """Optimizer steps of one row each. Real lengths: median 600 tokens, log-normal of σ 0.8, best-fit packed."""
    rng = np.random.default_rng(0)
    if protocol == "full rows":
        rows = [[document(rng, tokens, 1, vocabulary)] for _ in range(count)]
    else:
        middle = min(600, tokens // 8)
        lengths = np.exp(rng.normal(np.log(middle), 0.8, size=4 * count * tokens // middle)).astype(int)
        lengths = lengths.clip(8, tokens)
        plan = plan_epoch(lengths, seed=0, epoch=0, max_tokens=tokens, step_sequences=len(lengths))
        packed = plan.step_rows(0)  # those with the longest documents come first
        chosen = packed[:: len(packed) // count][:count]
        rows = [[document(rng, n, n // 5, vocabulary) for n in lengths[row].tolist()] for row in chosen]
    assert len(rows) == count, "enough documents for all rows"
    return [
        StepBatch([pack_row(row)], sum(s.num_loss_tokens for s in row), tuple(map(len, row)), ("",) * len(row), tokens)
        for row in rows
    ]


def on(device: torch.device, batch: Any) -> Any:
    """A row's tensors on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return type(batch)(*(on(device, part) if isinstance(part, Tensor | tuple) else part for part in batch))


# part: correctness


def correctness(bench: Bench) -> Iterator[Row]:
    """Engines, fused loss, compiled blocks and generation against references in float32."""
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
    yield from kernel_correctness(bench, row, expected)
    yield generation_correctness(bench)


def small_model(bench: Bench) -> Policy:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
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
    summed_logprobs(*ours, targets).backward()
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


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# part: ceilings


def ceilings(bench: Bench) -> Iterator[Row]:
    """The rates that nothing on this machine exceeds: a large matrix product, and a copy of memory."""
    yield {"what": f"matrix product, {bench.dtype}".replace("torch.", ""), "TFLOP/s": bench.peak / 1e12}
    numbers = torch.empty(1 << (16 if bench.tiny else 30), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(numbers)
    seconds = bench.seconds(lambda: target.copy_(numbers), repeats=20)
    yield {"what": "copy (read and written)", "TB/s": 2 * numbers.numel() / seconds / 1e12}


# part: sft


class Cell(NamedTuple):
    """One line of the training tables."""

    shape: str
    tokens: int
    protocol: Protocol
    kernels: Kernels = Kernels()
    pure_bf16: bool = False

    @property
    def title(self) -> str:
        options = [name for name in ("compile", "liger") if getattr(self.kernels, name)]
        return ", ".join([self.shape, f"{self.tokens:,}", self.protocol, *options])


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


def sft(bench: Bench, cells: Sequence[Cell]) -> Iterator[Row]:
    """SFTModule under Lightning's Trainer, one row an optimizer step, AdamW (fused)."""
    for cell in cells:
        broken = bench.wrong & {name for name in ("compile", "liger") if getattr(cell.kernels, name)}
        if broken or bench.out_of_time():
            why = f"skipped: {', '.join(broken)} is wrong here" if broken else SKIPPED
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
    plan = Plan(1, sharded=False, precision=precision_of(bench, cell), row_tokens=tokens)
    shape = Shape.of(policy.lm.config.to_dict())
    room = torch.cuda.get_device_properties(bench.device).total_memory if bench.device.type == "cuda" else 1e15
    full = cell.protocol == "full rows" or memory(shape, plan).total > 0.8 * room
    plan = plan._replace(checkpointing="full" if full else "none")
    policy.recompute(full)
    if cell.kernels.compile:
        compile_blocks(policy, bench.backend)
    use_kernels(policy, replace(cell.kernels, compile=False))
    if cell.pure_bf16:
        policy.to(bench.dtype)
    module = SFTModule(student=cell.shape, optimizer=partial(torch.optim.AdamW, fused=True))
    module.policy = policy
    steps = steps_of(cell.protocol, tokens, policy.vocab_size, WARM_UP_STEPS + MEASURED_STEPS)
    clock = StepClock(bench)
    trainer_for(bench, cell, len(steps), clock).fit(module, DataLoader(steps, batch_size=None, collate_fn=as_it_is))
    times, counted = clock.times[WARM_UP_STEPS:], steps[WARM_UP_STEPS:]
    # rows differ: the rate of each, and the median of the rates
    rates = [sum(step.lengths) / seconds for step, seconds in zip(counted, times, strict=True)]
    used = [
        training_flops(policy.lm, step.lengths, step.num_loss_tokens) / seconds / peak
        for step, seconds in zip(counted, times, strict=True)
    ]
    return {
        "what": cell.title,
        "recompute": full,
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
    return [*full, *packed, Cell(shape, 16_384, "full rows", Kernels(compile=True))]


# part: liger


def liger(bench: Bench) -> Iterator[Row]:
    """Liger's kernels: right, and how fast? The last part, because they replace transformers' own in the process."""
    if not installed("liger_kernel") or bench.device.type != "cuda":
        yield {"what": "liger", "result": "not available here"}
        return
    row = on(bench.device, small_row(97, [40, 3, 129, 17]))
    expected = eager_logprobs(small_model(bench), row)
    fused = small_model(bench)
    use_kernels(fused, Kernels(liger=True))
    yield verdict(bench, "float32", "liger", fused(row), expected, FLOAT32_ATOL)
    yield from sft(bench, [Cell("Qwen3-0.6B", 16_384, "full rows", Kernels(liger=True))])


# part: peers


def peers(bench: Bench) -> Iterator[Row]:
    """Plain transformers, and TRL, on full rows of Qwen3-0.6B with every block computed again."""
    for tokens in (8_192, 16_384):
        for name, run in {"transformers": plain_transformers, "TRL": trl_trainer}.items():
            title = f"{name}: Qwen3-0.6B, {tokens:,}, full rows"
            if bench.out_of_time():
                yield {"what": title, "result": SKIPPED}
                continue
            if name == "TRL" and not (installed("trl") and installed("datasets")):
                yield {"what": title, "result": "not installed"}
                continue
            bench.forget()
            length = tokens // 64 if bench.tiny else tokens
            try:
                times = run(bench, length)[WARM_UP_STEPS:]
                yield {"what": title, "tokens/s": length / median(times), "peak GiB": bench.peak_gib(), "step s": times}
            except torch.cuda.OutOfMemoryError:
                yield {"what": title, "result": "out of memory"}
    bench.forget()


def plain_model(bench: Bench) -> Any:
    torch.manual_seed(0)
    with bench.device:
        return AutoModelForCausalLM.from_config(bench.config("Qwen3-0.6B"), attn_implementation="sdpa")


def plain_transformers(bench: Bench, tokens: int) -> list[float]:
    """The loop that one writes: model(input_ids, labels).loss, autocast, clipping, AdamW (fused)."""
    lm = plain_model(bench).train()
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-5, fused=True)
    times = []
    for _ in range(WARM_UP_STEPS + MEASURED_STEPS):
        ids = torch.randint(0, lm.config.vocab_size, (1, tokens), device=bench.device)
        bench.wait()
        began = time.perf_counter()
        with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.device.type == "cuda"):
            loss = lm(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bench.wait()
        times.append(time.perf_counter() - began)
    return times


class PeerClock(TrainerCallback):
    """Seconds of each optimizer step of a transformers trainer."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.times = bench, list[float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.bench.wait()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.bench.wait()
        self.times.append(time.perf_counter() - self._began)


def trl_trainer(bench: Bench, tokens: int) -> list[float]:
    """TRL's SFTTrainer as its documentation recommends it for long rows: checkpointing, bf16, AdamW (fused)."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rng = np.random.default_rng(0)
    vocabulary = bench.config("Qwen3-0.6B").vocab_size
    num_steps = WARM_UP_STEPS + MEASURED_STEPS
    ids = [rng.integers(0, vocabulary, tokens).tolist() for _ in range(num_steps)]
    clock = PeerClock(bench)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=bench.device.type == "cpu",
            bf16=bench.device.type == "cuda",
            per_device_train_batch_size=1,
            max_length=tokens,
            max_steps=num_steps,
            gradient_checkpointing=True,
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        SFTTrainer(
            model=plain_model(bench),
            args=config,
            train_dataset=datasets.Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=AutoTokenizer.from_pretrained(MINIATURE),
            callbacks=[clock],
        ).train()
    return clock.times


# part: decode


def decode(bench: Bench) -> Iterator[Row]:
    """Greedy decoding of Qwen3-0.6B's shape: the embedded generator beside transformers' `generate`.

    Prompts of one length, which suits `generate`: it needs no padding then.
    """
    num, prompt, new = (4, 8, 8) if bench.tiny else (64, 128, 256)
    ids = np.random.default_rng(0).integers(0, bench.config("Qwen3-0.6B").vocab_size, (num, prompt))
    title = f"Qwen3-0.6B, {num} prompts of {prompt}, {new} new tokens"
    for name, measure in {"embedded generator": embedded_seconds, "generate": generate_seconds}.items():
        if bench.out_of_time():
            yield {"what": title, "of": name, "result": SKIPPED}
            continue
        bench.forget()
        rate = num * new / measure(bench, ids, new)
        yield {"what": title, "of": name, "new tokens/s": rate, "peak GiB": bench.peak_gib()}
    bench.forget()


def embedded_seconds(bench: Bench, ids: np.ndarray, new: int) -> float:
    policy = new_model(bench, "Qwen3-0.6B").to(bench.dtype).eval()
    requests = [SampleRequest(str(n), 0, tuple(line)) for n, line in enumerate(ids.tolist())]
    generator = EmbeddedGenerator(policy, [-1], lambda tokens: "", num_slots=len(ids))
    return bench.seconds(lambda: list(generator.stream(requests, Sampling(max_new_tokens=new))), repeats=3)


def generate_seconds(bench: Bench, ids: np.ndarray, new: int) -> float:
    lm = plain_model(bench).to(bench.dtype).eval()
    lm.generation_config.eos_token_id = None
    batch = torch.tensor(ids, device=bench.device)
    options = {"attention_mask": torch.ones_like(batch), "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    return bench.seconds(lambda: lm.generate(batch, **options), repeats=3)


# part: grpo


def grpo(bench: Bench) -> Iterator[Row]:
    """A GRPO round of Qwen3-0.6B's shape by the functions of GRPOModule. Rewards alternate, so that every group teaches.

    With bf16-mixed the module samples in the weights' own precision, which is float32; with bf16-true in bfloat16.
    """
    sizes = (2, 2, 8, 8) if bench.tiny else (16, 8, 128, 256)
    num_groups, group_size, prompt, new = sizes
    for pure in (False, True):
        title = f"Qwen3-0.6B, {num_groups} x {group_size} rollouts of {prompt} + {new} tokens"
        precision = precision_of(bench, Cell("", 0, "full rows", pure_bf16=pure))
        if bench.out_of_time():
            yield {"what": title, "precision": precision, "result": SKIPPED}
            continue
        bench.forget()
        policy = new_model(bench, "Qwen3-0.6B").to(bench.dtype if pure else torch.float32)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
        rounds = [grpo_round(bench, policy, optimizer, number, sizes) for number in range(2 if bench.tiny else 3)]
        rollouts_s, update_s = (median(times) for times in zip(*rounds[1:], strict=True))
        yield {
            "what": title,
            "precision": precision,
            "rollouts s": rollouts_s,
            "update s": update_s,
            "rollout tokens/s": num_groups * group_size * new / rollouts_s,
            "trained tokens/s": num_groups * group_size * (prompt + new) / update_s,
            "peak GiB": bench.peak_gib(),
        }
    bench.forget()


def grpo_round(
    bench: Bench, policy: Policy, optimizer: Any, number: int, sizes: tuple[int, int, int, int]
) -> tuple[float, float]:
    """Seconds of sampling, and of the update: packing, forward and backward passes, the optimizer's step."""
    num_groups, group_size, prompt, new = sizes
    prompts = np.random.default_rng(number).integers(0, policy.vocab_size, (num_groups, prompt)).tolist()
    requests = [SampleRequest(str(n), k, tuple(ids)) for n, ids in enumerate(prompts) for k in range(group_size)]
    generator = EmbeddedGenerator(
        policy, [-1], lambda tokens: "", num_slots=len(requests), policy_version=number, logprobs=True
    )
    bench.wait()
    began = time.perf_counter()
    done = {(c.problem_id, c.sample_index): c for c in generator.stream(requests, Sampling(1.0, 1.0, new))}
    bench.wait()
    sampled = time.perf_counter()
    nobody = Verdict("correct", None, "", "", "none", "0")
    rollouts = [
        Rollout(Problem(r.problem_id, "", "", ""), r.prompt_ids, done[r.problem_id, r.sample_index], nobody)
        for r in requests
    ]
    rewards_NG = np.tile(np.arange(group_size) % 2, (num_groups, 1)).astype(float)
    advantages_NG = group_advantages(rewards_NG, AdvantageRule())
    update(bench, policy, optimizer, Experience(rollouts, advantages_NG.ravel()), new)
    bench.wait()
    return sampled - began, time.perf_counter() - sampled


def update(bench: Bench, policy: Policy, optimizer: Any, experience: Experience, new: int) -> None:
    objective = Objective()
    everyone = np.arange(len(experience.rollouts))
    weights_R, used = step_weights(experience, everyone, objective, new)
    rollouts = [experience.rollouts[member] for member in used]
    optimizer.zero_grad()
    for places in deal_rows(rollouts, 64 if bench.tiny else 16_384, 0, 1):
        row = on(bench.device, policy_row(experience, weights_R, used[places]))
        with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.device.type == "cuda"):
            logprobs_T, entropies_T = policy(row.packed, 1.0, entropies=True)
        loss, _ = policy_loss(logprobs_T, entropies_T, row, objective)
        loss.backward()
    clip_gradients(policy.parameters(), 1.0)
    optimizer.step()
    torch.clear_autocast_cache()


# the page

PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "correctness": correctness,
    "ceilings": ceilings,
    "sft-0.6b": lambda bench: sft(bench, cells_of("Qwen3-0.6B")),
    "decode": decode,
    "grpo": grpo,
    "peers": peers,
    "sft-1.5b": lambda bench: sft(bench, cells_of("Qwen2.5-1.5B")),
    "sft-7b": lambda bench: sft(bench, cells_of("Qwen2.5-7B", pure_bf16=True)),
    "liger": liger,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shrink everything: a check of the script")
    parser.add_argument("--minutes", type=float, default=9.0, help="no measurement begins after so long, less one")
    parser.add_argument("--out", type=Path, help=f"folder of page and JSON; {RESULTS} without it, none with --tiny")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here. --device cpu --tiny checks the script, and measures nothing.")
    if args.device == "cpu" and not args.tiny:
        parser.error("these sizes are for a GPU. Add --tiny.")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    bench = Bench(torch.device(args.device), args.tiny, time.monotonic() + 60 * (args.minutes - 1))
    results, failed = run_parts(bench, args.part or list(PARTS))
    out = args.out or (None if args.tiny else RESULTS)
    if out is not None:
        write(bench, out, results, "-".join(args.part or ["all"]))
    return 1 if failed or bench.wrong else 0


def run_parts(bench: Bench, names: Sequence[str]) -> tuple[dict[str, list[Row]], bool]:
    """The rows of each part. A part that breaks is told with its traceback, and the others run."""
    results: dict[str, list[Row]] = {}
    failed = False
    for name in names:
        rows = results.setdefault(name, [])
        print(f"## {name}", flush=True)
        try:
            for row in PARTS[name](bench):
                rows.append(row)
                print(row, flush=True)
        except Exception:
            failed = True
            rows.append({"what": name, "result": "BROKEN", "traceback": traceback.format_exc()})
            print(rows[-1]["traceback"], file=sys.stderr, flush=True)
    return results, failed


def write(bench: Bench, out: Path, results: dict[str, list[Row]], name: str) -> None:
    cuda = bench.device.type == "cuda"
    machine = torch.cuda.get_device_name(bench.device) if cuda else "CPU"
    slug = "-".join(machine.lower().split())
    said = "**A check of the script on shrunken models: no number here is a result.**" if bench.tiny else ""
    text = [common.head(f"One GPU: {machine}", ("torch", "transformers", "lightning"), f"{machine}. {said}")]
    for part, rows in results.items():
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("step s", "traceback")))
        lines = [[shown(row.get(column, "")) for column in columns] for row in rows]
        text += [f"## {part}\n", common.table(columns, lines)]
    out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "tiny": bench.tiny, "command": sys.argv, "torch": torch.__version__, "parts": results}
    (out / f"{slug}-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    common.write(out / f"{slug}-{name}.md", "\n".join(text))


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
