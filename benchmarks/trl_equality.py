"""Equality: loss and gradient of one GRPO step beside TRL's GRPOTrainer, on the same model, completions and rewards.

    python benchmarks/trl_equality.py --out docs/results/trl_grpo_equality.md

TRL runs its own path from completions and rewards to the loss: its `rollout_func` gets the fixed completions, its reward
function the fixed rewards. Before the loss the weights of both sides are moved by the same noise, as updates would move
them, so that ratios differ from 1 and clips are met.

Legend: N problems, G group size, R = N·G rollouts, T packed tokens.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import common
import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer
from trl_variants import VARIANTS, Variant

from w2sr.advantages import group_advantages
from w2sr.chat import Chat
from w2sr.losses import policy_loss, rollout_weights
from w2sr.miniature.world import problems
from w2sr.packing import pack_row
from w2sr.policy import Policy, load_policy
from w2sr.rollouts import EmbeddedGenerator, sample_requests
from w2sr.types import IGNORE_INDEX, PackedBatch, PolicyRow, Sampling, Segment

MODEL = Path(__file__).resolve().parent.parent / "w2sr" / "miniature" / "teacher"
NUM_PROBLEMS, GROUP_SIZE, MAX_NEW_TOKENS, TEMPERATURE = 4, 4, 56, 1.7
TOLERANCE = 2e-5
"""Weights are float64; logits, norms and what follows them are float32 on both sides, and are summed in two orders.
Twice what one machine measured."""


@dataclass(frozen=True)
class Fixed:
    """What both sides are given: token ids of R rollouts, their rewards [N, G], noise of the sampler and of updates."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards_NG: np.ndarray
    sampler_noise: list[np.ndarray]
    is_cut_off: np.ndarray


@dataclass(frozen=True)
class Step:
    """Loss and gradients of one side; `size` is Σ weight·|A|, the loss before good and bad rollouts cancel."""

    loss: float
    gradients: dict[str, Tensor]
    size: float = float("nan")


def fixed() -> Fixed:
    """Completions of word problems by the policy at the start of the round, and rewards by chance; one group's are equal."""
    chat, policy = Chat.load(str(MODEL)), at_the_start()
    requests = [
        request
        for problem in problems("test", NUM_PROBLEMS, seed=3)
        for request in sample_requests(problem, chat, GROUP_SIZE)
    ]
    sampling = Sampling(TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS, seed=6)
    generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode)
    done = {(one.problem_id, one.sample_index): one for one in generator.stream(requests, sampling)}
    completions = [done[request.problem_id, request.sample_index] for request in requests]
    rng = np.random.default_rng(5)
    rewards_NG = rng.choice([0.0, 0.1, 1.0], (NUM_PROBLEMS, GROUP_SIZE))
    rewards_NG[1] = 0.1
    return Fixed(
        [list(request.prompt_ids) for request in requests],
        [list(completion.token_ids) for completion in completions],
        rewards_NG,
        [rng.normal(0, 0.1, len(completion.token_ids)).astype(np.float32) for completion in completions],
        np.array([completion.finish_reason == "length" for completion in completions]),
    )


def move(lm: torch.nn.Module, seed: int, size: float = 0.05) -> None:
    """What updates would do to the weights: noise relative to each of them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1 + size * torch.randn_like(parameter))


def packed(given: Fixed) -> tuple[PackedBatch, list[int]]:
    """All rollouts in one row, and the lengths of their completions."""
    segments = []
    for number, (prompt, completion) in enumerate(zip(given.prompts, given.completions, strict=True)):
        labels = np.array([*[IGNORE_INDEX] * (len(prompt) - 1), *completion, IGNORE_INDEX])
        segments.append(Segment(str(number), np.array([*prompt, *completion]), labels))
    return pack_row(segments), [len(completion) for completion in given.completions]


def ours(variant: Variant, given: Fixed, sampled: list[np.ndarray]) -> tuple[Step, dict[str, float]]:
    """Our loss and gradient, and sums of what is watched."""
    batch, lengths = packed(given)
    learned_R = ~given.is_cut_off if variant.drop_cut_off else np.ones(len(lengths), dtype=bool)
    weights_R = rollout_weights(np.where(learned_R, lengths, 0), variant.objective.loss, MAX_NEW_TOKENS)
    advantages_R = group_advantages(given.rewards_NG, variant.rule).ravel()

    def spread(per_token: np.ndarray) -> Tensor:
        values_T = torch.zeros(len(batch.labels))
        values_T[batch.labels != IGNORE_INDEX] = torch.from_numpy(per_token.astype(np.float32))
        return values_T

    with torch.no_grad():
        ref = load_policy(MODEL)
        ref.lm.double()
        ref_T = ref(batch, TEMPERATURE)
        policy = at_the_start()
        old_T = policy(batch, TEMPERATURE)
    move(policy.lm, seed=2)
    counts = batch.cu_seqlens.diff()
    row = PolicyRow(
        batch,
        spread(np.repeat(advantages_R, lengths)),
        spread(np.repeat(weights_R, lengths)),
        spread(np.concatenate(sampled)),
        torch.repeat_interleave(torch.arange(len(counts)), counts),
        old_T,
        ref_T,
    )
    logprobs_T, entropies_T = policy(batch, TEMPERATURE, entropies=True)
    loss, sums = policy_loss(logprobs_T, entropies_T, row, variant.objective)
    loss.backward()
    size = float((row.weights * row.advantages).abs().sum())
    return replace(step_of(loss, policy.lm), size=size), {name: total.item() for name, total in sums.items()}


def at_the_start() -> Policy:
    """The policy at the start of the round, which is no longer the reference policy."""
    policy = load_policy(MODEL)
    policy.lm.double()
    move(policy.lm, seed=1)
    return policy


def sampler_logprobs(given: Fixed) -> list[np.ndarray]:
    """What a sampler reports that is a little off from the policy at the start of the round."""
    batch, lengths = packed(given)
    with torch.no_grad():
        logprobs = at_the_start()(batch, TEMPERATURE)[batch.labels != IGNORE_INDEX].numpy()
    parts = np.split(logprobs, np.cumsum(lengths)[:-1])
    return [part + noise for part, noise in zip(parts, given.sampler_noise, strict=True)]


def theirs(variant: Variant, given: Fixed, sampled: list[np.ndarray]) -> tuple[Step, np.ndarray]:
    """TRL's loss and gradient, and its advantages [R]."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": given.prompts,
            "completion_ids": given.completions,
            "logprobs": [part.tolist() for part in sampled],
        }

    def reward(completions: list[str], **_: Any) -> list[float]:
        return given.rewards_NG.ravel().tolist()

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            model_init_kwargs={"dtype": "float32"},  # also of the reference model
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            per_device_train_batch_size=len(given.prompts),
            num_generations=GROUP_SIZE,
            num_iterations=2,  # so that it computes old log-probabilities at the start of a round
            max_completion_length=MAX_NEW_TOKENS,
            temperature=TEMPERATURE,
            **variant.trl,
        )
        rows = [{"prompt": str(number)} for number in range(NUM_PROBLEMS)]
        trainer = GRPOTrainer(
            model=str(MODEL),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(MODEL, padding_side="left"),
            rollout_func=rollouts,
        )
    corrected = any(key.startswith("vllm") for key in variant.trl)
    trainer.use_vllm, trainer._last_loaded_step = corrected, trainer.state.global_step
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    for lm in filter(None, (trainer.model, trainer.ref_model)):
        lm.double()
    move(trainer.model, seed=1)
    inputs = trainer._generate_and_score_completions([row for row in rows for _ in range(GROUP_SIZE)])
    move(trainer.model, seed=2)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return step_of(loss, trainer.model), inputs["advantages"].numpy()


def step_of(loss: Tensor, lm: torch.nn.Module) -> Step:
    gradients = {name: cast(Tensor, parameter.grad) for name, parameter in lm.named_parameters()}
    return Step(loss.item(), gradients)


@dataclass(frozen=True)
class Compared:
    """One variant on both sides; `loss_apart` and `gradient_apart` are relative to the size of either."""

    variant: Variant
    losses: tuple[float, float]
    loss_apart: float
    gradient_apart: float
    advantages_apart: float
    watched: dict[str, float]


def compare(variant: Variant) -> Compared:
    """Runs both sides."""
    given = fixed()
    sampled = sampler_logprobs(given)
    (our_step, watched), (their_step, their_advantages_R) = (
        ours(variant, given, sampled),
        theirs(variant, given, sampled),
    )
    assert our_step.gradients.keys() == their_step.gradients.keys()
    difference = norm([our_step.gradients[name] - their_step.gradients[name] for name in our_step.gradients])
    return Compared(
        variant,
        (their_step.loss, our_step.loss),
        abs(our_step.loss - their_step.loss) / our_step.size,
        difference / norm(list(their_step.gradients.values())),
        float(np.abs(group_advantages(given.rewards_NG, variant.rule).ravel() - their_advantages_R).max()),
        watched,
    )


def norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    args = parser.parse_args()
    results = []
    for variant in VARIANTS:
        results.append(compare(variant))
        print(" | ".join(line(results[-1])), flush=True)
    common.write(args.out, page(results))


def line(result: Compared) -> list[str]:
    watched = result.watched
    limits = ("clipped_low", "clipped_high", "clipped_dual", "correction_limited")
    met = [f"{int(watched[name])}" if name in watched else "—" for name in limits]
    theirs, ours = result.losses
    return [
        result.variant.name,
        f"{theirs:.7f}",
        f"{ours:.7f}",
        f"{result.loss_apart:.0e}",
        f"{result.gradient_apart:.0e}",
        f"{int(watched['tokens'])}",
        *met,
    ]


def page(results: list[Compared]) -> str:
    parameters = sum(parameter.numel() for parameter in load_policy(MODEL).parameters())
    note = f"""The miniature's teacher ({parameters:,} parameters, weights in float64), {NUM_PROBLEMS} problems × {GROUP_SIZE} rollouts
of at most {MAX_NEW_TOKENS} tokens, temperature {TEMPERATURE}; one of the groups has equal rewards."""
    header = ["objective", "loss TRL", "loss w2sr", "loss apart", "gradient apart", "tokens"]
    header += ["clipped low", "clipped high", "dual", "w limited"]
    keys = [
        [result.variant.name, ", ".join(f"`{k}={_short(v)}`" for k, v in result.variant.trl.items())]
        for result in results
    ]
    worst = max(max(result.loss_apart, result.gradient_apart) for result in results)
    advantages = max(result.advantages_apart for result in results)
    return f"""{common.head("One GRPO step beside TRL", ("torch", "transformers", "trl"), note)}
{common.table(header, [line(result) for result in results])}
- *Loss apart*: |difference| / Σ weight·|A|, the size of the loss before good and bad rollouts cancel. *Gradient apart*:
  ‖g − g_TRL‖ / ‖g_TRL‖ over all weights. The largest is {worst:.0e}; more than {TOLERANCE:.0e} fails
  `tests/integration/test_trl_equality.py`. Advantages differ by {advantages:.0e} at most.
- *Clipped* and *limited*: how many of the tokens met each limit, by our count: a variant in which none did would show little.
- TRL goes from the fixed completions and rewards through its own padding, advantages, old and reference log-probabilities,
  importance weights and loss; we through a packed row. Both sides' weights are moved between the start of the round and the
  loss. For the last four, TRL's flag `use_vllm` is set without an engine: the sampler's log-probabilities are fixed numbers.

TRL's keys beside `num_iterations=2`, where they are not its defaults. Its default multiplies the KL term by the ratio; ours
is the GRPO paper's, and `kl.times_ratio` does the same.

{common.table(["objective", "TRL"], keys)}
Where the two differ by intent: TRL averages an entropy bonus over tokens whatever the loss, we weigh it like the loss; under
`gspo` with a correction *by tokens*, TRL multiplies the sequence's gradient by the mean weight of its tokens, we each token's
gradient by its own (as in GSPO-token).
"""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


if __name__ == "__main__":
    main()
