"""Prompt + completion is what the chat template renders of the whole conversation, or the run stops."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from w2sr.chat import Chat
from w2sr.conversation import RefusedText
from w2sr.rollouts import OpenAIServer
from w2sr.types import IGNORE_INDEX, Segment, Trace

THOUGHT = "<think>\n12 - 7 = 5\n</think>\n\n\\boxed{5}"
PLAIN = "12 - 7 = 5, so \\boxed{5}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen2.5, SmolLM2 and most ChatML templates."""

THINKING_TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set t = m.content.split('</think>') %}"
    "{% set thought = t[0].rstrip('\n').split('<think>')[-1].lstrip('\n') if t | length > 1 else '' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ t[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
QWEN3 = THINKING_TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
"""Deletes thoughts of earlier turns; the last turn always has one, if an empty one."""
QWEN3_THINKING = THINKING_TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
"""Qwen3-Thinking-2507: the same, and the generation prompt opens the thought."""
NO_THINK = CHATML.replace("assistant\n' }}", "assistant\n<think>\n\n</think>\n\n' }}")
OPENS_THOUGHT = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
DEEPSEEK_R1 = (
    "{{ '<go>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<end>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA32 = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + LLAMA3
GEMMA = (
    "{{ '<go>' }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{% if role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<go>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '<end>' }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else '<end>' }}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<end>\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
MARKERS = ["<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|start_header_id|>", "<|end_header_id|>"]
MARKERS += [
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
]


def tokenizer_of(
    template: str, *, spaced: bool = False, special: bool = True, **flags: bool
) -> PreTrainedTokenizerFast:
    """A token for every byte, and markers. `spaced`: a token for every character, and a space before every text.

    Args:
        template: chat template.
        spaced: as SentencePiece tokenizers (Llama 2, Mistral) read text.
        special: whether the tokenizer calls the markers special.
        flags: likewise for single ones, by name; `think` is both `<think>` and `</think>`.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if not spaced else ["▁", *map(chr, range(33, 127)), "\n"]
    backend = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    if spaced:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<go>", "<end>"])
    added = dict.fromkeys(MARKERS, special) | dict.fromkeys(("<think>", "</think>"), flags.pop("think", False))
    for text, is_special in (added | flags).items():
        token = AddedToken(text, special=is_special, normalized=False)
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", bos_token="<go>")
    tokenizer.chat_template = template
    return tokenizer


def whole(chat: Chat, problem: str, completion: str) -> list[int]:
    """Ids of the conversation as transformers renders and reads it."""
    turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": completion}]
    encoded: Any = chat.tokenizer.apply_chat_template(turns, return_dict=True)
    return list(encoded["input_ids"])


def taught(segment: Segment) -> list[int]:
    return [int(label) for label in segment.labels if label != IGNORE_INDEX]


# ---- templates that render what we train


@pytest.mark.parametrize(
    ("template", "completion", "spaced"),
    [
        (CHATML, PLAIN, False),
        (CHATML, THOUGHT, False),
        (QWEN3, THOUGHT, False),
        (QWEN3_THINKING, THOUGHT, False),
        (OPENS_THOUGHT, THOUGHT, False),
        (DEEPSEEK_R1.replace("<think>\n", ""), PLAIN, False),
        (LLAMA3, PLAIN, False),
        (GEMMA, PLAIN, False),
        (MISTRAL, PLAIN, True),
        (PHI3, PLAIN, False),
        (ZEPHYR, PLAIN, False),
    ],
)
def test_a_segment_is_the_conversation_that_transformers_renders(template: str, completion: str, spaced: bool) -> None:
    chat = Chat(tokenizer_of(template, spaced=spaced))
    segment = chat.segment("How many?", completion, "row")
    expected = whole(chat, "How many?", completion)
    assert segment.input_ids.tolist() == expected[: len(segment)]
    assert segment.input_ids[-1] == chat.stop_token_id
    # nothing but whitespace and end tokens follows the end of the turn
    assert chat.decode(expected[len(segment) :]).strip() == ""
    prompt = str(chat.tokenizer.decode(chat.prompt_ids("How many?"), skip_special_tokens=False))
    assert prompt.endswith("<think>\n") == (template in (QWEN3_THINKING, OPENS_THOUGHT))
    assert chat.tokenizer.decode(segment.input_ids, skip_special_tokens=False).count("<think>") == completion.count(
        "<think>"
    )


def test_what_the_prompt_opened_is_not_trained_again() -> None:
    chat = Chat(tokenizer_of(QWEN3_THINKING))
    segment = chat.segment("How many?", THOUGHT, "row")
    assert chat.opened == "<think>\n"
    assert chat.decode(taught(segment)) == THOUGHT.removeprefix("<think>\n")
    # a completion that was sampled behind such a prompt has no <think> of its own
    sampled = chat.segment("How many?", THOUGHT.removeprefix("<think>\n"), "row")
    assert sampled.input_ids.tolist() == segment.input_ids.tolist()
    (count,) = chat.count_tokens([trace(THOUGHT)])
    assert count == len(taught(segment))


def test_spans_move_with_what_the_prompt_opened() -> None:
    """The answer is what follows; offsets are those of the text behind the prompt."""
    chat = Chat(tokenizer_of(QWEN3_THINKING))
    silent = THOUGHT.index("12 - 7")
    verified = trace(THOUGHT, answer_rule="boxed", no_loss_spans=f"[[{silent}, {silent + 6}]]")
    segments = {
        name: chat.segments([verified], supervision=name)[0] for name in ("outcome_only", "process_only", "full")
    }
    assert chat.decode(taught(segments["outcome_only"])) == "\\boxed{5}"
    assert chat.decode(taught(segments["process_only"])) == " = 5\n</think>\n\n"
    assert chat.decode(taught(segments["full"])) == " = 5\n</think>\n\n\\boxed{5}"


def trace(completion: str, problem: str = "How many?", **fields: str) -> Trace:
    return Trace("p7", "made-up", problem, "5", "teacher", completion, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [LLAMA3, GEMMA, CHATML])
def test_whitespace_at_the_ends_of_a_completion_may_be_trimmed(template: str) -> None:
    chat = Chat(tokenizer_of(template))
    assert chat.decode(taught(chat.segment("How many?", f" {PLAIN}\n", "row"))) == f" {PLAIN}\n"


# ---- templates that do not


IGNORES_GENERATION = CHATML.partition("{% if add_generation")[0]
INSERTS = CHATML.replace("m.content +", "('Answer: ' if m.role == 'assistant' else '') + m.content +")
REPLACES = CHATML.replace("m.content +", "m.content | replace('so', 'hence') +")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (IGNORES_GENERATION, r"ignores add_generation_prompt: it puts '<\|im_start\|>assistant\\n' between the prompt"),
        (
            INSERTS,
            r"puts 'Answer: ' between the prompt, which ends in '.*<\|im_start\|>assistant\\n', and the completion",
        ),
        ("{{ messages[0].content }}", "shows the text of an assistant's turn 0 times instead of once"),
        (CHATML.replace("assistant\n' }}", "model\n' }}"), r"renders '.*assistant\\nCOMP.*where prompt and completion"),
        (CHATML.replace("m.content", "m.content[0].text"), "refuses the turns"),
        (CHATML.replace("m.content", "m.content[:5]"), "does not show the text of a problem as it is"),
    ],
)
def test_a_template_that_does_not_continue_its_prompt_is_refused_at_once(template: str, said: str) -> None:
    """Also for prompts alone: `ask`, `predict` and GRPO make this object too."""
    with pytest.raises(ValueError, match=said):
        Chat(tokenizer_of(template))


@pytest.mark.parametrize(
    ("template", "completion", "said"),
    [
        # today's <|im_start|>assistant\n<think>\n<think>\n...
        (
            OPENS_THOUGHT,
            "<think> 12 - 7 = 5 </think>\\boxed{5}",
            r"ends the prompt in '.*<think>\\n', and the completion beg",
        ),
        (NO_THINK, THOUGHT, r"ends the prompt in '.*</think>\\n\\n', and the completion begins with '<think>"),
        (NO_THINK, PLAIN, r"renders '.*assistant\\n12 - 7 .* where prompt and completion together are '.*</think>"),
        (OPENS_THOUGHT, PLAIN, r"renders '.*assistant\\n12 - 7 .* where prompt and completion together are '.*<think>"),
        (QWEN3, PLAIN, r"puts '<think>\\n\\n</think>\\n\\n' between the prompt, which ends in"),
        (QWEN3_THINKING, PLAIN, r"puts '\\n</think>\\n\\n' between the prompt, which ends in '.*<think>\\n'"),
        (QWEN3, "<think>12 - 7 = 5</think>\\boxed{5}", r"renders '.*<think>\\n12.* where .* are '.*<think>12"),
        (DEEPSEEK_R1, THOUGHT, "deletes everything up to </think>, 27 of 38 characters of the completion"),
        (DEEPSEEK_R1, PLAIN, r"renders '.*<\|Assistant\|>12 - 7 .* where"),
        (REPLACES, PLAIN, "deletes or changes some of 24 characters"),
        (
            CHATML.replace("assistant\n' }}", "assistant' }}"),
            PLAIN,
            r"puts '\\n' in front of the text of an assistant's",
        ),
        (MISTRAL, PLAIN, "puts ' ' in front of the text of an assistant's turn"),
    ],
)
def test_a_completion_that_is_not_the_rendered_turn_is_refused(template: str, completion: str, said: str) -> None:
    chat = Chat(tokenizer_of(template))
    assert chat.prompt_ids("How many?")
    with pytest.raises(ValueError, match=said) as refusal:
        chat.segments([trace(completion)])
    assert "Set template to qwen-base, qwen-instruct or simple" in str(refusal.value)
    # the advice helps
    named = Chat(tokenizer_of(template), template="qwen-base").segments([trace(completion)])[0]
    assert chat.decode(taught(named)) == completion


def test_a_refusal_for_one_row_is_told_apart_from_one_for_all() -> None:
    with pytest.raises(RefusedText, match="Trace 'p7@teacher#0': the chat template"):
        Chat(tokenizer_of(QWEN3)).segments([trace(PLAIN)])
    with pytest.raises(ValueError) as refusal:
        Chat(tokenizer_of(IGNORES_GENERATION))
    assert not isinstance(refusal.value, RefusedText)


def test_a_template_that_changes_a_problem_is_refused() -> None:
    chat = Chat(tokenizer_of(REPLACES))
    with pytest.raises(RefusedText, match="does not show the text of the problem 'Tom has so many' as it is"):
        chat.prompt_ids("Tom has so many")


# ---- the end of a turn


def test_the_turns_end_stops_a_completion_where_no_one_calls_it_special() -> None:
    """`<|im_end|>` with `special: false` beside the end token `<end>`."""
    tokenizer = tokenizer_of(CHATML, special=False)
    chat = Chat(tokenizer)
    assert chat.stop_token == "<|im_end|>"
    spelled = "so<|im_end|>\n<|im_start|>user\nfive"
    labels = taught(chat.segment("How many?", spelled, "row"))
    assert labels[-1] == chat.stop_token_id
    markers = {chat.vocabulary["<|im_end|>"], chat.vocabulary["<|im_start|>"]}
    assert markers.isdisjoint(labels[:-1])
    assert chat.decode(labels) == spelled
    assert chat.prompt_ids(spelled).count(chat.stop_token_id) == chat.prompt_ids("x").count(chat.stop_token_id) == 1
    # the caller's tokenizer stays as it was
    assert not tokenizer.added_tokens_decoder[chat.stop_token_id].special


def test_an_end_that_is_no_token_needs_a_stop_token() -> None:
    template = CHATML.replace("'<|im_end|>\n'", "'<stop>\n'")
    with pytest.raises(ValueError, match=r"ends an assistant's turn with '<stop>', which does not begin with a token"):
        Chat(tokenizer_of(template))
    assert Chat(tokenizer_of(template), stop_token="<end>").stop_token == "<end>"


# ---- thoughts


@pytest.mark.parametrize("special", [True, False])
def test_thought_tokens_are_kept_in_training_and_in_decoding(special: bool) -> None:
    chat = Chat(tokenizer_of(CHATML, think=special))
    assert tokenizer_of(CHATML, think=special).added_tokens_decoder[chat.vocabulary["<think>"]].special == special
    labels = taught(chat.segment("How many?", THOUGHT, "row"))
    assert labels[0] == chat.vocabulary["<think>"]
    assert labels.count(chat.vocabulary["</think>"]) == 1
    assert chat.decode(labels) == THOUGHT


# ---- the date


def test_a_template_shows_the_day_that_it_is_given() -> None:
    chat = Chat(tokenizer_of(LLAMA32), template_date="2024-07-26")
    assert chat.render_prompt("x").startswith("Today Date: 26 Jul 2024\n")
    assert chat.template_date == "2024-07-26"
    assert chat.with_instruction(" so").render_prompt("x").startswith("Today Date: 26 Jul 2024\n")
    other = Chat(tokenizer_of(LLAMA32), template_date="2024-07-27")
    assert other.template_hash != chat.template_hash
    assert chat.segment("x", PLAIN, "row").input_ids.tolist() != other.segment("x", PLAIN, "row").input_ids.tolist()
    assert Chat(tokenizer_of(LLAMA3), template_date="2024-07-26").template_date == ""


def test_a_date_that_is_none_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"template_date='26 Jul' is not a date. Write year, month and day: 2026-11-30"
    ):
        Chat(tokenizer_of(LLAMA32), template_date="26 Jul")


# ---- servers


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_server_that_drops_thoughts_is_refused(api: Literal["completions", "chat"]) -> None:
    """Servers leave special tokens out of their text, unless they are told not to."""
    chat, cpu = Chat(tokenizer_of(CHATML, think=True)), torch.device("cpu")
    with (
        pytest.raises(ValueError, match=f"api={api}: <think> is a special token .* Set engine.init_args.api=tokens"),
        OpenAIServer("http://localhost:1/v1", api=api).open("model", chat, cpu),
    ):
        pass
    told = OpenAIServer("http://localhost:1/v1", api=api, model="m", extra_body={"skip_special_tokens": False})
    with told.open("model", chat, cpu):
        pass
    with OpenAIServer("http://localhost:1/v1", api=api, model="m").open("model", Chat(tokenizer_of(CHATML)), cpu):
        pass
