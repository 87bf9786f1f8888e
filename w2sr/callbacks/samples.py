"""What the student writes, as text in TensorBoard."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger


class SampleText(L.Callback):
    """After each validation, shows the first validation completions beside their reference answers.

    Args:
        num_samples: how many.
    """

    def __init__(self, num_samples: int = 4) -> None:
        self.num_samples = num_samples

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        records = sorted(pl_module.validation_records, key=lambda record: record.problem_id)[: self.num_samples]
        text = "\n\n".join(
            f"**{record.problem_id}** {record.verdict}, reference {record.reference_answer}\n\n"
            + "\n".join(f"    {line}" for line in record.completion.splitlines() or [""])
            for record in records
        )
        for logger in trainer.loggers:
            if records and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("val/samples", text, trainer.global_step)
