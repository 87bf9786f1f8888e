"""Greedy decoding: the embedded generator beside transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gpu_parts.bench import Bench, Row
from gpu_parts.shapes import config_of, new_model, plain_model
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import SampleRequest, Sampling


def decode(bench: Bench) -> Iterator[Row]:
    """Greedy decoding of Qwen3-0.6B's shape: the embedded generator beside transformers' `generate`.

    Prompts of one length, which suits `generate`: it needs no padding then.
    """
    num, prompt, new = (4, 8, 8) if bench.tiny else (64, 128, 256)
    ids = np.random.default_rng(0).integers(0, config_of(bench, "Qwen3-0.6B").vocab_size, (num, prompt))
    title = f"Qwen3-0.6B, {num} prompts of {prompt}, {new} new tokens"
    for name, measure in {"embedded generator": embedded_seconds, "generate": generate_seconds}.items():
        if why := bench.why_not(*(["generator"] if measure is embedded_seconds else [])):
            yield {"what": title, "of": name, "result": why}
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
