"""What the two sides of `grpo_step.py` train on: models whose completions end by themselves, and problems.

Legend: T packed tokens, V vocabulary, E hidden size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, cast

import common
import numpy as np
import torch
from sft_throughput import MINIATURE
from transformers import Qwen3Config

from w2sr.attention import packed_layout
from w2sr.chat import Chat
from w2sr.datamodules import ProblemDataModule
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.templates import Template
from w2sr.types import IGNORE_INDEX, DataFile, Problem, Segment

GROUP_SIZE = 8
STOP_PROBABILITY = 1 / 80


class Job(NamedTuple):
    """What both sides train on: a directory with model and tokenizer, N problems, and the limit of a completion."""

    name: str
    folder: Path
    template: Template
    problems: DataFile
    num_problems: int
    max_new_tokens: int

    @property
    def num_rollouts(self) -> int:
        return self.num_problems * GROUP_SIZE


def read(job: Job) -> list[Problem]:
    data = ProblemDataModule(problems={"asked": job.problems}, step_problems=job.num_problems)
    data.setup("predict")
    data.teardown("predict")
    return data.train_problems


def miniature_job(student: Path, num_problems: int) -> Job:
    """A student of the miniature that reasons, on problems of its world."""
    file = DataFile(str(MINIATURE / "data" / "train.jsonl.gz"), limit=num_problems)
    return Job("miniature", student, "auto", file, num_problems, 160)


def gsm8k_job(data: Path, folder: Path, num_problems: int) -> Job:
    """A random Qwen3 with the 49k vocabulary of SmolLM2 on GSM8K problems, whose completions have ragged lengths."""
    chat = Chat.load(data / "tokenizers" / "smollm2-135m-instruct", template="qwen-base")
    torch.manual_seed(0)
    policy = new_policy(
        Qwen3Config(
            vocab_size=len(chat.tokenizer),
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=8,
            num_attention_heads=4,
            head_dim=64,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )
    path = data / "problems" / "gsm8k_train.jsonl.gz"
    stop_by_chance(policy, chat, [row["problem"] for _, row in zip(range(16), common.rows(path), strict=False)])
    policy.save(folder, chat)
    columns: dict[str, str | list[str]] = {"problem_id": "id", "problem": "problem", "reference_answer": "answer"}
    return Job("GSM8K", folder, "qwen-base", DataFile(str(path), columns, limit=num_problems), num_problems, 192)


@torch.no_grad()
def stop_by_chance(policy: Policy, chat: Chat, texts: list[str]) -> None:
    """Makes lengths geometric: after about one token in eighty the model stops, on both sides alike.

    All embeddings get a first component of 1, so the first of the hidden state is nearly constant; the stop token's own
    is then set so that its logit has the wanted odds against all others together.
    """
    weight_VE = cast(Any, policy.lm.get_input_embeddings()).weight
    weight_VE[:, 0] = 1.0
    ids = [np.array(chat.prompt_ids(text)) for text in texts]
    row = pack_row([Segment("", part, np.full(len(part), IGNORE_INDEX)) for part in ids])
    hidden_TE = policy.hidden(row.input_ids, row.position_ids, packed_layout(row, policy.engine()))
    logits_TV = policy.logits(hidden_TE)
    stop = chat.stop_token_id
    wanted = logits_TV.logsumexp(-1).mean() + math.log(STOP_PROBABILITY / (1 - STOP_PROBABILITY))
    weight_VE[stop, 0] += (wanted - logits_TV[:, stop].mean()) / hidden_TE[:, 0].mean()
