"""`export CHECKPOINT_OR_RUN_DIR OUT`: any checkpoint of a run as a Hugging Face directory, checked against it."""

from __future__ import annotations

import argparse
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.distributed import checkpoint as dcp

from w2sr.chat import Chat
from w2sr.modules.checkpoints import check_same_student, student_identity
from w2sr.modules.sharded_checkpoints import read_rest
from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, empty_policy, load_policy
from w2sr.policy.stored import stored_form
from w2sr.runs import check_checkpoint, holds_a_run, newest_checkpoint, read_label
from w2sr.sharding import compute_buffers
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment
from w2sr.weight_files import write_weights

MERGED_ATOL = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Nats by which log-probabilities may differ where adapters were merged: products are then rounded at other places, and
in bfloat16 to 8 bits."""
EQUAL_ATOL = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""The same without adapters. Weights are then equal bit by bit, which is checked; a kernel for experts may round equal
weights differently, by where they lie in memory."""
NUM_SPREAD = 16
"""Tokens of the probe beside the special ones."""
PROBE_TOKENS = 32
"""Of a segment of the probe; models have more positions."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run directory: its student's settings, and its weights by name, read one at a time."""

    path: Path
    settings: dict[str, Any]
    student: dict[str, Any] | None
    read: Callable[[str, Tensor], Tensor]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Opens a checkpoint of any kind. Raises a ValueError unless it is whole and lies in a run directory."""
        check_checkpoint(path)
        run = path.parent.parent
        if not holds_a_run(run):
            raise ValueError(
                f"{path} lies in no run directory of w2sr: there is no {run / 'config.yaml'}, which names the student "
                "and its template. Checkpoints can hold code, so only those of your own runs are read. Copy the run "
                "directory as a whole."
            )
        settings = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
        if path.is_dir():

            def read_sharded(name: str, like: Tensor) -> Tensor:
                held = {"state_dict": {name: torch.empty_like(like, device="cpu")}}
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
                    dcp.load(held, checkpoint_id=path, no_dist=True)
                return held["state_dict"][name]

            return cls(path, settings, read_rest(path).get("student"), read_sharded)
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return cls(path, settings, content.get("student"), lambda name, like: content["state_dict"][name])

    def chat(self) -> Chat:
        settings = self.settings
        return Chat.load(
            settings["student"],
            template=settings.get("template", "auto"),
            stop_token=settings.get("stop_token"),
            template_date=settings.get("template_date"),
            trust_remote_code=bool(settings.get("trust_remote_code")),
        )

    def policy(self, chat: Chat) -> Policy:
        """The student on the meta device, with its adapters: the names and shapes of the weights."""
        settings = self.settings
        policy = empty_policy(
            settings["student"],
            dtype=settings.get("dtype", "float32"),
            trust_remote_code=bool(settings.get("trust_remote_code")),
        )
        lora = LoRA(**settings["lora"]) if settings.get("lora") else None
        if lora is not None:
            policy.add_lora(lora, chat.stop_token_ids[0])
        check_same_student(self.student, student_identity(settings["student"], policy, lora))
        return policy

    def reader(self, policy: Policy) -> Callable[[Tensor], Tensor]:
        """A function that reads the weight that stands at a place of the policy."""
        names = {id(weight): f"policy.{name}" for name, weight in policy.state_dict(keep_vars=True).items()}
        return lambda weight: self.read(names[id(weight)], weight)


def main(argv: Sequence[str]) -> None:
    """`export CHECKPOINT_OR_RUN_DIR OUT`: writes the directory, and compares it with the checkpoint."""
    parser = argparse.ArgumentParser(
        prog="export", description="A checkpoint, or a run directory's newest one, as a Hugging Face directory."
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT_OR_RUN_DIR")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory that is made")
    parser.add_argument(
        "--unchecked", action="store_true", help="do not load both models to compare them: each needs memory for itself"
    )
    args = parser.parse_args(argv)

    if args.out.exists():
        raise ValueError(f"{args.out} exists. Give another directory, or remove it.")
    checkpoint = Checkpoint.open(_chosen(args.source))
    chat = checkpoint.chat()
    aside = args.out.with_name(f".{args.out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    policy = checkpoint.policy(chat)
    policy.save_description(aside, chat)
    write_weights(aside, stored_form(policy.lm, policy.merged_weights(checkpoint.reader(policy))))
    said = "not checked" if args.unchecked else _checked(checkpoint, chat, aside)
    aside.rename(args.out)
    at = f" at {label}" if (label := read_label(checkpoint.path)) else ""
    print(f"{args.out}: the student of {checkpoint.path}{at}; {said}.")


def _chosen(source: Path) -> Path:
    if not source.exists() or (source.is_dir() and not any(source.iterdir())):
        raise ValueError(f"{source} is no checkpoint and no run directory. Name one: RUN or RUN/checkpoints/NAME.ckpt.")
    if (source / "config.json").exists():
        raise ValueError(f"{source} is a model directory already, so there is nothing to export: name it as a model.")
    if not holds_a_run(source):
        return source
    newest = newest_checkpoint(source)
    if newest is None:
        raise ValueError(f"The run directory {source} holds no checkpoint.")
    return newest


def _checked(checkpoint: Checkpoint, chat: Chat, folder: Path) -> str:
    """Compares the two on some tokens. Raises a ValueError, and leaves nothing, where they differ."""
    policy = _filled(checkpoint, chat)
    ids = probed_ids(chat, policy.vocab_size)
    row = _probe(ids)
    expected = _logprobs(policy, row)
    del policy
    dtype = checkpoint.settings.get("dtype", "float32")
    trusted = bool(checkpoint.settings.get("trust_remote_code"))
    checked = bool(checkpoint.settings.get("check_model", True))
    written = load_policy(folder, dtype=dtype, trust_remote_code=trusted, checked=checked)
    apart = float((_logprobs(written, row) - expected).abs().max())
    limit = (MERGED_ATOL if checkpoint.settings.get("lora") else EQUAL_ATOL)[getattr(torch, dtype)]
    wrong = "" if checkpoint.settings.get("lora") else _changed_weight(checkpoint, checkpoint.policy(chat), written)
    if wrong or not apart <= limit:
        shutil.rmtree(folder)
        named = f" The weight {wrong!r} is another one." if wrong else ""
        raise ValueError(
            f"What was written gives log-probabilities that differ from those of {checkpoint.path} by {apart:.2g} nats "
            f"(at most {limit:.2g} is rounding).{named} Nothing is left of it. transformers stores this model's "
            "weights under other names than it has in memory, or in another form."
        )
    return f"log-probabilities of {len(ids)} tokens agree within {apart:.2g} nats"


def _changed_weight(checkpoint: Checkpoint, policy: Policy, written: Policy) -> str:
    """The first weight that is not the checkpoint's bit by bit; "" where all are. Read one at a time."""
    read, found = checkpoint.reader(policy), written.state_dict()
    weights = policy.state_dict(keep_vars=True).items()
    return next((name for name, weight in weights if not torch.equal(read(weight), found[name])), "")


def probed_ids(chat: Chat, num_rows: int) -> np.ndarray:
    """The tokens on which the two are compared: NUM_SPREAD over the vocabulary, all that end a completion or are
    special, the last of the tokenizer and the last row of the embedding. Each once, in an order that mixes them."""
    special = [*chat.stop_token_ids, *chat.tokenizer.all_special_ids, *chat.tokenizer.get_added_vocab().values()]
    ids = {*(np.arange(NUM_SPREAD) * num_rows // NUM_SPREAD).tolist(), *special, chat.vocab_size - 1, num_rows - 1}
    return np.random.default_rng(0).permutation(sorted(ids))


def _probe(ids: np.ndarray) -> PackedBatch:
    """Segments of PROBE_TOKENS in which each token is read, and is the label of another one."""
    parts = np.array_split(ids, -(-len(ids) // PROBE_TOKENS))
    whole = [np.append(part, part[0]) for part in parts]
    return pack_row([Segment("probe", part, np.append(part[1:], IGNORE_INDEX)) for part in whole])


def _filled(checkpoint: Checkpoint, chat: Chat) -> Policy:
    """The checkpoint's policy as it was trained, adapters apart."""
    policy = checkpoint.policy(chat)
    read = checkpoint.reader(policy)
    state = {name: read(weight) for name, weight in policy.state_dict(keep_vars=True).items()}
    policy.to_empty(device="cpu")
    policy.lm.tie_weights()
    compute_buffers(policy, torch.device("cpu"))
    policy.load_state_dict(state)
    return policy


@torch.no_grad()
def _logprobs(policy: Policy, row: PackedBatch) -> Tensor:
    return policy.eval()(row)
