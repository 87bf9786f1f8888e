"""Log-probabilities of given tokens, in chunks, so that the logits [T, V] never exist whole.

Legend: T tokens, V vocabulary, E hidden size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once (16.8 M values, 64 MiB in float32)."""


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T / temperature)[target]. The backward pass computes each chunk of logits again."""

    @staticmethod
    def forward(ctx: Any, hidden_TE: Tensor, weight_VE: Tensor, targets_T: Tensor, temperature: float) -> Tensor:
        logprobs_T = hidden_TE.new_empty(hidden_TE.shape[0], dtype=torch.float32)
        lse_T = torch.empty_like(logprobs_T)
        for rows in _chunks(hidden_TE.shape[0], weight_VE.shape[0]):
            logits = _logits(hidden_TE[rows], weight_VE, temperature)
            lse_T[rows] = logits.logsumexp(-1)
            logprobs_T[rows] = logits.gather(-1, targets_T[rows, None])[:, 0] - lse_T[rows]
        ctx.save_for_backward(hidden_TE, weight_VE, targets_T, lse_T)
        ctx.temperature = temperature
        return logprobs_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad_T,) = grads
        hidden_TE, weight_VE, targets_T, lse_T = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_TE)
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32)
        for rows in _chunks(hidden_TE.shape[0], weight_VE.shape[0]):
            scale = grad_T[rows, None].float() / ctx.temperature
            # d logprob / d logits = onehot(target) - softmax
            grad_logits = _logits(hidden_TE[rows], weight_VE, ctx.temperature).sub_(lse_T[rows, None]).exp_()
            grad_logits.mul_(-scale).scatter_add_(-1, targets_T[rows, None], scale)
            grad_logits = grad_logits.to(hidden_TE.dtype)
            grad_hidden[rows] = grad_logits @ weight_VE
            grad_weight += grad_logits.T @ hidden_TE[rows]
        return grad_hidden, grad_weight.to(weight_VE.dtype), None, None


def _chunks(num_tokens: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _logits(hidden_TE: Tensor, weight_VE: Tensor, temperature: float) -> Tensor:
    logits_TV = (hidden_TE @ weight_VE.T).float()
    return logits_TV if temperature == 1.0 else logits_TV.div_(temperature)


def token_logprobs(hidden_TE: Tensor, weight_VE: Tensor, targets_T: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target token, in nats, float32 [T].

    Args:
        hidden_TE: last hidden states [T, E].
        weight_VE: output embedding [V, E].
        targets_T: token ids [T], all in [0, V).
        temperature: divides the logits, as the sampler did.
    """
    return cast(Tensor, _ChunkedLogprobs.apply(hidden_TE, weight_VE, targets_T, temperature))
