"""`SFTModule.training_step` against the formula of the paper: transformers' own forward, one trace at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from steps_by_hand import (
    Recorder,
    Step,
    assert_same_gradient,
    eager,
    gradient_of,
    log_softmax_TV,
    norm_of,
    trainer,
)
from torch import Tensor

from w2sr.datamodules import TraceDataModule
from w2sr.datamodules.steps import StepDataset
from w2sr.modules import SFTModule
from w2sr.types import IGNORE_INDEX, DataFile, Segment, StepBatch

LOSS_ATOL = 2e-6
"""Losses near 5: four float32 ulps (4.8e-7) for sums in another order."""

STEPS = {"max_tokens": 160, "step_sequences": 4}
"""15 right traces of 52 to 98 tokens: 4 steps, the last of 3 traces, each of 2 to 4 rows."""


def trained(tiny_world: Any, folder: Path, data: Any = None, **changes: Any) -> tuple[SFTModule, list[Step], Any]:
    """The module after one epoch of plain SGD, its steps, and the datamodule that gave the traces."""
    recorder = Recorder()
    keys: dict[str, Any] = {"learning_rates": {"sft": 0.5}, "warmup_frac": 0.5, "clip_norm": 0.0, **changes}
    module = SFTModule(str(tiny_world.student), optimizer=recorder, **keys)
    data = data or TraceDataModule([DataFile(str(tiny_world.traces))], cache_dir=str(folder / "tokens"), **STEPS)
    trainer(folder, max_epochs=1).fit(module, datamodule=data)
    return module, recorder.steps(module), data


def planned(data: TraceDataModule) -> list[StepBatch]:
    """The steps of the first epoch."""
    sizes = {"seed": data.seed, "step_tokens": None, "window": 1, "rank": 0, "world_size": 1}
    dataset = StepDataset(data.train_segments, **STEPS, **sizes)  # type: ignore[arg-type]
    return [dataset[number] for number in range(dataset.num_steps)]


def loss_by_hand(lm: Any, segments: list[Segment]) -> Tensor:
    """-(1 / M) Σ_i Σ_t log p(y_it | x_i, y_i<t), M the loss tokens of all of them."""
    total, num_tokens = torch.zeros(()), 0
    for segment in segments:
        logprobs_TV = log_softmax_TV(lm, segment.input_ids.tolist())
        for place, label in enumerate(segment.labels.tolist()):
            if label != IGNORE_INDEX:
                total = total - logprobs_TV[place, label]
                num_tokens += 1
    return total / num_tokens


@pytest.fixture(scope="module")
def run(tiny_world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[SFTModule, list[Step], Any]:
    return trained(tiny_world, tmp_path_factory.mktemp("sft"))


def test_every_step_has_the_gradient_of_the_formula(run: Any, tiny_world: Any) -> None:
    """One denominator for the step: its rows have unequal numbers of loss tokens."""
    module, steps, data = run
    by_id = {segment.segment_id: segment for segment in data.train_segments}
    plan = planned(data)
    assert len(steps) == len(plan) == 4 and sorted(name for step in plan for name in step.trace_ids) == sorted(by_id)
    of_rows = [{int((row.labels != IGNORE_INDEX).sum()) for row in batch.rows} for batch in plan]
    assert min(len(batch.rows) for batch in plan) >= 2, "guard: several rows"
    assert sum(len(numbers) > 1 for numbers in of_rows) >= 2, "guard: of unequal length"
    for step, batch in zip(steps, plan, strict=True):
        lm = eager(tiny_world.student, step.weights)
        loss = loss_by_hand(lm, [by_id[name] for name in batch.trace_ids])
        assert_same_gradient(step.gradient, gradient_of(lm, loss))
    assert module.trainer.logged_metrics["train/loss"].item() == pytest.approx(loss.item(), abs=LOSS_ATOL)


def test_every_step_moves_the_weights_by_its_learning_rate(run: Any) -> None:
    """4 steps, half of them warm-up, to the peak 0.5: 0.25, 0.5; then a cosine over 2 steps: 0.5, 0.25."""
    module, steps, _ = run
    assert [step.learning_rate for step in steps] == pytest.approx([0.25, 0.5, 0.5, 0.25])
    after = [*(step.weights for step in steps[1:]), dict(module.policy.lm.named_parameters())]
    for step, weights in zip(steps, after, strict=True):
        for name, weight in step.weights.items():
            wanted = weight - step.learning_rate * step.gradient[name]
            torch.testing.assert_close(weights[name].detach(), wanted, atol=1e-7, rtol=1e-6)


def test_what_a_step_logs_is_of_that_step(run: Any) -> None:
    module, steps, data = run
    logged, last = {k: float(v) for k, v in module.trainer.logged_metrics.items()}, planned(data)[-1]
    assert logged["train/grad_norm"] == pytest.approx(norm_of(steps[-1].gradient), rel=1e-5)
    assert logged["train/learning_rate"] == pytest.approx(0.25)
    assert logged["train/loss_tokens"] == last.num_loss_tokens == sum(int((r.labels >= 0).sum()) for r in last.rows)
    assert len(last.rows) == 2 and logged["train/fill"] == pytest.approx(sum(last.lengths) / (2 * 160))
    assert module.num_trained_tokens == sum(len(segment) for segment in data.train_segments)


def test_the_gradient_is_scaled_down_to_the_limit_and_never_up(run: Any, tiny_world: Any, tmp_path: Path) -> None:
    _, free, _ = run
    norm = norm_of(free[0].gradient)
    assert norm > 0.3, "guard: the limit is met"
    _, clipped, _ = trained(tiny_world, tmp_path / "low", clip_norm=0.1)
    assert [norm_of(step.gradient) for step in clipped] == pytest.approx([0.1] * 4, rel=1e-4)
    for name, gradient in clipped[0].gradient.items():
        torch.testing.assert_close(gradient, free[0].gradient[name] * (0.1 / norm), atol=1e-6, rtol=1e-4)
    _, left, _ = trained(tiny_world, tmp_path / "high", clip_norm=100.0)
    for name, gradient in left[0].gradient.items():
        torch.testing.assert_close(gradient, free[0].gradient[name], atol=0, rtol=0)


def test_the_loss_on_held_out_traces_is_that_of_the_formula(tiny_world: Any, tmp_path: Path) -> None:
    data = TraceDataModule(
        [DataFile(str(tiny_world.traces))], held_out_frac=0.4, cache_dir=str(tmp_path / "tokens"), **STEPS
    )
    module, _, _ = trained(tiny_world, tmp_path, data)
    assert len(data.held_out_segments) >= 3, "guard"
    with torch.no_grad():
        lm = eager(tiny_world.student, dict(module.policy.lm.named_parameters()))  # type: ignore[union-attr]
        expected = loss_by_hand(lm, data.held_out_segments).item()
    assert module.trainer.callback_metrics["val/loss"].item() == pytest.approx(expected, abs=LOSS_ATOL)
