"""Students with adapters say the stop token that they are taught, also one that their base model has never said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from w2sr.attention import packed_layout
from w2sr.chat import Chat
from w2sr.losses import sft_loss
from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, load_policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.traces import read_traces
from w2sr.types import IGNORE_INDEX, Completion, SampleRequest, Sampling, Segment

MINIATURE = Path(__file__).resolve().parents[2] / "w2sr" / "miniature"
NUM_STEPS, NUM_PROBLEMS, MAX_NEW_TOKENS = 12, 32, 120
MIN_SHARE = 0.75
"""Of completions that end in the taught token, after 12 steps. Before there was a row for it, adapters gave 0 of 64."""
MAX_APART = 0.25
"""Two shares of 32 answers around 0.9: their difference has a standard error of 0.075."""
LOGITS_ATOL = 2e-4
"""Logits of up to 20 in float32, products of merged weights against separate ones, through four layers."""


@pytest.fixture(scope="module")
def chat() -> Chat:
    """The miniature ends its turns with `<|im_end|>`; here it is taught to end with another token."""
    return Chat.load(MINIATURE / "student", stop_token="<|endoftext|>")


@pytest.fixture(scope="module")
def problems() -> list[str]:
    with gzip.open(MINIATURE / "data" / "validation.jsonl.gz", "rt") as lines:
        return [json.loads(line)["problem"] for line in lines][:NUM_PROBLEMS]


def trained(chat: Chat, lora: LoRA | None, rate: float) -> Policy:
    """The miniature's student after 12 steps on 20 right traces each."""
    policy = load_policy(MINIATURE / "student")
    torch.manual_seed(0)
    if lora is not None:
        policy.add_lora(lora, chat.stop_token_ids[0])
    traces = [trace for trace in read_traces(MINIATURE / "traces")[0] if trace.verdict == "correct"]
    segments = chat.segments(traces[: 20 * NUM_STEPS])
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate)
    for step in range(NUM_STEPS):
        row = pack_row(segments[20 * step : 20 * step + 20])
        optimizer.zero_grad()
        sft_loss(policy(row), int((row.labels != IGNORE_INDEX).sum())).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return policy


def answers(policy: Policy, chat: Chat, problems: list[str]) -> list[Completion]:
    generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode, num_slots=NUM_PROBLEMS)
    requests = [SampleRequest(str(index), 0, tuple(chat.prompt_ids(text))) for index, text in enumerate(problems)]
    made = generator.stream(requests, Sampling(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS))
    return sorted(made, key=lambda completion: int(completion.problem_id))


def share_stopped(completions: list[Completion], stop_token_id: int) -> float:
    """Of completions that the taught token ends. `finish_reason` is `stop` for the tokenizer's own end token too."""
    ended = [made.finish_reason == "stop" and made.token_ids[-1] == stop_token_id for made in completions]
    return sum(ended) / len(ended)


@pytest.fixture(scope="module")
def adapted(chat: Chat) -> Policy:
    return trained(chat, LoRA(), 5e-3)


def test_a_student_with_adapters_stops_as_often_as_one_with_all_weights(
    chat: Chat, problems: list[str], adapted: Policy
) -> None:
    stop = chat.stop_token_ids[0]
    plain = answers(load_policy(MINIATURE / "student"), chat, problems)
    assert share_stopped(plain, stop) == 0.0, "guard: the base model never says it"
    whole, lora = (answers(policy, chat, problems) for policy in (trained(chat, None, 2e-3), adapted))
    shares = share_stopped(whole, stop), share_stopped(lora, stop)
    assert min(shares) > MIN_SHARE and abs(shares[0] - shares[1]) < MAX_APART, shares
    lengths = [sum(len(made.token_ids) for made in group) / NUM_PROBLEMS for group in (plain, lora)]
    assert lengths[1] > 3 * lengths[0], "guard: it learned to reason, and not to stop at once"


def test_the_export_has_the_adapters_merged_and_stops_where_transformers_generates(
    chat: Chat, problems: list[str], adapted: Policy, tmp_path: Path
) -> None:
    adapted.save(tmp_path, chat)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert lm.get_input_embeddings().weight is lm.get_output_embeddings().weight, "tied, as the base model is"
    assert not [name for name in lm.state_dict() if "lora" in name or "stop_row" in name]
    stop = chat.stop_token_ids[0]
    assert stop in GenerationConfig.from_pretrained(tmp_path).eos_token_id
    completions = answers(adapted, chat, problems[:4])
    for text, ours in zip(problems[:4], completions, strict=True):
        prompt = torch.tensor([chat.prompt_ids(text)])
        whole = torch.cat([prompt, torch.tensor([ours.token_ids])], dim=1)
        torch.testing.assert_close(packed_logits(adapted, whole[0]), lm(whole).logits[0], atol=LOGITS_ATOL, rtol=0)
        theirs = lm.generate(prompt, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)[0, prompt.shape[1] :]
        assert tuple(theirs.tolist()) == ours.token_ids and theirs[-1] == stop


@torch.no_grad()
def packed_logits(policy: Policy, input_ids: Tensor) -> Tensor:
    """Logits [T, V] of one packed segment, by the path that generation takes."""
    row = pack_row([Segment("x", input_ids.numpy(), np.full(len(input_ids), IGNORE_INDEX))])
    return policy.logits(policy.hidden(row.input_ids, row.position_ids, packed_layout(row, policy.engine())))
