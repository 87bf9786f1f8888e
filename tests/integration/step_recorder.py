"""A callback that writes down what each rank trains on: `steps-RANK.jsonl` in the run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L


class StepRecorder(L.Callback):
    """A line for each optimizer step: the names of this rank's traces, and the loss tokens of each of its rows."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        line = {
            "traces": list(batch.trace_ids),
            "rows": [int((row.labels >= 0).sum()) for row in batch.rows],
            "step_tokens": batch.num_loss_tokens,
        }
        with (Path(trainer.default_root_dir) / f"steps-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def recorded(folder: Path, rank: int) -> list[dict[str, Any]]:
    """The lines of one rank."""
    return [json.loads(line) for line in (folder / f"steps-{rank}.jsonl").read_text().splitlines()]
