"""The student as a Hugging Face directory with a model card."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from w2sr import __version__


class ExportStudent(L.Callback):
    """Writes `student/` into the run directory when `fit` ends: safetensors, tokenizer, generation config, card.

    Args:
        licence: SPDX name for the model card; the student inherits its base model's and its traces' terms.
    """

    def __init__(self, licence: str = "other") -> None:
        self.licence = licence

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir) / "student"
        pl_module.save_student(folder)
        self._write_card(trainer, pl_module, folder)

    @rank_zero_only
    def _write_card(self, trainer: L.Trainer, pl_module: Any, folder: Path) -> None:
        title, training = pl_module.card()
        card = model_card(
            base_model=pl_module.student,
            licence=self.licence,
            title=title,
            training=training,
            num_steps=trainer.global_step,
            num_tokens=pl_module.num_trained_tokens,
            stop_tokens=[pl_module.chat.tokenizer.convert_ids_to_tokens(i) for i in pl_module.chat.stop_token_ids],
            command=" ".join(sys.argv),
            is_checked=pl_module.policy.is_checked,
        )
        (folder / "README.md").write_text(card)


def model_card(
    *,
    base_model: str,
    licence: str,
    title: str,
    training: str,
    num_steps: int,
    num_tokens: int,
    stop_tokens: list[str],
    command: str,
    is_checked: bool = True,
) -> str:
    """The text of a student's README.md: what it was trained on, how, and on whose terms (`training`)."""
    unchecked = "" if is_checked else "\n- Packed rows not compared with its own forward pass: `check_model: false`"
    return f"""---
base_model: {json.dumps(base_model)}
library_name: transformers
license: {licence}
tags: [w2sr, weak-to-strong-reasoning]
---
# {title}

Made from `{base_model}` with w2sr {__version__}.

- Training: {num_steps:,} optimizer steps, {num_tokens:,} tokens
- Completions end with: {", ".join(f"`{token}`" for token in stop_tokens)}
- Command: `{command}`{unchecked}

{training}
"""
