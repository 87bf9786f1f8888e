"""Optimizer steps of the real modules, recorded: the weights before each step and the gradient it is made with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

GRAD_FRAC = 5e-6
"""Of the norm of the whole gradient: float32 sums over some hundred tokens in another order give up to 1.5e-6 of it."""

Tensors = dict[str, Tensor]


class Step(NamedTuple):
    """The learning rate of one optimizer step, the weights before it and the gradient, by transformers' names."""

    learning_rate: float
    weights: Tensors
    gradient: Tensors


class Recorder:
    """An optimizer for a module: plain SGD that records each of its steps."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, dict[int, tuple[Tensor, Tensor]]]] = []

    def __call__(self, groups: Iterable[Any]) -> torch.optim.Optimizer:
        seen = self.seen

        class RecordingSGD(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                parameters = [parameter for group in self.param_groups for parameter in group["params"]]
                now = {id(one): (one.detach().clone(), one.grad.clone()) for one in parameters}
                seen.append((self.param_groups[0]["lr"], now))
                return super().step(closure)

        return RecordingSGD(groups, lr=1.0)

    def steps(self, module: Any) -> list[Step]:
        names = {id(parameter): name for name, parameter in module.policy.lm.named_parameters()}
        return [
            Step(rate, *({names[key]: pair[place] for key, pair in now.items()} for place in (0, 1)))
            for rate, now in self.seen
        ]


def trainer(folder: Path, **options: Any) -> L.Trainer:
    """One that trains on this process's CPU and writes nothing of its own."""
    defaults: dict[str, Any] = {"max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{**defaults, **options},
    )


def eager(student: Path, weights: Tensors | None = None) -> PreTrainedModel:
    """transformers' own model with its own attention, with these weights in place of its file's."""
    lm = AutoModelForCausalLM.from_pretrained(student, attn_implementation="eager", dtype=torch.float32)
    if weights is not None:
        unknown = lm.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
        lm.tie_weights()
    return lm


def log_softmax_TV(lm: PreTrainedModel, token_ids: Iterable[int], temperature: float = 1.0) -> Tensor:
    """Log-probabilities of every token of the vocabulary after each token of one sequence that stands alone."""
    logits_TV = lm(input_ids=torch.tensor([list(token_ids)])).logits[0]
    return (logits_TV / temperature).log_softmax(-1)


def gradient_of(lm: PreTrainedModel, loss: Tensor) -> Tensors:
    lm.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in lm.named_parameters()}


def norm_of(gradient: Tensors) -> float:
    return sum(float(part.double().square().sum()) for part in gradient.values()) ** 0.5


def assert_same_gradient(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    atol = GRAD_FRAC * norm_of(expected)
    for name, gradient in expected.items():
        assert gradient.any(), f"guard: {name} has a gradient"
        torch.testing.assert_close(found[name], gradient, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
