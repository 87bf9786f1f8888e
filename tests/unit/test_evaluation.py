"""`evaluate`: from problems to records with a scripted generator."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product

import pytest

from w2sr.chat import Chat
from w2sr.evaluation import VERIFY_CHUNK, evaluate
from w2sr.miniature.tokenizer import CHAT_TEMPLATE, build_tokenizer
from w2sr.types import Completion, Problem, SampleRequest, Sampling
from w2sr.verify import Verifier


class Scripted:
    """Answers by (problem id, sample index), in an order of its own; remembers what it was asked."""

    def __init__(self, texts: dict[tuple[str, int], str], order_seed: int | None = None) -> None:
        self.texts, self.order_seed = texts, order_seed
        self.asked: list[SampleRequest] = []

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        self.asked = list(requests)
        order = list(requests)
        if self.order_seed is not None:
            random.Random(self.order_seed).shuffle(order)
        for request in order:
            text = self.texts[request.problem_id, request.sample_index]
            finish = "length" if text.endswith("...") else "stop"
            ids = tuple(range(len(text)))
            yield Completion(request.problem_id, request.sample_index, ids, text, finish)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(build_tokenizer(), template="auto")


VERIFIERS = {"sums": Verifier(["boxed"]), "words": Verifier(["boxed"], kind="exact")}
PROBLEMS = [
    Problem("sums/1", "sums", "How many has Tom?", "12", "easy"),
    Problem("words/1", "words", "How many has Mia?", "Paris"),
    Problem("sums/2", "sums", "How many has Zoe?", "7", "hard"),
]
TEXTS = {
    ("sums/1", 0): r"so \boxed{12.0}",
    ("sums/1", 1): r"so \boxed{13}",
    ("words/1", 0): r"\boxed{paris}",
    ("words/1", 1): "Paris",
    ("sums/2", 0): "it goes on and on...",
    ("sums/2", 1): r"\boxed{7} and then...",
}


def test_what_the_prompt_opened_is_part_of_the_text() -> None:
    """A thought that the prompt began and the limit cut off is not read as an answer."""
    opens = CHAT_TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = opens
    opening = Chat(tokenizer)
    assert opening.opened == "<think>\n"
    texts = {**TEXTS, ("sums/1", 1): "so \\boxed{13}</think>\\boxed{12}", ("sums/2", 1): "<think>\n\\boxed{7}</think>7"}
    done = evaluate(PROBLEMS, opening, Scripted(texts), VERIFIERS, Sampling(), 2)
    records = {(r.problem_id, r.sample_index): r for r in done}
    assert (
        records["sums/1", 0].verdict == "no_answer" and records["sums/1", 0].completion == "<think>\nso \\boxed{12.0}"
    )
    assert records["sums/1", 1].verdict == "correct"
    assert records["sums/2", 1].completion == texts["sums/2", 1], "a server that put it back"


def test_every_field_of_a_record(chat: Chat) -> None:
    records = {
        (r.problem_id, r.sample_index): r for r in evaluate(PROBLEMS, chat, Scripted(TEXTS), VERIFIERS, Sampling(), 2)
    }
    assert set(records) == set(TEXTS)
    one = records["sums/1", 0]
    assert (one.source, one.stratum, one.reference_answer) == ("sums", "easy", "12")
    assert (one.answer, one.verdict, one.correct) == ("12.0", "correct", True)
    assert (one.completion, one.finish_reason, one.num_tokens) == (r"so \boxed{12.0}", "stop", 15)
    verdicts = {key: (record.answer, record.verdict, record.correct) for key, record in records.items()}
    assert verdicts["sums/1", 1] == ("13", "incorrect", False)
    assert verdicts["words/1", 0] == ("paris", "correct", True), "this source is compared as text, case aside"
    assert verdicts["words/1", 1] == (None, "no_answer", False)
    assert verdicts["sums/2", 0] == (None, "no_answer", False)
    assert records["sums/2", 0].finish_reason == "length"


def test_prompts_are_the_chats_and_samples_are_numbered(chat: Chat) -> None:
    generator = Scripted(TEXTS)
    list(evaluate(PROBLEMS, chat, generator, VERIFIERS, Sampling(), 2))
    assert [(request.problem_id, request.sample_index) for request in generator.asked] == [
        (problem.problem_id, index) for problem, index in product(PROBLEMS, range(2))
    ]
    assert generator.asked[3].prompt_ids == tuple(chat.prompt_ids("How many has Mia?"))


def test_the_order_in_which_completions_arrive_changes_nothing(chat: Chat) -> None:
    """Two chunks of the verifier and some more, so that a chunk mixes sources and ends anywhere."""
    num_samples = VERIFY_CHUNK
    texts = {
        (problem.problem_id, index): TEXTS[problem.problem_id, index % 2]
        for problem, index in product(PROBLEMS, range(num_samples))
    }
    found = [
        sorted(evaluate(PROBLEMS, chat, Scripted(texts, seed), VERIFIERS, Sampling(), num_samples), key=str)
        for seed in (None, 1, 2)
    ]
    assert len(found[0]) == 3 * num_samples > 2 * VERIFY_CHUNK
    assert found[0] == found[1] == found[2]
    assert sum(record.correct for record in found[0]) == num_samples // 2 * 3


def test_records_come_as_soon_as_a_chunk_is_verified(chat: Chat) -> None:
    texts = {("sums/1", index): r"\boxed{12}" for index in range(VERIFY_CHUNK + 1)}
    drawn = 0

    class Counting(Scripted):
        def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
            nonlocal drawn
            for completion in super().stream(requests, sampling):
                drawn += 1
                yield completion

    records = evaluate(PROBLEMS[:1], chat, Counting(texts), VERIFIERS, Sampling(), VERIFY_CHUNK + 1)
    next(records)
    assert drawn == VERIFY_CHUNK


def test_a_source_without_verifier_is_refused_before_anything_is_sampled(chat: Chat) -> None:
    generator = Scripted(TEXTS)
    with pytest.raises(ValueError, match=r"no verifier for source \['words'\].*verifiers for \['sums'\]"):
        list(evaluate(PROBLEMS, chat, generator, {"sums": VERIFIERS["sums"]}, Sampling()))
    assert generator.asked == []


def test_no_problems_give_no_records(chat: Chat) -> None:
    assert list(evaluate([], chat, Scripted({}), VERIFIERS, Sampling())) == []
