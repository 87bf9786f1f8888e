"""The noise of generation, and how a token is chosen with it.

The noise of a sampled token is a function of (seed, problem id, sample index, policy version, position): never of the
batch, the slot, the rank or a restart. It is one uniform number, which picks a token by the inverse of the cumulative
distribution; so two machines whose logits differ in the last bits disagree only where that number falls between them.

Legend: B slots, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from w2sr import chance
from w2sr.types import SampleRequest, Sampling

_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def noise_key(seed: int, problem_id: str, sample_index: int, policy_version: int = 0) -> int:
    """A 64-bit key of one sample's noise."""
    return chance.integer("noise", seed, sample_index, policy_version, problem_id)


def request_seed(sampling: Sampling, request: SampleRequest, policy_version: int = 0) -> int:
    """The seed of one request to an engine that has noise of its own: 31 bits of `noise_key`, which every server reads.

    Such an engine begins its noise anew with every request, so one that goes on behind a part of a completion has
    another seed: the part's noise must not come again.

    >>> request = SampleRequest("gsm8k/1", 2, (5,))
    >>> request_seed(Sampling(seed=4), request) == noise_key(4, "gsm8k/1", 2) >> 33
    True
    """
    name = f"{request.problem_id}+{request.num_done}" if request.num_done else request.problem_id
    return noise_key(sampling.seed, name, request.sample_index, policy_version) >> 33


def uniforms(keys_B: np.ndarray, positions_B: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [B]: SplitMix64 (Steele et al., 2014) of each key at each position.

    >>> key = np.array([noise_key(0, "gsm8k/1", 2)], dtype=np.uint64)
    >>> bool(uniforms(key, np.array([5])) == uniforms(key, np.array([5])))
    True
    """
    with np.errstate(over="ignore"):
        z = keys_B.astype(np.uint64) + (positions_B.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose_tokens(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token for each slot, [B] int64: the most likely at temperature 0, else sampled with the given noise.

    With `top_p` < 1 only the most likely tokens are kept, up to and including the one at which their probabilities
    first sum to `top_p` (Holtzman et al., 2020).
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV = (logits_BV / temperature).softmax(-1)
    if top_p == 1:
        return _inverse_cdf(probs_BV, uniforms_B)
    sorted_BV, tokens_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    ranks_B = _inverse_cdf(sorted_BV.masked_fill(before_BV >= top_p, 0.0), uniforms_B)
    return tokens_BV.gather(-1, ranks_B[:, None])[:, 0]


def sampled_logprobs(logits_BV: Tensor, tokens_B: Tensor, temperature: float) -> Tensor:
    """Log-probability of each chosen token in nats, float32 [B], by the full softmax at the temperature of sampling.

    Greedy choice (temperature 0) has no softmax of its own: then at temperature 1. What `top_p` cuts is not cut here.

    >>> logits = torch.tensor([[1.0, 3.0]])
    >>> sampled_logprobs(logits, torch.tensor([1]), 2.0)  # -log(1 + exp(-1))
    tensor([-0.3133])
    """
    scale = temperature or 1.0
    chosen_B = logits_BV.gather(-1, tokens_B[:, None])[:, 0] / scale
    return chosen_B - (logits_BV / scale).logsumexp(-1)


def _inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds the uniform number's share of the total."""
    cumulative_BV = weights_BV.cumsum(-1, dtype=torch.float64)
    targets_B1 = uniforms_B[:, None].to(torch.float64) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, targets_B1, right=True)[:, 0].clamp_(max=weights_BV.shape[-1] - 1)
