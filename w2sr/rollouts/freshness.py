"""Whether completions were written by the weights that their stamp names, and whether those are recent enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from w2sr.chat import Chat
from w2sr.packing import pack_row
from w2sr.policy import DTypeName, Policy
from w2sr.ranks import from_first_rank, together
from w2sr.rollouts.protocol import PolicyGenerator
from w2sr.types import IGNORE_INDEX, Completion, PackedBatch, SampleRequest, Sampling, Segment

PROBE_PROBLEM = "2 + 3"
PROBE = Sampling(temperature=2.0, max_new_tokens=16)
"""What a copy is asked after every update. At temperature 1 an engine that leaves the temperature out of its
log-probabilities would not be found out."""
FLOAT32_TOLERANCE = 1e-3
"""Mean difference of a token's log-probability in nats between engines that both compute in float32: near 1e-6."""
BFLOAT16_TOLERANCE = 0.25
"""The same where one of them computes in bfloat16, whose logits are wrong by some hundredths. Another model is off by
more than a nat."""


def copy_tolerance(policy: Policy, dtype: DTypeName | None) -> float:
    """What `check_copy` allows an engine that computes in `dtype`; None where that is not known."""
    in_float32 = dtype == "float32" and policy.dtype == torch.float32
    return FLOAT32_TOLERANCE if in_float32 else BFLOAT16_TOLERANCE


def check_rollouts(completions: Sequence[Completion], policy_version: int, max_staleness: int) -> None:
    """Whether a policy at `policy_version` may be trained on these completions.

    Args:
        completions: what an engine that follows the policy wrote.
        policy_version: the version of the policy's present weights.
        max_staleness: how many versions older the weights may be that wrote a completion; 0 for on-policy.

    Raises:
        ValueError: a completion is older than that, or newer than the policy, or its engine gave no log-probabilities.
    """
    for completion in completions:
        name = f"Sample {completion.sample_index} of problem '{completion.problem_id}'"
        age = policy_version - completion.policy_version
        if not 0 <= age <= max_staleness:
            told = f"{age} before" if age > 0 else "not from before"
            raise ValueError(
                f"{name} was written by version {completion.policy_version} of the policy, which is at version "
                f"{policy_version}: {told} the present one; max_staleness={max_staleness} versions are allowed. Bring "
                "the engine to the policy's weights before sampling, or raise max_staleness."
            )
        if completion.logprobs is None:
            raise ValueError(
                f"{name} has no log-probabilities of its {len(completion.token_ids):,} tokens, which training needs. "
                "vLLM gives none with top_p < 1: set top_p to 1 for the rollouts, or take the engine "
                "w2sr.rollouts.Embedded."
            )


def check_copy(
    generator: PolicyGenerator, policy: Policy, chat: Chat, tolerance: float, *, one_for_all: bool = False
) -> None:
    """Samples a few tokens from an engine with a copy of the weights, and asks the policy how likely they are.

    All ranks call it together, because the forward pass of a sharded policy is a collective. Where one engine serves
    all of them (`one_for_all`), rank 0 alone asks it.

    Raises:
        RuntimeError: the engine holds other weights than the policy, or computes log-probabilities in another way.
    """
    request = SampleRequest("probe", 0, tuple(chat.prompt_ids(PROBE_PROBLEM)))

    def ask() -> Completion:
        (completion,) = generator.stream([request], PROBE)
        return completion

    completion = from_first_rank(ask) if one_for_all else together(ask)
    by_policy = [
        completion_logprobs(policy, request, completion, temperature) for temperature in (PROBE.temperature, 1.0)
    ]
    together(lambda: _compare(generator, completion, by_policy, tolerance))


def _compare(
    generator: PolicyGenerator, completion: Completion, by_policy: Sequence[np.ndarray], tolerance: float
) -> None:
    if completion.logprobs is None:
        raise RuntimeError("The engine returns no log-probabilities where they are asked for: it is no vLLM.")
    sampled = np.array(completion.logprobs)
    gap, untempered = (float(np.abs(sampled - logprobs).mean()) for logprobs in by_policy)
    if gap <= tolerance:
        return
    if untempered <= tolerance:
        raise RuntimeError(
            f"The engine's log-probabilities at temperature {PROBE.temperature:g} are those of temperature 1. Start "
            "the server with --logprobs-mode processed_logprobs."
        )
    raise RuntimeError(
        f"After the update to version {generator.policy_version} the engine's log-probabilities of "
        f"{len(sampled)} tokens differ from the policy's by {gap:.3g} nats on average; {tolerance:g} is allowed. Its "
        "weights are not the policy's: it runs another model, or does not load what it is given."
    )


@torch.no_grad()
def completion_logprobs(
    policy: Policy, request: SampleRequest, completion: Completion, temperature: float
) -> np.ndarray:
    """The policy's own log-probability of each token of a completion, in nats, float32.

    In eval mode and without autocast, as completions are sampled.
    """
    input_ids = np.array([*request.prompt_ids, *completion.token_ids], dtype=np.int64)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    labels[len(request.prompt_ids) - 1 : -1] = completion.token_ids
    row = pack_row([Segment("", input_ids, labels)])
    device = policy.device
    row = PackedBatch(
        row.input_ids.to(device),
        row.labels.to(device),
        row.position_ids.to(device),
        row.cu_seqlens.to(device),
        row.max_seqlen,
    )
    was_training = policy.training
    policy.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            logprobs: torch.Tensor = policy(row, temperature)
    finally:
        policy.train(was_training)
    return logprobs[row.labels != IGNORE_INDEX].cpu().numpy()
