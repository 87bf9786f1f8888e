"""Log-probabilities of given tokens, in chunks, so that the logits [T, V] never exist whole.

Legend: T tokens, V vocabulary, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once (16.8 M values, 64 MiB in float32) on a CPU..."""
CUDA_CHUNK_ELEMENTS = 1 << 27
"""...and on a GPU (512 MiB). Every chunk reads and writes the embedding's whole gradient: with 110 tokens a chunk, as
2²⁴ gives for Qwen's vocabulary, that traffic would be several times the time of its products there."""


@dataclass(frozen=True)
class LogitForm:
    """What a model makes of the products of hidden states and output embedding: y = cap(scale · (h Wᵀ + b)).

    Attributes:
        scale: Granite's 1 / logits_scaling, Cohere's logit_scale.
        softcap: cap(x) = softcap · tanh(x / softcap), Gemma 2's final_logit_softcapping; None: cap(x) = x.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, products_TV: Tensor) -> Tensor:
        """Logits [T, V] in float32 of products [T, V], the bias added."""
        logits_TV = products_TV.float()
        if self.scale != 1.0:
            logits_TV = logits_TV * self.scale
        if self.softcap is not None:
            logits_TV = self.softcap * torch.tanh(logits_TV / self.softcap)
        return logits_TV

    def slope(self, logits_TV: Tensor) -> Tensor | float:
        """d logits / d products, at these logits: scale · (1 − (y / softcap)²)."""
        if self.softcap is None:
            return self.scale
        return (1 - (logits_TV / self.softcap).square()).mul_(self.scale)


PLAIN = LogitForm()


class _ChunkedLogprobs(torch.autograd.Function):
    """log p[target] with p = softmax(logits / temperature), and the entropy of p where it is asked for.

    The backward pass computes each chunk of logits again. Without a gradient to the entropies they cost it nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        temperature: float,
        form: LogitForm,
        with_entropies: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logprobs_T = hidden_TE.new_empty(hidden_TE.shape[0], dtype=torch.float32)
        lse_T = torch.empty_like(logprobs_T)
        entropies_T = torch.empty_like(logprobs_T) if with_entropies else None
        for rows in _chunks(hidden_TE, weight_VE.shape[0]):
            logits = _scaled(form(_products(hidden_TE[rows], weight_VE, bias_V)), temperature)
            lse_T[rows] = logits.logsumexp(-1)
            logprobs_T[rows] = logits.gather(-1, targets_T[rows, None])[:, 0] - lse_T[rows]
            if entropies_T is not None:
                log_p = logits.sub_(lse_T[rows, None])
                entropies_T[rows] = -log_p.exp().mul_(log_p).sum(-1)
                del log_p
            del logits  # else it is there while the next chunk is made
        ctx.save_for_backward(hidden_TE, weight_VE, bias_V, targets_T, lse_T, entropies_T)
        ctx.temperature, ctx.form = temperature, form
        ctx.set_materialize_grads(False)
        return logprobs_T, entropies_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TE, weight_VE, bias_V, targets_T, lse_T, entropies_T = ctx.saved_tensors
        # to logprobs and to entropies; None where the loss has none of them
        grad_T, entropy_grad_T = grads
        grad_T = torch.zeros_like(lse_T) if grad_T is None else grad_T
        grad_hidden = torch.empty_like(hidden_TE)
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32)
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in _chunks(hidden_TE, weight_VE.shape[0]):
            scale = grad_T[rows, None] / ctx.temperature
            logits = ctx.form(_products(hidden_TE[rows], weight_VE, bias_V))
            slope = ctx.form.slope(logits)
            log_p = _scaled(logits, ctx.temperature).sub_(lse_T[rows, None])
            # d logprob / d logits = onehot(target) - p,   d entropy / d logits = -p (log p + entropy)
            if entropy_grad_T is None:
                grad_logits = log_p.exp_().mul_(-scale)
            else:
                entropy_scale = entropy_grad_T[rows, None] / ctx.temperature
                grad_logits = log_p.exp()
                grad_logits.mul_(log_p.add_(entropies_T[rows, None]).mul_(-entropy_scale).sub_(scale))
            grad_logits = _steepened(grad_logits.scatter_add_(-1, targets_T[rows, None], scale), slope)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden_TE.dtype)
            grad_hidden[rows] = grad_logits @ weight_VE
            grad_weight += grad_logits.T @ hidden_TE[rows]
            del logits, slope, log_p, grad_logits  # else they are there while the next chunk is made
        return grad_hidden, grad_weight.to(weight_VE.dtype), _as(grad_bias, bias_V), *[None] * 4


class _SummedLogprobs(torch.autograd.Function):
    """The sum of the log-probabilities. Its gradient is known but for one factor, so the forward pass computes it, from
    the logits that it holds anyway: a quarter less work than `_ChunkedLogprobs`, as in Liger's fused cross entropy
    (Hsu et al., arXiv 2410.10989)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        temperature: float,
        form: LogitForm,
    ) -> Tensor:
        total = hidden_TE.new_zeros((), dtype=torch.float32)
        wanted = any(ctx.needs_input_grad)
        ctx.grad_hidden = torch.empty_like(hidden_TE) if wanted else None
        ctx.grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if wanted else None
        ctx.grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if wanted and bias_V is not None else None
        for rows in _chunks(hidden_TE, weight_VE.shape[0]):
            logits = form(_products(hidden_TE[rows], weight_VE, bias_V))
            slope = form.slope(logits) if wanted else 1.0
            logprobs = _scaled(logits, temperature).log_softmax(-1)
            del logits
            total += logprobs.gather(-1, targets_T[rows, None]).sum()
            if not wanted:
                continue
            # d logprob / d logits = onehot(target) - softmax, over the temperature
            grad_logits = logprobs.exp_().neg_()
            grad_logits.scatter_add_(-1, targets_T[rows, None], torch.ones_like(grad_logits[:, :1]))
            grad_logits = _steepened(grad_logits, slope)
            if ctx.grad_bias is not None:
                ctx.grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden_TE.dtype)
            ctx.grad_hidden[rows] = grad_logits @ weight_VE
            if weight_VE.dtype == torch.float32:
                ctx.grad_weight.addmm_(grad_logits.T, hidden_TE[rows])
            else:
                ctx.grad_weight += grad_logits.T @ hidden_TE[rows]
            del slope, logprobs, grad_logits  # else they are there while the next chunk is made
        ctx.temperature, ctx.dtype, ctx.bias_V = temperature, weight_VE.dtype, bias_V
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.grad_hidden is not None, "the gradient is scaled in place, so there is one backward pass"
        factor = grads[0] / ctx.temperature
        grad_hidden, grad_weight = ctx.grad_hidden.mul_(factor), ctx.grad_weight.mul_(factor)
        grad_bias = None if ctx.grad_bias is None else ctx.grad_bias.mul_(factor)
        ctx.grad_hidden = ctx.grad_weight = ctx.grad_bias = None
        return grad_hidden, grad_weight.to(ctx.dtype), _as(grad_bias, ctx.bias_V), *[None] * 3


def _chunks(hidden_TE: Tensor, vocab_size: int) -> list[slice]:
    num_tokens, elements = hidden_TE.shape[0], CUDA_CHUNK_ELEMENTS if hidden_TE.is_cuda else CHUNK_ELEMENTS
    size = max(1, elements // vocab_size)
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _products(hidden_TE: Tensor, weight_VE: Tensor, bias_V: Tensor | None) -> Tensor:
    products_TV = (hidden_TE @ weight_VE.T).float()
    return products_TV if bias_V is None else products_TV.add_(bias_V)


def _scaled(logits_TV: Tensor, temperature: float) -> Tensor:
    return logits_TV if temperature == 1.0 else logits_TV.div_(temperature)


def _steepened(grad_logits: Tensor, slope: Tensor | float) -> Tensor:
    """The gradient of products from that of logits."""
    return grad_logits if isinstance(slope, float) and slope == 1.0 else grad_logits.mul_(slope)


def _as(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def token_logprobs(
    hidden_TE: Tensor,
    weight_VE: Tensor,
    targets_T: Tensor,
    temperature: float = 1.0,
    *,
    bias_V: Tensor | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """Log-probability of each target token, in nats, float32 [T]. Under autocast the products are of its dtype.

    Args:
        hidden_TE: last hidden states [T, E].
        weight_VE: output embedding [V, E].
        targets_T: token ids [T], all in [0, V).
        temperature: divides the logits, as the sampler did.
        bias_V: added to the products, where the head has one.
        form: what the model makes of the products.
    """
    logprobs_T, _ = _applied(_ChunkedLogprobs, hidden_TE, weight_VE, bias_V, targets_T, temperature, form, False)
    return cast(Tensor, logprobs_T)


def token_logprobs_and_entropies(
    hidden_TE: Tensor,
    weight_VE: Tensor,
    targets_T: Tensor,
    temperature: float = 1.0,
    *,
    bias_V: Tensor | None = None,
    form: LogitForm = PLAIN,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy of the distribution that each target was drawn from, in nats, float32 [T].

    H = −Σ_v p_v log p_v with p the softmax at this temperature. Both can be differentiated. To look at the entropies
    costs one pass over each chunk of logits in the forward pass; the backward pass pays only if the loss has them.
    """
    both = _applied(_ChunkedLogprobs, hidden_TE, weight_VE, bias_V, targets_T, temperature, form, True)
    return cast("tuple[Tensor, Tensor]", both)


def summed_logprobs(
    hidden_TE: Tensor,
    weight_VE: Tensor,
    targets_T: Tensor,
    temperature: float = 1.0,
    *,
    bias_V: Tensor | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """`token_logprobs(...).sum()`, a float32 scalar in nats, with the gradient made in the forward pass.

    For losses that weigh every token alike. It can be differentiated once.
    """
    return cast(Tensor, _applied(_SummedLogprobs, hidden_TE, weight_VE, bias_V, targets_T, temperature, form))


def _applied(
    function: type[torch.autograd.Function], hidden_TE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, *rest: Any
) -> Any:
    """Casts once, not a chunk at a time, and in the backward pass to the same dtype as in the forward pass."""
    device = hidden_TE.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VE.dtype
    with torch.autocast(device, enabled=False):
        return function.apply(hidden_TE.to(dtype), weight_VE.to(dtype), bias_V, *rest)
