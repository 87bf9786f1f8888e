"""A problem and its completion as the text of one conversation, and the check that training and prompting agree.

What a student is trained on is the prompt, then the completion, then the stop token. What a chat with the student shows
it is what the chat template renders. `Conversation` makes the first and compares it with the second:

    rendered conversation  =  prompt + completion + end of the turn

A template that puts text of its own in between, deletes or changes text, or ignores `add_generation_prompt` breaks the
equation, and the run stops. Three differences are no break:

- Whitespace at either end of the completion: many templates trim it (Llama 3, Gemma).
- Whitespace between prompt and completion that the tokenizer writes by itself (Mistral's `[/INST] `).
- A prompt that ends in `<think>`: a completion that begins in the same way continues behind it (`opened`).

The paper's templates are ours and satisfy the equation by construction.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from w2sr.templates import NAMED_TEMPLATES, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED_OR_REPAIR = "Set template to qwen-base, qwen-instruct or simple, or repair the tokenizer's chat_template."

_PROBLEM = "PROBLEMPLACEHOLDER"
_COMPLETION = "COMPLETIONPLACEHOLDER"
_OPENS_THOUGHT = re.compile(r"<think>\s*\Z")
_ENDS_IN_THOUGHT = re.compile(r"</?think>\s*\Z")
_THOUGHT_TAGS = re.compile(r"</?think>")
_NUM_SHOWN = 40


class RefusedText(ValueError):
    """A problem or completion that this tokenizer or chat template cannot hold. Other rows may be fine."""


class Turn(NamedTuple):
    """What a template puts round a plain completion.

    Attributes:
        gap: what stands in front of the completion and not at the end of the prompt.
        extra: what stands at the end of the prompt and not in front of the completion.
        after: what follows the completion.
    """

    gap: str
    extra: str
    after: str

    @property
    def is_spaced(self) -> bool:
        """Whether whitespace alone distinguishes the end of the prompt from the header of the turn."""
        return (self.gap + self.extra).isspace()


class Conversation:
    """One tokenizer's template: a problem as a prompt, and a check of prompt and completion against the whole.

    Args:
        tokenizer: brings its own chat template, for `model`.
        template: `model`, or one of the paper's three.
        system: System prompt; None takes the template's default, "" has none.
        instruction: Text put right after the problem; None takes the template's default.
        template_date: the day that a template which calls `strftime_now` shows, as 2026-11-30; None is today.

    Raises:
        ValueError: the template is unknown, the tokenizer has none or lacks its tokens, the options do not fit, the
            date is no date, or what the template renders does not continue its own prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        system: str | None,
        instruction: str | None,
        template_date: str | None,
    ) -> None:
        self.tokenizer, self.template, self.name = tokenizer, template, str(tokenizer.name_or_path)
        _check_template(tokenizer, template)
        _, default_system, default_instruction = NAMED_TEMPLATES.get(template, (None, "", ""))
        self.system = default_system if system is None else system
        self.instruction = default_instruction if instruction is None else instruction
        if self.system and template == "simple":
            raise ValueError(f"template=simple has no place for system={self.system!r}. Unset one of them.")
        self._today, self._shows_date = _parsed(template_date), False
        self.turn = Turn("", "", "") if template in NAMED_TEMPLATES else self._probed()
        prompt = self.prompt(_PROBLEM)
        self.opened = found.group() if (found := _OPENS_THOUGHT.search(prompt)) else ""
        """The beginning of the assistant's turn that the prompt already holds: `<think>` with its whitespace, or ""."""
        self.surroundings = prompt + self.turn.after
        """All that the template writes by itself, before a problem, behind it, and behind a completion."""

    @property
    def template_date(self) -> str:
        """The day that prompts show, as 2026-11-30; "" where the template shows none."""
        return self._today.isoformat() if self._shows_date else ""

    def prompt(self, problem: str) -> str:
        """The prompt of a problem as text, up to and including the generation marker.

        Raises:
            RefusedText: the template refuses the problem, or does not show all of it.
        """
        content = problem + self.instruction
        if self.template in NAMED_TEMPLATES:
            return NAMED_TEMPLATES[self.template][0](content, self.system)
        prompt = self._rendered([("user", content)], generation=True)
        if content.strip() not in prompt:
            who = "a problem" if problem == _PROBLEM else f"the problem {problem[:60]!r}"
            raise RefusedText(
                f"The chat template of {self.name!r} does not show the text of {who} as it is. {NAMED_OR_REPAIR}"
            )
        return prompt

    def pieces(self, problem: str) -> tuple[str, str]:
        """The prompt of a problem in two parts: the text before the problem, and the text behind it."""
        pieces = self.prompt(_PROBLEM).split(_PROBLEM)
        if len(pieces) != 2:
            raise RefusedText(
                f"The problem {problem[:60]!r} spells a control token, and the chat template of {self.name!r} shows a "
                f"problem {len(pieces) - 1} times instead of once. Remove the problem or choose template=simple."
            )
        return pieces[0], pieces[1]

    def check(self, who: str, problem: str, completion: str) -> None:
        """Raises `RefusedText` unless prompt and completion are what the template renders of the whole conversation.

        Args:
            who: names the text in the message: "Trace 'p7@teacher#0'".
            problem: what is asked.
            completion: the assistant's turn, whole: also what the prompt already opened of it.
        """
        if self.template in NAMED_TEMPLATES:
            return
        self._check_gap()
        turns = [("user", problem + self.instruction), ("assistant", completion)]
        prompt, whole = self.prompt(problem), self._rendered(turns)
        behind = completion.removeprefix(self.opened)
        if _ENDS_IN_THOUGHT.search(prompt) and behind.lstrip().startswith("<think>"):
            raise RefusedText(
                f"{who}: the chat template of {self.name!r} ends the prompt in {prompt[-_NUM_SHOWN:]!r}, and the "
                f"completion begins with {behind[:_NUM_SHOWN]!r}: two beginnings of a thought would be trained. "
                f"{NAMED_OR_REPAIR}"
            )
        head = prompt.removesuffix(self.turn.extra) + self.turn.gap if self.turn.is_spaced else prompt
        body = whole[len(head) : len(whole) - len(self.turn.after)]
        same = whole.startswith(head) and whole.endswith(self.turn.after) and body.strip() == behind.strip()
        if not same:
            raise RefusedText(f"{who}: the chat template of {self.name!r} {_difference(prompt, completion, whole)}")

    def _probed(self) -> Turn:
        """What the template puts round a completion. Raises a ValueError where it does not continue the prompt."""
        prompt = self.prompt(_PROBLEM)
        whole = self._rendered([("user", _PROBLEM + self.instruction), ("assistant", _COMPLETION)])
        if whole.count(_COMPLETION) != 1:
            raise ValueError(
                f"The chat template of {self.name!r} shows the text of an assistant's turn {whole.count(_COMPLETION)} "
                f"times instead of once. {NAMED_OR_REPAIR}"
            )
        head, _, after = whole.partition(_COMPLETION)
        shared = _num_shared(head, prompt)
        gap, extra = head[shared:], prompt[shared:]
        if _THOUGHT_TAGS.sub("", gap + extra).strip():
            ignored = self._rendered([("user", _PROBLEM + self.instruction)]) == prompt
            raise ValueError(
                f"The chat template of {self.name!r} {'ignores add_generation_prompt: it ' if ignored else ''}"
                f"{_difference(prompt, _COMPLETION, whole)}"
            )
        return Turn(gap, extra, after)

    @cached_property
    def _gap_in_tokens(self) -> bool:
        """Whether whitespace between prompt and completion changes token ids; see `_check_gap`."""
        whole = self._rendered([("user", _PROBLEM + self.instruction), ("assistant", _COMPLETION)])
        joined = [*self._ids(self.prompt(_PROBLEM)), *self._ids(_COMPLETION)]
        return self._ids(whole)[: len(joined)] != joined

    def _check_gap(self) -> None:
        """Raises a ValueError where whitespace stands between prompt and completion and has tokens of its own."""
        if self.turn.is_spaced and self._gap_in_tokens:
            raise ValueError(
                f"The chat template of {self.name!r} puts {self.turn.gap!r} in front of the text of an assistant's "
                f"turn where the prompt ends in {self.turn.extra!r}. The tokenizer gives that tokens of its own, so "
                f"training would differ from a chat with the student. {NAMED_OR_REPAIR}"
            )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _rendered(self, turns: list[tuple[str, str]], *, generation: bool = False) -> str:
        system = [("system", self.system)] if self.system else []
        messages = [{"role": role, "content": content} for role, content in system + turns]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, strftime_now=self._strftime_now
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise RefusedText(
                f"The chat template of {self.name!r} refuses the turns {roles}: {error}. {NAMED_OR_REPAIR}"
            ) from error
        return str(text)

    def _strftime_now(self, form: str) -> str:
        """The template's clock: it stands at the beginning of the run's day."""
        self._shows_date = True
        return datetime.combine(self._today, datetime.min.time()).strftime(form)


def _check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raises a ValueError unless the tokenizer has what the template needs."""
    name, vocabulary = tokenizer.name_or_path, tokenizer.get_vocab()
    if template != "model" and template not in NAMED_TEMPLATES:
        names = ", ".join(["auto", "model", *NAMED_TEMPLATES])
        raise ValueError(f"template={template!r} is unknown. Choose one of {names}.")
    missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in vocabulary]
    if template == "model" and not tokenizer.chat_template:
        fitting = "simple" if missing else "qwen-base, qwen-instruct or simple"
        raise ValueError(
            f"The tokenizer of {name!r} has no chat template. Set template to {fitting}, or add a "
            "chat_template to its tokenizer_config.json."
        )
    if template.startswith("qwen") and missing:
        raise ValueError(
            f"template={template} needs the tokens {' and '.join(missing)}, which the tokenizer of "
            f"{name!r} lacks. Set template to simple, or to model if it has a chat template."
        )


def _parsed(template_date: str | None) -> date:
    try:
        return date.today() if template_date is None else date.fromisoformat(template_date)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"template_date={template_date!r} is not a date. Write year, month and day: 2026-11-30."
        ) from error


def _num_shared(one: str, other: str) -> int:
    """How many characters two texts share at their beginnings."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _difference(prompt: str, completion: str, whole: str) -> str:
    """The rest of a message that begins with "the chat template of X": what stands where, and what to do."""
    if "".join(completion.split()) not in "".join(whole.split()):
        thought = completion.partition("</think>")
        lost = f"everything up to </think>, {len(thought[0]) + 8:,} of" if thought[1] else "or changes some of"
        return (
            f"deletes {lost} {len(completion):,} characters of the completion: the student's reasoning would be lost. "
            f"{NAMED_OR_REPAIR}"
        )
    begin = completion.strip()
    between, found, _ = whole.removeprefix(prompt).partition(begin)
    if whole.startswith(prompt) and found and between.strip():
        return (
            f"puts {between!r} between the prompt, which ends in {prompt[-_NUM_SHOWN:]!r}, and the completion, which "
            f"begins with {begin[:_NUM_SHOWN]!r}: training would leave it out. {NAMED_OR_REPAIR}"
        )
    joined = prompt + completion
    at = _num_shared(joined, whole)
    start = max(0, at - _NUM_SHOWN)
    return (
        f"renders {whole[start : at + _NUM_SHOWN]!r} where prompt and completion together are "
        f"{joined[start : at + _NUM_SHOWN]!r}: training would differ from a chat with the student. {NAMED_OR_REPAIR}"
    )
