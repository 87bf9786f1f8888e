"""Checkpoints that are whole or not there, and that know which student they are of."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from w2sr.modules.sharded_checkpoints import as_one_process, put_in_place, read_rest, read_tensors
from w2sr.policy import LoRA, Policy
from w2sr.runs import Progress, add_label, check_checkpoint

NUM_NAMED_DIFFERENCES = 4
UNIMPORTANT = ("architectures", "attention_dropout", "dtype", "transformers_version", "use_cache")
"""Keys of a model's configuration that say nothing about its weights or its forward pass in training."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a full disk leaves the one before it as it was.

    Lightning's own way writes to the temporary directory and moves the file. Where that is another file system, the
    move overwrites the old `last.ckpt` in place, and a full disk leaves half of a new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        aside = file.with_name(f".{file.name}.tmp")
        content = io.BytesIO()  # torch.save to a full disk raises an error that does not say so
        torch.save(checkpoint, content)
        if "global_step" in checkpoint:
            steps, epoch = checkpoint["global_step"], checkpoint["epoch"]
            add_label(content, Progress(steps, checkpoint.get("num_steps"), epoch))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                stream.write(content.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
            if file.is_dir():  # of a run that was sharded before it went on
                put_in_place(aside, file)
            else:
                aside.replace(file)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise OSError(
                f"The checkpoint {file} ({content.getbuffer().nbytes / 2**20:,.1f} MiB) cannot be written: "
                f"{error.strerror}. What lay there before is as it was. Make room, then go on: --ckpt_path last."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The checkpoint of a run of any number of processes, sharded or not."""
        if Path(path).is_dir():
            return as_one_process(read_rest(Path(path)), read_tensors(Path(path)))
        if "://" not in str(path):
            check_checkpoint(Path(path))
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ValueError(
                f"{path} is not a whole checkpoint ({reason}). Name another one, or start anew."
            ) from error


def write_whole_checkpoints(strategy: Any) -> None:
    """Makes a trainer's strategy write checkpoints by `WholeCheckpointIO`, in the place of exactly Lightning's default:
    what a user or a sharded strategy chose stays."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()


def student_identity(student: str, policy: Policy, lora: LoRA | None) -> dict[str, Any]:
    """What a checkpoint says of its student: its name, its configuration and its adapters, in plain types."""
    config = json.loads(policy.lm.config.to_json_string(use_diff=False))
    facts = {
        key: value
        for key, value in config.items()
        if key not in UNIMPORTANT and not key.startswith("_") and not key.endswith("_token_id")
    }
    return {"name": student, "config": {**facts, "lora": None if lora is None else asdict(lora)}}


def check_same_student(saved: dict[str, Any] | None, ours: dict[str, Any]) -> None:
    """Raises a ValueError unless the checkpoint's student has the architecture and the adapters of ours.

    Keys that only one of them has are left out: another version of transformers may know more.
    """
    if saved is None:
        raise ValueError(
            "The checkpoint was not written by fine-tuning with w2sr. Give one of this run's with --ckpt_path."
        )
    theirs, mine = saved["config"], ours["config"]
    differing = [key for key in mine if key in theirs and mine[key] != theirs[key]]
    if not differing:
        return
    # what people know a model by comes first
    differing.sort(key=lambda key: (key not in ("model_type", "lora"), "size" not in key and "num_" not in key, key))
    named = differing[:NUM_NAMED_DIFFERENCES]
    more = f" and {len(differing) - len(named)} more keys that differ" if len(differing) > len(named) else ""
    raise ValueError(
        f"The checkpoint is of another model: {saved['name']!r} with {_listed(theirs, named)}{more}; this run trains "
        f"{ours['name']!r} with {_listed(mine, named)}. Give a checkpoint of this model with --ckpt_path, or set "
        "model.student (and model.lora) to those of the checkpoint."
    )


def _listed(config: dict[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key}={config[key]}" for key in keys)
