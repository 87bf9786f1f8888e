"""Chunked log-probabilities against a full softmax in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch

from w2sr import logprobs
from w2sr.logprobs import token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_value_and_gradient_equal_a_full_softmax(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, temperature: float
) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(10, 6), torch.randn(17, 6)
    targets, upstream = torch.randint(17, (10,)), torch.randn(10)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 17 * chunk_rows)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    ours = token_logprobs(h, w, targets, temperature)
    (ours * upstream).sum().backward()

    h64, w64 = hidden.double().requires_grad_(), weight.double().requires_grad_()
    full = ((h64 @ w64.T) / temperature).log_softmax(-1)
    reference = torch.stack([full[t, target] for t, target in enumerate(targets)])
    (reference * upstream.double()).sum().backward()
    torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(h.grad.double(), h64.grad, atol=1e-5, rtol=0)
    torch.testing.assert_close(w.grad.double(), w64.grad, atol=1e-5, rtol=0)


def test_no_targets_give_empty_logprobs_and_zero_gradient() -> None:
    hidden = torch.randn(0, 6, requires_grad=True)
    weight = torch.randn(17, 6, requires_grad=True)
    token_logprobs(hidden, weight, torch.empty(0, dtype=torch.int64)).sum().backward()
    assert not weight.grad.any()


def test_bfloat16_hidden_states_give_float32_logprobs() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(4, 8).bfloat16(), torch.randn(11, 8).bfloat16()
    got = token_logprobs(hidden, weight, torch.tensor([0, 3, 5, 10]))
    assert got.dtype == torch.float32
    expected = (hidden.float() @ weight.float().T).log_softmax(-1)[torch.arange(4), torch.tensor([0, 3, 5, 10])]
    # bf16 logits have 8 bits: near 4 they step by 0.03
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)
