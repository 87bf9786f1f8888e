"""Estimators of a KL divergence from one sampled token, in nats.

For x ~ p, with r = q(x) / p(x), all three estimate KL(p || q) (Schulman, "Approximating KL Divergence", 2020): k1 and
k3 without bias, k3 with less variance and never below zero, k2 with a small bias.

As *gradients* they are something else (arXiv 2510.01555; p = π_θ, q = π_ref). The gradient of KL(π_θ || π_ref) is
E[−log r · ∇log π_θ]: k1 as a number that is taken from the reward. In the loss, through which gradients flow:

- k1 gives ∇log π_θ, whose expectation is zero: no penalty at all, only noise.
- k2 gives −log r · ∇log π_θ: exactly k1 in the reward, as long as the tokens are π_θ's own.
- k3 gives (1 − r) · ∇log π_θ: the same to first order in log r, biased further away. It pulls weakly where π_θ gives a
  token more than π_ref does (at most 1), and without bound where it gives it less. GRPO (2402.03300) has this one.

All of them, in the loss, are biased as soon as the tokens are an older policy's. Times the ratio ρ = π_θ / π_old,
through which the gradient flows too, k3 gives −ρ·log r · ∇log π_θ: no bias, for tokens new or old (DeepSeek-V3.2,
arXiv 2512.02556).

Legend: T packed tokens.
"""

from __future__ import annotations

from torch import Tensor

from w2sr.losses.objective import Estimator
from w2sr.losses.surrogates import ratio


def k1(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """−log r, [T]: the tokens are drawn with `logprobs_T`, and r = exp(other_logprobs_T − logprobs_T).

    >>> from torch import tensor
    >>> k1(tensor([-1.0]), tensor([-3.0])).item()
    2.0
    """
    return logprobs_T - other_logprobs_T


def k2(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """½ (log r)², [T], as in `k1`.

    >>> from torch import tensor
    >>> k2(tensor([-1.0]), tensor([-3.0])).item()
    2.0
    """
    return 0.5 * (other_logprobs_T - logprobs_T).square()


def k3(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """r − 1 − log r, [T], as in `k1`.

    >>> from torch import tensor
    >>> round(k3(tensor([-1.0]), tensor([-3.0])).item(), 4)
    1.1353
    """
    log_r_T = other_logprobs_T - logprobs_T
    return ratio(log_r_T) - 1 - log_r_T


def estimated_kl(estimator: Estimator, logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """The estimator of that name, [T].

    >>> from torch import tensor
    >>> estimated_kl("k2", tensor([-1.0]), tensor([-3.0])).item()
    2.0
    """
    return {"k1": k1, "k2": k2, "k3": k3}[estimator](logprobs_T, other_logprobs_T)
