"""Plain transformers, and TRL where it is installed, on the rows of the part sft."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from gpu_parts.bench import MEASURED_STEPS, WARM_UP_STEPS, Bench, Row, installed
from gpu_parts.shapes import config_of, plain_model

MINIATURE = Path(__file__).resolve().parents[2] / "w2sr" / "miniature" / "student"


def peers(bench: Bench) -> Iterator[Row]:
    """Plain transformers, and TRL, on full rows of Qwen3-0.6B with every block computed again."""
    for tokens in (8_192, 16_384):
        for name, run in {"transformers": plain_transformers, "TRL": trl_trainer}.items():
            title = f"{name}: Qwen3-0.6B, {tokens:,}, full rows"
            if why := bench.why_not():
                yield {"what": title, "result": why}
                continue
            if name == "TRL" and not (installed("trl") and installed("datasets")):
                yield {"what": title, "result": "not installed"}
                continue
            bench.forget()
            length = tokens // 64 if bench.tiny else tokens
            try:
                times = run(bench, length)[WARM_UP_STEPS:]
                yield {
                    "what": title,
                    "tokens/s": length / median(times),
                    "peak GiB": bench.peak_gib(),
                    "step s": [round(seconds, 4) for seconds in times],
                }
            except torch.cuda.OutOfMemoryError:
                yield {"what": title, "result": "out of memory"}
    bench.forget()


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
    vocabulary = config_of(bench, "Qwen3-0.6B").vocab_size
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
