"""How likely a completion is to a student before it learns: the mean log-probability of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from w2sr.chat import Chat
from w2sr.locations import locate_model
from w2sr.packing import pack_row, plan_epoch
from w2sr.policy import DTypeName, Policy, check_model, load_policy
from w2sr.templates import Template
from w2sr.types import IGNORE_INDEX, Trace

COLUMNS = ("likelihood",)
WEIGHT_FILES = ("config.json", "*.safetensors")


@dataclass(frozen=True)
class Student:
    """The model that judges, and the hash of what decides its judgement (see `student_hash`)."""

    name: str
    policy: Policy
    chat: Chat
    hash: str
    dtype: DTypeName


def load_student(
    name: str,
    *,
    template: Template = "auto",
    stop_token: str | None = None,
    template_date: str | None = None,
    dtype: DTypeName = "float32",
) -> Student:
    """Loads a student onto the GPU where there is one."""
    place = str(locate_model(name))
    chat = Chat.load(place, template=template, stop_token=stop_token, template_date=template_date)
    policy = load_policy(place, dtype=dtype, checked=False)
    chat.check_vocabulary(policy.vocab_size)
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_model(policy)
    return Student(name, policy, chat, student_hash(place, chat), dtype)


def student_hash(place: str | Path, chat: Chat) -> str:
    """16 hex digits of a student's configuration, weights, tokenizer and chat template.

    A hub name is looked up among the files that were fetched, so that the weights themselves are hashed.
    """
    folder = Path(place)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(place), local_files_only=True, allow_patterns=list(WEIGHT_FILES)))
    digest = hashlib.sha256(chat.template_hash.encode())
    for pattern in WEIGHT_FILES:
        for file in sorted(folder.glob(pattern)):
            with file.open("rb") as stream:
                digest.update(f"/{file.name}/".encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


@torch.no_grad()
def likelihoods(student: Student, traces: Sequence[Trace], max_tokens: int) -> list[float]:
    """Mean log-probability in nats per completion token, one for each trace: (1 / L) Σ log p(y_t | x, y_<t).

    The stop token counts where the trace has one; the prompt is rendered in the student's own template. NaN where no
    token carries loss. Packed into rows of `max_tokens`.

    Raises:
        ValueError: a trace is longer than a row, or than the positions that the student has.
    """
    segments = student.chat.segments(traces)
    student.chat.check_positions(segments, getattr(student.policy.lm.config, "max_position_embeddings", None))
    for segment in segments:
        if len(segment) > max_tokens:
            raise ValueError(
                f"Trace {segment.segment_id!r} has {len(segment):,} tokens; a row holds max_tokens={max_tokens:,}. "
                f"Raise --max_tokens."
            )
    values = [float("nan")] * len(traces)
    for members in _rows([len(segment) for segment in segments], max_tokens):
        batch = pack_row([segments[member] for member in members])
        device = student.policy.device
        moved = batch._replace(
            **{name: getattr(batch, name).to(device) for name in ("input_ids", "labels", "position_ids", "cu_seqlens")}
        )
        logprobs = student.policy(moved).double().cpu()
        ends = batch.cu_seqlens.tolist()
        for at, member in enumerate(members):
            piece = slice(ends[at], ends[at + 1])
            num_tokens = int((batch.labels[piece] != IGNORE_INDEX).sum())
            if num_tokens:
                values[member] = float(logprobs[piece].sum()) / num_tokens
    return values


def _rows(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    plan = plan_epoch(np.array(lengths), seed=0, epoch=0, max_tokens=max_tokens, step_sequences=len(lengths))
    for row in plan.step_rows(0):
        yield [int(member) for member in row]
