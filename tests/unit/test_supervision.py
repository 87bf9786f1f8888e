"""Which tokens carry loss, on texts whose tokens the eye can count, and on thousands of real traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from w2sr.chat import Chat
from w2sr.miniature.tokenizer import build_tokenizer
from w2sr.supervision import Supervision, Target, answer_span, carries_loss, no_loss_spans, target_of, with_answer
from w2sr.traces import read_store, read_traces
from w2sr.types import IGNORE_INDEX, Trace
from w2sr.verify import extract, parse_rules

VARIANTS: tuple[Supervision, ...] = get_args(Supervision)
COMPLETION = r"Mia has 23. Tom has 23 + 8 = 31. So Tom has \boxed{31}."
MINIATURE_TRACES = Path(__file__).resolve().parents[2] / "w2sr" / "miniature" / "traces"


def trace(completion: str = COMPLETION, **fields: Any) -> Trace:
    given = {"finish_reason": "stop", "answer_rule": "boxed", **fields}
    return Trace("p7", "made-up", "How many?", "31", "teacher", completion, **given)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(build_tokenizer())


def loss_tokens(chat: Chat, item: Trace, supervision: Supervision) -> list[str]:
    (segment,) = chat.segments([item], supervision=supervision)
    return [chat.tokenizer.convert_ids_to_tokens(int(label)) for label in segment.labels if label != IGNORE_INDEX]


PROCESS = ["Mia", " has ", "23", ".", " Tom", " has ", "23", " + ", "8", " = ", "31", ".", " So", " Tom", " has"]
ANSWER = [" \\boxed{", "31", "}"]  # this tokenizer's token of the box begins with a space
STOP = ["<|im_end|>"]


def test_the_labels_of_each_variant(chat: Chat) -> None:
    assert loss_tokens(chat, trace(), "full") == [*PROCESS, *ANSWER, ".", *STOP]
    assert loss_tokens(chat, trace(), "process_only") == [*PROCESS, ".", *STOP], "earlier mentions of 31 are process"
    assert loss_tokens(chat, trace(), "outcome_only") == [*ANSWER, *STOP]
    assert loss_tokens(chat, trace(), "outcome_hard") == ["\\boxed{", "31", "}", *STOP]


def test_outcome_only_keeps_the_reasoning_as_context_and_outcome_hard_does_not(chat: Chat) -> None:
    full, process, outcome, hard = (chat.segments([trace()], supervision=variant)[0] for variant in VARIANTS)
    assert full.input_ids.tolist() == process.input_ids.tolist() == outcome.input_ids.tolist()
    assert len(full) - len(hard) == len(PROCESS) + 1, "the reasoning and the full stop"
    assert hard.input_ids.tolist() == chat.segment("How many?", "\\boxed{31}", "x").input_ids.tolist()


def test_a_trace_that_was_cut_has_no_stop_token_in_any_variant(chat: Chat) -> None:
    for variant in VARIANTS:
        assert STOP[0] not in loss_tokens(chat, trace(finish_reason="length"), variant)
    assert loss_tokens(chat, trace(finish_reason="length"), "outcome_only") == ANSWER


def test_spans_without_loss_are_honoured_by_every_variant(chat: Chat) -> None:
    # characters 0 to 10 are "Mia has 23", and 50 to 52 the 31 of the box
    assert COMPLETION[0:10] == "Mia has 23" and COMPLETION[51:53] == "31"
    item = trace(no_loss_spans="[[0, 10], [51, 53], [20, 20]]")
    assert no_loss_spans(item) == ((0, 10), (51, 53)), "an empty span is none"
    assert loss_tokens(chat, item, "full") == [*PROCESS[3:], " \\boxed{", "}", ".", *STOP]
    assert loss_tokens(chat, item, "process_only") == [*PROCESS[3:], ".", *STOP]
    assert loss_tokens(chat, item, "outcome_only") == [" \\boxed{", "}", *STOP]
    assert loss_tokens(chat, item, "outcome_hard") == ["\\boxed{", "}", *STOP]


@pytest.mark.parametrize(
    "text", ["[[0, 99]]", "[[5, 3]]", "[[0]]", "[0, 3]", "{}", "[[0, 1.5]]", "0", "[", "[[true, 3]]"]
)
def test_spans_that_cannot_be_are_refused_with_the_trace(text: str) -> None:
    with pytest.raises(ValueError, match=r"Trace 'p7@teacher#0': no_loss_spans=.* must be JSON such as \[\[0, 12\]\]"):
        target_of(trace(no_loss_spans=text), "full")


@pytest.mark.parametrize("supervision", ["process_only", "outcome_only", "outcome_hard"])
def test_a_trace_without_answer_is_refused_and_can_be_left_out(chat: Chat, supervision: Supervision) -> None:
    without = [trace(answer_rule=""), trace("So Tom has 31.")]
    for item in without:
        with pytest.raises(ValueError, match=f"'p7@teacher#0' has no final answer .* supervision={supervision} asks"):
            chat.segments([item], supervision=supervision)
    assert with_answer([*without, trace()]) == [trace()]


def test_an_unknown_variant_is_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match=r"supervision='outcome' is unknown. Choose one of full, process_only"):
        chat.segments([trace()], supervision="outcome")  # type: ignore[arg-type]


def test_a_token_with_one_character_in_a_span_belongs_to_it() -> None:
    #         0-1  2-3   4-5   6    nothing, before 6
    offsets = [(0, 2), (2, 4), (4, 6), (6, 7), (6, 6)]
    assert carries_loss(Target("abcdefg", taught=(3, 5)), offsets) == [False, True, True, False, False]
    assert carries_loss(Target("abcdefg", silent=((3, 5),)), offsets) == [True, False, False, True, True]
    assert carries_loss(Target("abcdefg", taught=(6, 7)), offsets) == [False, False, False, True, True]
    assert carries_loss(Target("abcdefg", taught=(2, 7), silent=((5, 6),)), offsets) == [False, True, False, True, True]


def test_the_hard_form_is_read_by_the_rule_that_made_it() -> None:
    texts = {
        "boxed": r"so $\boxed{\frac{1}{2}}$.",
        "hash": "5 + 5\n#### 10\n",
        "answer_tag": "so <answer>10</answer>!",
        "last_number": "16 - 3 = 13.",
        "after:A:": "x\nA: 26.",
        "json:answer": '{"why": "a", "answer": 18, "sure": true}',
    }
    for rule, text in texts.items():
        item = trace(text, answer_rule=rule)
        hard, rules = target_of(item, "outcome_hard").text, parse_rules([rule])
        assert extract(hard, rules).answer == extract(text, rules).answer, rule
        assert len(hard) < len(text)
    assert target_of(trace(texts["json:answer"], answer_rule="json:answer"), "outcome_hard").text == '{"answer": 18\n}'


def check_partition(chat: Chat, traces: list[Trace]) -> None:
    """Loss tokens of full = those of process + those of outcome + stop tokens, and no other token is in two."""
    made = {variant: chat.segments(traces, supervision=variant) for variant in VARIANTS}
    for item, full, process, outcome, _ in zip(traces, *made.values(), strict=True):
        masks = [segment.labels != IGNORE_INDEX for segment in (full, process, outcome)]
        in_both = masks[1] & masks[2]
        stops = np.zeros_like(in_both)
        stops[-2] = item.finish_reason != "length"
        assert (in_both == stops).all(), item.trace_id
        assert (masks[0] == (masks[1] | masks[2])).all(), item.trace_id
        assert (masks[1] & ~stops).any() and (masks[2] & ~stops).any(), item.trace_id
        assert all(
            label in (IGNORE_INDEX, after) for label, after in zip(outcome.labels, outcome.input_ids[1:], strict=False)
        )


def test_full_is_process_and_outcome_and_stop_on_the_miniature(chat: Chat) -> None:
    traces = with_answer(read_store(MINIATURE_TRACES))[:300]
    assert len(traces) == 300
    check_partition(
        chat, [replace(item, finish_reason="length") if n % 3 == 0 else item for n, item in enumerate(traces)]
    )


FILES = {
    "openai_gsm8k_example_model_solutions": ("after:A:", 1300),
    "zeroeval_gsm8k_weak_to_strong": ("json:answer", 1300),
    "qwen25math_example_math100": ("boxed", 800),
    "rgym_math_mistral-small-24b": ("answer_tag", 1200),
}
COLUMNS = {"problem": "problem", "completion": "response", "reference_answer": "gold", "teacher": "model"}


@pytest.mark.parametrize("name", ["qwen", "smollm2-135m-instruct"])
def test_real_tokens_of_the_outcome_are_the_answers_text(shared_data: Path, name: str) -> None:
    chat = Chat.load(shared_data / "tokenizers" / name, template="qwen-base")
    exact = total = 0
    for file, (rule, count) in FILES.items():
        read, _ = read_traces(shared_data / "traces" / f"{file}.jsonl.gz", COLUMNS, stop_text=["</s>"])
        every = [replace(item, answer_rule=rule, finish_reason="stop") for item in read]
        traces = with_answer(every[:: max(1, len(every) // 1300)])[:1300]
        assert len(traces) >= min(count, 1000), file
        for item, segment in zip(traces, chat.segments(traces, supervision="outcome_only"), strict=True):
            taught = segment.labels[segment.labels != IGNORE_INDEX]
            assert taught[-1] == chat.stop_token_id
            text, span = chat.decode(taught[:-1]), answer_span(item)
            assert span is not None
            answer = item.completion[slice(*span)]
            before, found, after = text.partition(answer)
            assert found and not any(char.isalnum() for char in before + after), (answer, text)
            exact += len(before + after) <= 2
        total += len(traces)
        if file.startswith("qwen25"):
            check_partition(chat, traces[:200])
    assert total > 4000 and exact > 0.9 * total, "all but a few bear at most a space and one sign of their border"
