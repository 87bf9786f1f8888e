"""Chunked log-probabilities against a full softmax in float64: values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from w2sr import logprobs
from w2sr.logprobs import PLAIN, LogitForm, summed_logprobs, token_logprobs, token_logprobs_and_entropies


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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_the_sum_and_its_gradient_equal_a_full_softmax(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, temperature: float
) -> None:
    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(10, 6), torch.randn(17, 6), torch.randint(17, (10,))
    targets[3:6] = targets[2]  # a token that is the target more than once in a chunk
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 17 * chunk_rows)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    ours = summed_logprobs(h, w, targets, temperature)
    (ours * -1.7).backward()

    h64, w64 = hidden.double().requires_grad_(), weight.double().requires_grad_()
    full = ((h64 @ w64.T) / temperature).log_softmax(-1)
    reference = sum(full[t, target] for t, target in enumerate(targets))
    (reference * -1.7).backward()
    torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(h.grad.double(), h64.grad, atol=1e-5, rtol=0)
    torch.testing.assert_close(w.grad.double(), w64.grad, atol=1e-5, rtol=0)


def test_the_sum_of_nothing_is_zero_with_a_zero_gradient() -> None:
    hidden, weight = torch.randn(0, 6, requires_grad=True), torch.randn(17, 6, requires_grad=True)
    total = summed_logprobs(hidden, weight, torch.empty(0, dtype=torch.int64))
    total.backward()
    assert total.item() == 0 and weight.grad.shape == (17, 6) and not weight.grad.any()


def test_the_sum_in_bfloat16_is_a_float32_number_with_bfloat16_gradients() -> None:
    torch.manual_seed(1)
    hidden, weight = (torch.randn(n, 8).bfloat16().requires_grad_() for n in (4, 11))
    targets = torch.tensor([0, 3, 5, 10])
    total = summed_logprobs(hidden, weight, targets)
    total.backward()
    exact_h, exact_w = (x.detach().float().requires_grad_() for x in (hidden, weight))
    expected = summed_logprobs(exact_h, exact_w, targets)
    expected.backward()
    assert total.dtype == torch.float32 and hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    # bf16 logits have 8 bits: near 4 they step by 0.03
    torch.testing.assert_close(total, expected, atol=0.1, rtol=0)
    torch.testing.assert_close(hidden.grad.float(), exact_h.grad, atol=0.05, rtol=0)
    torch.testing.assert_close(weight.grad.float(), exact_w.grad, atol=0.05, rtol=0)


def test_the_sum_without_gradients_is_the_same_number() -> None:
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(5, 6), torch.randn(17, 6), torch.randint(17, (5,))
    assert summed_logprobs(hidden, weight, targets) == summed_logprobs(hidden.requires_grad_(), weight, targets)


@pytest.mark.parametrize("upstream", ["both", "logprobs", "entropies"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_entropies_and_their_gradient_equal_a_full_softmax(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, temperature: float, upstream: str
) -> None:
    torch.manual_seed(3)
    hidden, weight, targets = torch.randn(10, 6), torch.randn(17, 6), torch.randint(17, (10,))
    to_logprobs, to_entropies = torch.randn(10) * (upstream != "entropies"), torch.randn(10) * (upstream != "logprobs")
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 17 * chunk_rows)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    ours, entropies = token_logprobs_and_entropies(h, w, targets, temperature)
    used = [(ours, to_logprobs), (entropies, to_entropies)]
    if upstream != "both":  # the other one does not enter the loss at all, which is not the same as with a factor of 0
        used = [used[upstream == "entropies"]]
    sum((values * factors).sum() for values, factors in used).backward()

    h64, w64 = hidden.double().requires_grad_(), weight.double().requires_grad_()
    full = ((h64 @ w64.T) / temperature).log_softmax(-1)
    reference = torch.stack([full[t, target] for t, target in enumerate(targets)])
    reference_entropies = torch.stack([-sum(p.exp() * p for p in row) for row in full])
    ((reference * to_logprobs.double()).sum() + (reference_entropies * to_entropies.double()).sum()).backward()
    assert reference_entropies.min() < 1.2 and reference_entropies.max() > 2, "guard: from sure to unsure; log 17 = 2.8"
    torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies.double(), reference_entropies, atol=1e-5, rtol=0)
    torch.testing.assert_close(h.grad.double(), h64.grad, atol=1e-5, rtol=0)
    torch.testing.assert_close(w.grad.double(), w64.grad, atol=1e-5, rtol=0)


def test_logprobs_are_the_same_bits_with_and_without_entropies() -> None:
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(10, 6), torch.randn(17, 6), torch.randint(17, (10,))
    gradients = []
    for function in (token_logprobs, lambda *given: token_logprobs_and_entropies(*given)[0]):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        found = function(h, w, targets)
        found.square().sum().backward()
        gradients.append((found.detach(), h.grad, w.grad))
    assert all(plain.equal(beside) for plain, beside in zip(*gradients, strict=True))


def test_entropies_at_the_ends_are_0_and_log_v() -> None:
    """A token that is certain beyond float32 has entropy 0, not 0 · −inf; one of 8 equal ones has log 8."""
    weight = torch.eye(8).requires_grad_()
    hidden = torch.stack([torch.eye(8)[2] * 300, torch.zeros(8)]).requires_grad_()
    _, entropies = token_logprobs_and_entropies(hidden, weight, torch.tensor([2, 5]))
    torch.testing.assert_close(entropies, torch.tensor([0.0, 8.0]).clamp(min=1).log(), atol=1e-6, rtol=0)
    entropies.sum().backward()
    assert hidden.grad.abs().max() < 1e-6, "both ends are flat"


def test_entropies_in_bfloat16_are_float32_numbers() -> None:
    torch.manual_seed(1)
    hidden, weight = (torch.randn(n, 8).bfloat16().requires_grad_() for n in (4, 11))
    found, entropies = token_logprobs_and_entropies(hidden, weight, torch.tensor([0, 3, 5, 10]))
    (found.sum() + entropies.sum()).backward()
    full = (hidden.float() @ weight.float().T).log_softmax(-1)
    assert found.dtype == entropies.dtype == torch.float32 and hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    # bf16 logits have 8 bits: near 4 they step by 0.03
    torch.testing.assert_close(entropies, -(full.exp() * full).sum(-1), atol=0.05, rtol=0)


def test_no_targets_give_empty_entropies_and_zero_gradient() -> None:
    hidden, weight = torch.randn(0, 6, requires_grad=True), torch.randn(17, 6, requires_grad=True)
    found, entropies = token_logprobs_and_entropies(hidden, weight, torch.empty(0, dtype=torch.int64))
    (found.sum() + entropies.sum()).backward()
    assert found.shape == entropies.shape == (0,) and not weight.grad.any()


@pytest.mark.parametrize("function", [token_logprobs, summed_logprobs])
def test_under_autocast_forward_and_backward_are_of_its_dtype(function: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(4, 8), torch.randn(11, 8), torch.tensor([0, 3, 5, 10])
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        under = function(h, w, targets)
    under.sum().backward()
    h16, w16 = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    outside = function(h16, w16, targets)
    outside.sum().backward()
    assert under.dtype == h.grad.dtype == w.grad.dtype == torch.float32
    assert under.equal(outside) and h.grad.equal(h16.grad.float()) and w.grad.equal(w16.grad.float())


FORMS = {
    "granite": (LogitForm(scale=0.125), False),
    "cohere": (LogitForm(scale=1.75), False),
    "gemma 2": (LogitForm(softcap=1.5), False),
    "bias": (PLAIN, True),
    "all of them": (LogitForm(scale=1.75, softcap=1.5), True),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["each", "sum", "entropies"])
def test_scales_caps_and_biases_equal_autograd_on_full_logits(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str, temperature: float
) -> None:
    """The judge: logits [T, V] written out in float64, as the model's own head makes them."""
    torch.manual_seed(4)
    form, has_bias = FORMS[name]
    given = [torch.randn(10, 6), torch.randn(17, 6), *([torch.randn(17)] if has_bias else [])]
    targets, upstream = torch.randint(17, (10,)), torch.randn(10)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 17 * 3)
    ours = [x.clone().requires_grad_() for x in given]
    options = {"temperature": temperature, "bias_V": ours[2] if has_bias else None, "form": form}
    function = {"each": token_logprobs, "sum": summed_logprobs, "entropies": token_logprobs_and_entropies}[kind]
    found = function(ours[0], ours[1], targets, **options)
    exact = [x.double().requires_grad_() for x in given]
    logits = (exact[0] @ exact[1].T + (exact[2] if has_bias else 0)) * form.scale
    if form.softcap is not None:
        assert logits.abs().max() > form.softcap, "guard: the cap bends something"
        logits = form.softcap * (logits / form.softcap).tanh()
    log_p = (logits / temperature).log_softmax(-1)
    picked, entropies = log_p[torch.arange(10), targets], -(log_p.exp() * log_p).sum(-1)
    if kind == "each":
        losses = ((found * upstream).sum(), (picked * upstream.double()).sum())
    elif kind == "sum":
        losses = (found * -1.7, picked.sum() * -1.7)
    else:
        losses = (
            (found[0] * upstream).sum() + 0.3 * found[1].sum(),
            (picked * upstream.double()).sum() + 0.3 * entropies.sum(),
        )
    torch.testing.assert_close(losses[0].double(), losses[1], atol=1e-5, rtol=1e-6)  # a sum near 100
    for gradient, expected in zip(
        torch.autograd.grad(losses[0], ours), torch.autograd.grad(losses[1], exact), strict=True
    ):
        torch.testing.assert_close(gradient.double(), expected, atol=1e-5, rtol=0)
