"""Parameter groups, the learning-rate schedule, and when ranks exchange gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from w2sr.modules import optimization
from w2sr.modules.optimization import (
    WarmupCosine,
    build_optimizer,
    clip_gradients,
    gradient_sync,
    lr_factor,
    seed_dropout,
)


def small_model() -> nn.Module:
    """Weight [3, 4] and bias [3] of a linear layer, weight [4] of a norm, and one frozen matrix."""
    model = nn.ModuleDict({"linear": nn.Linear(4, 3), "norm": nn.RMSNorm(4), "frozen": nn.Linear(2, 2, bias=False)})
    model["frozen"].requires_grad_(False)
    return model


def test_norms_and_biases_are_not_decayed_and_frozen_weights_are_left_out() -> None:
    model = small_model()
    optimizer = build_optimizer(
        lambda groups: torch.optim.AdamW(groups, lr=77.0, weight_decay=0.3), 0.02, model.named_parameters()
    )
    decayed, spared = optimizer.param_groups
    assert [parameter.shape for parameter in decayed["params"]] == [(3, 4)]
    assert [parameter.shape for parameter in spared["params"]] == [(3,), (4,)]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert (decayed["lr"], spared["lr"]) == (0.02, 0.02), "learning_rates overrules the optimizer's own"


def test_the_optimizer_is_said_with_what_it_was_given(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    build_optimizer(lambda groups: torch.optim.SGD(groups, momentum=0.8), 0.5, small_model().named_parameters())
    assert "Optimizer: SGD with peak learning rate 0.5, momentum=0.8, dampening=0, weight_decay=0.\n" in caplog.text


@pytest.mark.parametrize(
    ("made", "fused"),
    [
        (lambda groups: torch.optim.AdamW(groups, lr=1.0), True),
        (lambda groups: torch.optim.AdamW(groups, lr=1.0, fused=False), False),
        (lambda groups: torch.optim.AdamW(groups, lr=1.0, foreach=True), None),
        (lambda groups: torch.optim.RMSprop(groups, lr=1.0), None),
    ],
)
def test_adamw_is_fused_on_a_gpu_where_nobody_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, made: Callable[[Any], torch.optim.Optimizer], fused: bool | None
) -> None:
    def stepped() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = small_model()
        optimizer = build_optimizer(made, 0.01, model.named_parameters())
        for parameter in model.parameters():
            parameter.data.fill_(0.5)
            parameter.grad = torch.full_like(parameter, 0.25)
        for _ in range(3):
            optimizer.step()
        return model, optimizer

    plain, chosen = stepped()
    assert all(group.get("fused") in (None, False) for group in chosen.param_groups), "a CPU keeps torch's choice"
    monkeypatch.setattr(optimization, "FUSED_ON", ("cpu",))
    model, chosen = stepped()
    assert [group.get("fused") for group in chosen.param_groups] == [fused, fused]
    for ours, reference in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0)


def test_decay_shrinks_the_matrix_only() -> None:
    """Without gradient, one step of SGD with decay 0.3 and rate 0.5 multiplies the matrix by 1 - 0.15."""
    model = small_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(
        lambda groups: torch.optim.SGD(groups, lr=1.0, weight_decay=0.3), 0.5, model.named_parameters()
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.85 if name == "linear.weight" else 1.0
        torch.testing.assert_close(parameter, before[name] * factor)


def test_a_model_of_norms_only_has_no_empty_group() -> None:
    optimizer = build_optimizer(lambda groups: torch.optim.SGD(groups, lr=1.0), 0.5, nn.RMSNorm(3).named_parameters())
    assert len(optimizer.param_groups) == 1


def test_warm_up_rises_to_the_peak_and_the_cosine_falls_to_the_floor() -> None:
    """12 steps, warm-up 0.3 → ceil(3.6) = 4 steps: 1/4, 2/4, 3/4, 4/4. Then 8 steps from 1 to 0.2.

    A quarter of the way, after 2 of 8 steps: 0.2 + 0.8 · (1 + cos 45°)/2 = 0.882843; half way 0.6; at the end 0.2.
    """
    found = [lr_factor(step, 12, 0.3, 0.2) for step in (0, 1, 2, 3, 4, 6, 8, 12, 15)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.882843, 0.6, 0.2, 0.2], abs=1e-6)


@pytest.mark.parametrize(("warmup_frac", "first"), [(0.0, 1.0), (1.0, 0.2)])
def test_no_warm_up_and_only_warm_up(warmup_frac: float, first: float) -> None:
    assert lr_factor(0, 5, warmup_frac, 0.0) == first
    assert lr_factor(4, 5, 1.0, 0.0) == 1.0


def test_a_single_step_is_not_lost_on_the_warm_up() -> None:
    assert lr_factor(0, 1, 0.1, 0.0) == 1.0


def test_the_scheduler_is_stepped_once_an_optimizer_step() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    scheduler = WarmupCosine(optimizer, num_steps=4, warmup_frac=0.5, min_lr_frac=0.1)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # 2 warm-up steps: 0.2, 0.4; then cosine over 2: 0.4, and half way 0.4 · (0.1 + 0.9 / 2) = 0.22; it ends at 0.04
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.22])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.04)


def test_a_checkpoint_gives_the_schedule_its_place_only() -> None:
    """Stopped after 2 of 2 steps at rate 0; 6 steps at peak 0.8 are wanted now: (1 + cos(π k / 6)) / 2 for k = 2, 3."""
    parameter = nn.Parameter(torch.ones(2, 2))
    stopped = torch.optim.SGD([parameter], lr=0.4)
    old = WarmupCosine(stopped, num_steps=2, warmup_frac=0.0, min_lr_frac=0.0)
    for _ in range(2):
        stopped.step()
        old.step()
    assert stopped.param_groups[0]["lr"] == 0, "guard: the old schedule is at its end"
    optimizer = torch.optim.SGD([parameter], lr=0.8)
    scheduler = WarmupCosine(optimizer, num_steps=6, warmup_frac=0.0, min_lr_frac=0.0)
    optimizer.load_state_dict(stopped.state_dict())
    scheduler.load_state_dict(old.state_dict())
    rates = [optimizer.param_groups[0]["lr"]]
    assert scheduler.get_last_lr() == rates
    optimizer.step()
    scheduler.step()
    assert [*rates, optimizer.param_groups[0]["lr"]] == pytest.approx([0.6, 0.4])


def test_settings_of_the_optimizer_that_changed_are_the_present_ones() -> None:
    """Its moments are the checkpoint's, as is what an optimizer changed itself (`found`), and norms stay undecayed."""

    def made(**settings: Any) -> tuple[torch.optim.Optimizer, WarmupCosine]:
        named = small_model().named_parameters()
        optimizer = build_optimizer(lambda groups: torch.optim.AdamW(groups, **settings), 0.5, named)
        for group in optimizer.param_groups:
            group["found"] = 1.0
        return optimizer, WarmupCosine(optimizer, 10, 0.0, 0.0)

    first, schedule = made(weight_decay=0.1, betas=(0.8, 0.9), fused=True)
    for group in first.param_groups:
        group["found"] = 7.0
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    first.step()
    second, resumed = made(weight_decay=0.3, betas=(0.8, 0.95))
    second.load_state_dict(first.state_dict())
    assert [group["weight_decay"] for group in second.param_groups] == [0.1, 0.0], "torch takes the checkpoint's"
    resumed.load_state_dict(schedule.state_dict())
    assert [group["weight_decay"] for group in second.param_groups] == [0.3, 0.0]
    assert all(group["betas"] == (0.8, 0.95) and group["found"] == 7.0 for group in second.param_groups)
    assert all(group["fused"] is None for group in second.param_groups)
    moments = [state["exp_avg"] for state in second.state.values()]
    assert len(moments) == 3 and all(torch.allclose(moment, torch.tensor(0.2)) for moment in moments)  # (1 - 0.8) · 1


@pytest.mark.parametrize(("limit", "factor"), [(0.5, 0.1), (4.0, 0.8), (5.0, 1.0), (50.0, 1.0), (0.0, 1.0)])
def test_gradients_are_scaled_down_to_the_limit_and_0_is_no_limit(limit: float, factor: float) -> None:
    """3 and 4 in two weights: the norm is 5."""
    first, second, without = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    norm = clip_gradients([first, second, without], limit)
    assert norm.item() == 5 and without.grad is None
    assert first.grad.tolist() == pytest.approx([3 * factor, 0], rel=1e-5)
    assert second.grad.tolist() == pytest.approx([0, 4 * factor], rel=1e-5)


def test_only_the_last_micro_step_exchanges_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    events: list[str] = []

    class FakeDDP(nn.Module):
        @contextmanager
        def no_sync(self):  # type: ignore[no-untyped-def]
            events.append("held back")
            yield

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", FakeDDP)
    for number in range(3):
        with gradient_sync(FakeDDP(), last=number == 2):
            events.append(f"backward {number}")
    assert events == ["held back", "backward 0", "held back", "backward 1", "backward 2"]


def test_a_plain_model_needs_no_exchange() -> None:
    with gradient_sync(small_model(), last=False):
        pass


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    def dropped(seed: int, step: int, rank: int) -> list[bool]:
        seed_dropout(seed, optimizer_step=step, rank=rank)
        return (nn.functional.dropout(torch.ones(64), 0.5) == 0).tolist()

    once = dropped(3, 7, 1)
    torch.rand(5)
    assert dropped(3, 7, 1) == once
    assert all(dropped(*other) != once for other in ((4, 7, 1), (3, 8, 1), (3, 7, 0), (7, 3, 1)))
