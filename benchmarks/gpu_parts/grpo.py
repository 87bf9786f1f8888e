"""A round of GRPO by the functions of GRPOModule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import torch

from gpu_parts.bench import Bench, Row
from gpu_parts.rows import on
from gpu_parts.sft import Cell, precision_of
from gpu_parts.shapes import new_model
from w2sr.advantages import AdvantageRule, group_advantages
from w2sr.groups import Experience, deal_rows, policy_row, step_weights
from w2sr.losses import Objective, policy_loss
from w2sr.modules.optimization import clip_gradients
from w2sr.policy import Policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import Problem, Rollout, SampleRequest, Sampling, Verdict


def grpo(bench: Bench) -> Iterator[Row]:
    """A GRPO round of Qwen3-0.6B's shape by the functions of GRPOModule. Rewards alternate, so that every group teaches.

    With bf16-mixed the module samples in the weights' own precision, which is float32; with bf16-true in bfloat16.
    """
    sizes = (2, 2, 8, 8) if bench.tiny else (16, 8, 128, 256)
    num_groups, group_size, prompt, new = sizes
    for pure in (False, True):
        title = f"Qwen3-0.6B, {num_groups} x {group_size} rollouts of {prompt} + {new} tokens"
        precision = precision_of(bench, Cell("", 0, "full rows", pure_bf16=pure))
        if why := bench.why_not("generator"):
            yield {"what": title, "precision": precision, "result": why}
            continue
        bench.forget()
        policy = new_model(bench, "Qwen3-0.6B").to(bench.dtype if pure else torch.float32)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
        rounds = [grpo_round(bench, policy, optimizer, number, sizes) for number in range(2 if bench.tiny else 4)]
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
