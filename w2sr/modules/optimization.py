"""What every training module does around its loss: parameter groups, the schedule, when ranks exchange gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from w2sr import chance
from w2sr.ranks import on_all_ranks
from w2sr.runs import RefusedByAll

FUSED_ON = ("cuda",)
"""Devices on which AdamW runs fused where nobody said otherwise: one kernel for all weights. torch's own choice there,
`foreach`, makes arrays as large as the weights while it steps (docs/results/traced_memory.md has how much)."""

OptimizerCallable = Callable[[Iterable], Optimizer]
"""An optimizer class with its arguments, as `lightning.pytorch.cli` has it: importing that costs the command line."""


def build_optimizer(
    optimizer: OptimizerCallable, learning_rate: float, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> Optimizer:
    """The optimizer over trainable parameters. Norms and biases (fewer than two dimensions) are not decayed.

    What it was given is said: where a command line changes the class, the parser keeps the arguments of the class
    before that the new one has too.
    """
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for _, parameter in trainable if parameter.ndim >= 2], "lr": learning_rate},
        {
            "params": [parameter for _, parameter in trainable if parameter.ndim < 2],
            "lr": learning_rate,
            "weight_decay": 0.0,
        },
    ]
    made = optimizer([group for group in groups if group["params"]])
    _choose_fused(made)
    given = [f"{name}={value}" for name, value in made.defaults.items() if name != "lr" and not isinstance(value, bool)]
    fused = ["fused"] if all(group.get("fused") for group in made.param_groups) else []
    told = ", ".join(["", *(word for word in given if not word.endswith("=None")), *fused])
    rank_zero_info(f"Optimizer: {type(made).__name__} with peak learning rate {learning_rate:g}{told}.")
    return made


def _choose_fused(optimizer: Optimizer) -> None:
    """Sets `fused` of each group whose weights all lie on FUSED_ON, if the class knows it and was told nothing.

    A group and not the whole optimizer, because the class is made from whatever callable the configuration gave.
    """
    for group in optimizer.param_groups:
        on_its_device = all(weight.device.type in FUSED_ON for weight in group["params"])
        if on_its_device and "fused" in group and group["fused"] is None and group.get("foreach") is None:
            group["fused"] = True


def lr_factor(step: int, num_steps: int, warmup_frac: float, min_lr_frac: float) -> float:
    """What the base learning rate is multiplied by at an optimizer step: linear warm-up, then cosine to `min_lr_frac`.

    The step after the last one of the warm-up has the full rate.

    >>> [round(lr_factor(step, 10, 0.2, 0.1), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    num_warmup = math.ceil(warmup_frac * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return min_lr_frac + (1 - min_lr_frac) * 0.5 * (1 + math.cos(math.pi * progress))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What a parameter group was given, as plain values; the learning rate is the schedule's."""
    plain = (int, float, str, tuple, type(None))
    return {name: value for name, value in group.items() if isinstance(value, plain) and not name.endswith("lr")}


class WarmupCosine(LambdaLR):
    """The schedule of `lr_factor`, to be stepped once an optimizer step.

    A run that goes on may have another number of steps or another peak. So a checkpoint gives this schedule its place
    and nothing else: from the first step on, the rate is that of the present configuration. So are the settings of the
    optimizer that the configuration changed, such as its weight decay; a checkpoint of an optimizer holds the old ones.
    """

    def __init__(self, optimizer: Optimizer, num_steps: int, warmup_frac: float, min_lr_frac: float) -> None:
        self.settings = [_settings(group) for group in optimizer.param_groups]
        super().__init__(optimizer, lambda step: lr_factor(step, num_steps, warmup_frac, min_lr_frac))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the place of a saved schedule. The optimizer must have its own state already."""
        before = state_dict.get("settings", self.settings)  # absent from checkpoints of 0.1.0
        for group, new, old in zip(self.optimizer.param_groups, self.settings, before, strict=True):
            group.update({name: value for name, value in new.items() if name in old and old[name] != value})
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self._last_lr = [peak * self.lr_lambdas[0](self.last_epoch) for peak in self.base_lrs]
        for group, peak, rate in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group["initial_lr"], group["lr"] = peak, rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales the gradients down to the global norm `limit` (0: leaves them). Returns the norm that they had."""
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.clip_grad_norm_(with_grad, limit if limit > 0 else float("inf"))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def seed_dropout(seed: int, *, optimizer_step: int, rank: int) -> None:
    """Makes the dropout of adapters a function of (seed, optimizer step, rank), so a resumed run drops the same."""
    torch.manual_seed(chance.integer("dropout", seed, optimizer_step, rank))


def require_finite(where: str, what: str, names: Iterable[str], loss: Tensor, grad_norm: Tensor, kind: str) -> None:
    """Raises `RefusedByAll` before a step that would make the weights NaN.

    The norm is of gradients that were averaged over ranks, so it is NaN on all of them where one loss is. To read it
    waits for the device; so does the forward pass of the next step.

    Args:
        where: the step, as a message begins: `Round 3`.
        what: whose `names` are told: those of the ranks whose loss is not finite.
        kind: of training, a key of `learning_rates`.
    """
    if bool(torch.isfinite(grad_norm)):
        return
    parts = on_all_ranks((float(loss), list(names)))
    bad = [part for part in parts if not math.isfinite(part[0])] or parts
    told = ", ".join(repr(name) for name in dict.fromkeys(name for _, names in bad for name in names))
    raise RefusedByAll(
        f"{where} has the loss {sum(part[0] for part in parts)} and a gradient of norm {float(grad_norm)}. Training "
        f"stops before that reaches the weights; every checkpoint written so far is good. {what} of the step: {told}. "
        f"Look at them, lower model.learning_rates.{kind}, or use a wider trainer.precision; then go on with "
        "--ckpt_path last."
    )


@contextmanager
def gradient_sync(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Lets DDP's ranks exchange gradients in the last micro-step only. `model` is the strategy's wrapped model.

    Gradients are sums, so leaving out the earlier exchanges changes the traffic and not the result. A sharded model
    exchanges them every time: to leave it out, each rank would have to keep the whole model's gradient.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    yield
