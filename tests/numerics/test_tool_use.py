"""Stop texts and calculator calls in generation: what they leave unchanged, and what they put right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from w2sr.chat import Chat
from w2sr.miniature.world import problems
from w2sr.policy import load_policy
from w2sr.rollouts import EmbeddedGenerator, Generator, ToolGenerator
from w2sr.rollouts.freshness import completion_logprobs
from w2sr.rollouts.stop_text import StopText
from w2sr.tools import Calculator
from w2sr.types import Completion, SampleRequest, Sampling

TEACHER = Path(__file__).resolve().parents[2] / "w2sr" / "miniature" / "teacher"
EQUATIONS = Calculator(open="", close=" = ", result="{}")
SAMPLED = Sampling(0.8, 0.9, max_new_tokens=160, seed=3)


@cache
def teacher() -> tuple[EmbeddedGenerator, Chat]:
    chat, policy = Chat.load(TEACHER), load_policy(TEACHER)
    return EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode, num_slots=16), chat


@cache
def asked() -> tuple[SampleRequest, ...]:
    _, chat = teacher()
    found = problems("validation", 32, seed=5)
    return tuple(SampleRequest(p.problem_id, 0, tuple(chat.prompt_ids(p.problem))) for p in found)


def written(generator: Generator, requests: Sequence[SampleRequest], sampling: Sampling) -> dict[str, Completion]:
    return {completion.problem_id: completion for completion in generator.stream(requests, sampling)}


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=160), SAMPLED])
def test_a_completion_cut_at_a_text_goes_on_as_if_it_had_not_been(sampling: Sampling) -> None:
    generator, _ = teacher()
    whole = written(generator, asked(), sampling)
    head = written(generator, asked(), replace(sampling, stop_text=(" = ", "So Zoe")))
    assert sum(part.text.endswith(" = ") for part in head.values()) > 20
    rest = [
        replace(request, prompt_ids=request.prompt_ids + part.token_ids, num_done=len(part.token_ids))
        for request in asked()
        if (part := head[request.problem_id]).text.endswith((" = ", "So Zoe"))
    ]
    tail = written(generator, rest, sampling)
    for name, part in head.items():
        joined = part.token_ids + (tail[name].token_ids if name in tail else ())
        assert joined == whole[name].token_ids, name


def test_the_token_limit_counts_what_was_done_before() -> None:
    generator, _ = teacher()
    whole = written(generator, asked()[:4], Sampling(max_new_tokens=30))
    cut = {name: completion.token_ids[:12] for name, completion in whole.items()}
    rest = [
        replace(request, prompt_ids=request.prompt_ids + cut[request.problem_id], num_done=12)
        for request in asked()[:4]
    ]
    tail = written(generator, rest, Sampling(max_new_tokens=30))
    assert all(completion.finish_reason == "length" for completion in tail.values())
    assert {len(completion.token_ids) for completion in tail.values()} == {18}


def test_right_results_change_nothing_and_wrong_ones_are_put_right() -> None:
    """Greedy, the teacher with a calculator writes what it writes alone up to its first wrong result."""
    generator, chat = teacher()
    sampling = Sampling(max_new_tokens=160)
    alone = written(generator, asked(), sampling)
    helped = written(ToolGenerator(generator, EQUATIONS, chat), asked(), sampling)
    num_right = num_wrong = 0
    for name, completion in helped.items():
        before = alone[name].text
        assert not wrong_equations(completion.text), completion.text
        if wrong := wrong_equations(before):
            num_wrong += 1
            assert completion.text[: wrong[0]] == before[: wrong[0]] and completion.text != before
        else:
            num_right += 1
            assert completion.token_ids == alone[name].token_ids
    assert num_right >= 5 and num_wrong >= 5, "both cases must occur"


def wrong_equations(text: str) -> list[int]:
    """Where the result of a false equation begins, for each: evaluated apart from the calculator under test."""
    signs = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    return [
        match.start(4)
        for match in re.finditer(r"(\d+) ([-+*/]) (\d+) = (\d+)", text)
        if signs[match[2]](int(match[1]), int(match[3])) != int(match[4])
    ]


def test_the_spans_are_the_results_and_nothing_else() -> None:
    generator, chat = teacher()
    helped = written(ToolGenerator(generator, EQUATIONS, chat), asked(), SAMPLED)
    assert sum(len(completion.no_loss_spans) for completion in helped.values()) > 60
    for completion in helped.values():
        marked = [(completion.text[:a][-3:], completion.text[a:b]) for a, b in completion.no_loss_spans]
        assert all(before == " = " and result.isdigit() for before, result in marked), completion.text
        ids = completion.token_ids[: -1 if completion.finish_reason == "stop" else None]
        assert chat.decode(ids) == completion.text


def test_calls_beyond_the_limit_are_left_to_the_model() -> None:
    generator, chat = teacher()
    one = written(ToolGenerator(generator, replace(EQUATIONS, max_calls=1), chat), asked(), SAMPLED)
    assert {len(completion.no_loss_spans) for completion in one.values()} <= {0, 1}
    assert any(completion.text.count(" = ") > 2 for completion in one.values())
    assert {completion.finish_reason for completion in one.values()} >= {"stop"}


class Scripted:
    """An engine that writes given parts, one a call, whatever is asked."""

    def __init__(self, chat: Chat, parts: list[str], stop_after: int) -> None:
        self.chat, self.parts, self.stop_after, self.asked = chat, parts, stop_after, []

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            self.asked.append((request.num_done, sampling.stop_text))
            text = self.parts[len(self.asked) - 1]
            ids = tuple(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])
            ended = len(self.asked) == self.stop_after
            yield Completion("p", 0, ids + self.chat.stop_token_ids[:1] * ended, text, "stop")


def test_a_call_right_before_the_end_is_not_answered() -> None:
    _, chat = teacher()
    engine = Scripted(chat, ["2 + 3 = ", ". 4 * 2 = "], stop_after=2)
    (got,) = ToolGenerator(engine, EQUATIONS, chat).stream([SampleRequest("p", 0, (5, 6))], Sampling())
    assert got.text == "2 + 3 = 5. 4 * 2 = " and got.no_loss_spans == ((8, 9),)
    # "2 + 3 = " is 4 tokens (2, " + ", 3, " = ") and the result one
    assert engine.asked == [(0, (" = ",)), (5, (" = ",))]


def test_a_result_that_the_tokenizer_cannot_spell_is_left_to_the_model() -> None:
    _, chat = teacher()  # knows the numbers up to 199
    engine = Scripted(chat, ["150 + 150 = ", "7."], stop_after=2)
    (got,) = ToolGenerator(engine, EQUATIONS, chat).stream([SampleRequest("p", 0, (5,))], Sampling())
    assert got.text == "150 + 150 = 7." and got.no_loss_spans == ()


def test_a_result_without_room_behind_it_ends_the_completion() -> None:
    _, chat = teacher()
    engine = Scripted(chat, ["2 + 3 = "], stop_after=9)
    (got,) = ToolGenerator(engine, EQUATIONS, chat).stream([SampleRequest("p", 0, (5,))], Sampling(max_new_tokens=5))
    assert got.text == "2 + 3 = " and got.no_loss_spans == ()


def test_a_stop_text_of_the_users_own_is_refused() -> None:
    generator, chat = teacher()
    with pytest.raises(ValueError, match="exclude each other"):
        next(ToolGenerator(generator, EQUATIONS, chat).stream(asked(), Sampling(stop_text=("x",))))


@pytest.mark.parametrize(
    ("pieces", "met"),
    [
        (["a", "</", "tool", ">"], True),
        (["é</", "tool", ">"], True),
        (["</tool", ">"], True),
        (["</tool>"], True),
        (["</tool", ">x"], False),
        (["</tool", "x", ">"], False),
        ([">"], False),
        ([], False),
    ],
)
def test_a_text_is_met_over_any_number_of_tokens(pieces: list[str], met: bool) -> None:
    watch = StopText(("</tool>", "zz"), lambda ids: "".join(pieces[i] for i in ids))
    assert watch.is_met(np.arange(len(pieces))) is met


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match="empty text"):
        StopText(("a", ""), lambda ids: "")


def test_logprobs_are_of_what_the_model_wrote_and_nan_for_what_it_did_not() -> None:
    """Token by token those of the policy on the whole completion, but for the results."""
    generator, chat = teacher()
    policy = generator.policy
    scored = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode, num_slots=16, logprobs=True)
    plain = replace(SAMPLED, top_p=1.0)
    helped = written(ToolGenerator(scored, EQUATIONS, chat), asked(), plain)
    num_inserted = 0
    for request in asked():
        completion = helped[request.problem_id]
        expected = completion_logprobs(policy, request, completion, plain.temperature)
        told = np.array(completion.logprobs)
        inserted = np.isnan(told)
        num_inserted += int(inserted.sum())
        assert inserted.any() == bool(completion.no_loss_spans)
        np.testing.assert_allclose(told[~inserted], expected[~inserted], atol=1e-4)  # float32 with and without a cache
    assert num_inserted > 60
    unscored = written(ToolGenerator(generator, EQUATIONS, chat), asked()[:4], plain)
    assert {completion.logprobs for completion in unscored.values()} == {None}
