"""A run that goes on with another number of steps: the learning rate of every step is the new schedule's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2sr.cli import main

Config = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]

SAVE = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 1, "save_top_k": -1, "filename": "at-{step}"},
}
GRPO_SCHEDULE = {"model__warmup_frac": 0.25, "model__min_lr_frac": 0.1}
RATE_ATOL = 1e-8
"""TensorBoard keeps float32: 0.01 is kept to 1e-9, and the numbers here have 8 decimals."""


@pytest.fixture(scope="module")
def sft_checkpoints(tmp_path_factory: pytest.TempPathFactory, fit_config: Config) -> Path:
    """Of every step of two epochs, 8 steps."""
    folder = tmp_path_factory.mktemp("sft") / "first"
    main(["fit", "--config", str(fit_config(folder, trainer__callbacks=[SAVE]))])
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def grpo_checkpoints(tmp_path_factory: pytest.TempPathFactory, grpo_config: Config) -> Path:
    """Of every round of two epochs, 4 steps."""
    folder = tmp_path_factory.mktemp("grpo") / "first"
    main(["fit", "--config", str(grpo_config(folder, **GRPO_SCHEDULE, trainer__callbacks=[SAVE]))])
    return folder / "checkpoints"


@pytest.mark.parametrize(
    ("step", "changes", "expected"),
    [
        # 12 steps, the first ceil(0.25 · 12) = 3 of them warm-up; then 0.01 · (1 + cos(π k / 9)) / 2 for k = 1 … 8
        (
            4,
            {"trainer__max_epochs": 3},
            [0.00969846, 0.00883022, 0.0075, 0.00586824, 0.00413176, 0.0025, 0.00116978, 0.00030154],
        ),
        # 4 steps, one of them warm-up: 0.01 · (1 + cos(π k / 3)) / 2 for k = 1, 2
        (2, {"trainer__max_epochs": 1}, [0.0075, 0.0025]),
        (2, {"trainer__max_steps": 4}, [0.0075, 0.0025]),
        # the 8 steps of the first run with another peak, 2 of them warm-up: 0.03 · (1 + cos(π k / 6)) / 2 for k = 4, 5
        (6, {"model__learning_rates": {"sft": 0.03}}, [0.0075, 0.00200962]),
    ],
    ids=["longer", "shorter", "fewer steps", "another peak"],
)
def test_sft_follows_the_new_schedule_from_its_first_step(
    step: int,
    changes: dict[str, Any],
    expected: list[float],
    sft_checkpoints: Path,
    tmp_path: Path,
    fit_config: Config,
    scalars: Scalars,
) -> None:
    checkpoint = sft_checkpoints / f"at-step={step}.ckpt"
    main(["fit", "--config", str(fit_config(tmp_path / "on", **changes)), "--ckpt_path", str(checkpoint)])
    rates = scalars(tmp_path / "on", "train/learning_rate")
    assert list(rates) == list(range(step, step + len(expected)))
    assert list(rates.values()) == pytest.approx(expected, abs=RATE_ATOL)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        # 6 rounds of one step, ceil(0.25 · 6) = 2 of them warm-up; then 0.01 · (0.1 + 0.9 (1 + cos(π k / 4)) / 2)
        (3, [0.01, 0.00868198, 0.0055, 0.00231802]),
        # 4 rounds, as in the first run: one of warm-up, then k = 1, 2 of 3
        (2, [0.00775, 0.00325]),
    ],
    ids=["longer", "as before"],
)
def test_grpo_follows_the_new_schedule_from_its_first_step(
    epochs: int, expected: list[float], grpo_checkpoints: Path, tmp_path: Path, grpo_config: Config, scalars: Scalars
) -> None:
    config = grpo_config(tmp_path / "on", **GRPO_SCHEDULE, trainer__max_epochs=epochs)
    main(["fit", "--config", str(config), "--ckpt_path", str(grpo_checkpoints / "at-step=2.ckpt")])
    rates = scalars(tmp_path / "on", "train/learning_rate")
    assert list(rates.values()) == pytest.approx(expected, abs=RATE_ATOL)
