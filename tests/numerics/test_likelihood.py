"""The student's likelihood of packed traces against transformers' own loss on one trace at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from w2sr.scores import likelihood_score, likelihoods, load_student, student_hash
from w2sr.traces import read_store
from w2sr.types import Trace

TOLERANCE = 2e-5
"""Nats a token: float32 sums in another order."""


@pytest.fixture(scope="module")
def traces(tiny_world: Any) -> list[Trace]:
    return sorted(read_store(tiny_world.traces), key=lambda trace: trace.trace_id)[:9]


def test_likelihood_is_minus_the_mean_loss_of_the_completion(tiny_world: Any, traces: list[Trace]) -> None:
    student = load_student(str(tiny_world.student))
    cut = [*traces[:8], replace(traces[8], finish_reason="length")]
    values = likelihoods(student, cut, max_tokens=230)
    lm = AutoModelForCausalLM.from_pretrained(tiny_world.student, attn_implementation="eager").eval()
    for trace, value in zip(cut, values, strict=True):
        prompt = student.chat.prompt_ids(trace.problem)
        completion = student.chat.tokenizer(trace.completion, add_special_tokens=False)["input_ids"]
        completion += [student.chat.stop_token_id] * (trace.finish_reason != "length")
        with torch.no_grad():
            logprobs = lm(torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
        total = sum(float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(completion))
        assert value == pytest.approx(total / len(completion), abs=TOLERANCE)
    assert len(set(values)) == 9 and all(-20 < value < -1 for value in values)
    # alone in a row, or with others: the same
    assert likelihoods(student, cut[3:4], max_tokens=230) == pytest.approx(values[3:4], abs=TOLERANCE)


def test_a_trace_longer_than_a_row_is_named(tiny_world: Any, traces: list[Trace]) -> None:
    with pytest.raises(ValueError, match=r"has \d+ tokens; a row holds max_tokens=50. Raise --max_tokens."):
        likelihoods(load_student(str(tiny_world.student)), traces, max_tokens=50)


def test_a_trace_beyond_the_students_positions_is_named(tiny_world: Any, traces: list[Trace]) -> None:
    student = load_student(str(tiny_world.student))
    longest = max(student.chat.segments(traces), key=len)
    student.policy.lm.config.max_position_embeddings = len(longest)
    assert len(likelihoods(student, traces, max_tokens=230)) == 9
    student.policy.lm.config.max_position_embeddings = len(longest) - 1
    said = rf"'{longest.segment_id}' has {len(longest)} tokens with its prompt; .* has {len(longest) - 1} positions"
    with pytest.raises(ValueError, match=said):
        likelihoods(student, traces, max_tokens=230)


def test_a_completion_without_tokens_has_no_likelihood(tiny_world: Any, traces: list[Trace]) -> None:
    student = load_student(str(tiny_world.student))
    silent = replace(traces[0], completion="", finish_reason="length")
    first, second = likelihoods(student, [silent, traces[1]], max_tokens=230)
    assert first != first and second < 0


def test_students_are_told_apart_by_weights_and_template(tiny_world: Any) -> None:
    student, other = (load_student(str(path)) for path in (tiny_world.student, tiny_world.teacher))
    simple = load_student(str(tiny_world.student), template="simple")
    assert len({student.hash, other.hash, simple.hash}) == 3
    assert student_hash(tiny_world.student, student.chat) == student.hash
    kinds = {likelihood_score(one, 99).provenance.folder for one in (student, other, simple)}
    assert len(kinds) == 3 and all(kind.startswith("likelihood-v1-") and kind.endswith("-float32") for kind in kinds)
