"""The only place where text becomes token ids: a problem and a completion to a Segment.

A prompt and its completion are tokenised apart and their ids joined. So the prompt ids at training are exactly those at
generation, and a completion never reaches back into its prompt. The price: at the seam the ids may differ from those of
the joined text (after a prompt that ends in a space, "x" follows where joined text would hold " x"), and tokenizers
that put a space before every text put one before the completion. Training and generation pay it alike.

Text is data: a problem or completion that spells `<|im_end|>` gets the tokens of that spelling, not the control token.
The tokens that a chat template puts round a turn are control tokens, also where the tokenizer does not call them
special; `<think>` and `</think>` are text, also where it does: they are kept in training and in decoding.

Left out: more than one turn, tools, and images.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.conversation import NAMED_OR_REPAIR, Conversation, RefusedText
from w2sr.supervision import Supervision, Target, carries_loss, segment_of, target_of
from w2sr.templates import NAMED_TEMPLATES, Template, jinja_template
from w2sr.tokenizer import THOUGHT_TOKENS, generation_end_ids, load_tokenizer, with_control_tokens
from w2sr.types import Segment, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(r"[<\[{(].*[>\]})]")
"""How tokens look that are only there to give a conversation its form: `<|im_end|>`, `[INST]`."""
PROBE_PROBLEM = "Tom has 12 naïve pens.\n\n<think>He loses 7</think>: how many are left? \\boxed{5}"


class Chat:
    """One tokenizer, one template, one stop token: prompts, segments and their text.

    Args:
        tokenizer: A fast tokenizer.
        template: `auto` or `model` for the tokenizer's own chat template, or one of the paper's three.
        stop_token: The token that ends a completion. By default `<|im_end|>` for the ChatML templates (Qwen-Math's own
            end token is another one, and a student trained on that never stops in a chat), for the tokenizer's own
            template what that puts after an assistant turn, else the tokenizer's end token.
        system: System prompt; None takes the template's default, "" has none.
        instruction: Text put right after the problem (`COT_INSTRUCTION`); None takes the template's default.
        template_date: The day that a template which calls `strftime_now` shows, as 2026-11-30; None is today.
        end_token_ids: Other tokens that end a completion, as the model's generation config lists them. `stop_token_ids`
            is the stop token, the tokenizer's end token and these.

    Raises:
        ValueError: The tokenizer has no chat template, no such token or no stop token, the template is unknown, or what
            it renders of a whole conversation does not continue the prompt (see `w2sr.conversation`).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template = "auto",
        stop_token: str | None = None,
        system: str | None = None,
        instruction: str | None = None,
        template_date: str | None = None,
        end_token_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = self._original = tokenizer
        self.name = str(tokenizer.name_or_path)
        self.template: Template = "model" if template == "auto" else template
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.conversation = Conversation(tokenizer, self.template, system, instruction, template_date)
        self.system, self.instruction = self.conversation.system, self.conversation.instruction
        self.opened = self.conversation.opened
        self.stop_token = self._checked_stop_token(self._find_stop_token() if stop_token is None else stop_token)
        self.stop_token_id = self.vocabulary[self.stop_token]
        self.end_token_ids = self._checked_end_token_ids(end_token_ids)
        end_ids = [self.stop_token_id, tokenizer.eos_token_id, *self.end_token_ids]
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(end for end in end_ids if end is not None))
        self.tokenizer = with_control_tokens(tokenizer, self._turn_tokens())

    @classmethod
    def load(
        cls,
        model_name_or_path: str | Path,
        *,
        template: Template = "auto",
        stop_token: str | None = None,
        system: str | None = None,
        instruction: str | None = None,
        template_date: str | None = None,
        trust_remote_code: bool = False,
    ) -> Chat:
        """Chat with the tokenizer of a model directory or hub name; see the class for the options.

        Raises:
            ValueError: There is no tokenizer, it is not a fast one, it differs from its own tokenizer.json (see
                `load_tokenizer`), or the options do not fit it.
        """
        tokenizer = load_tokenizer(model_name_or_path, trust_remote_code=trust_remote_code)
        return cls(
            tokenizer,
            template=template,
            stop_token=stop_token,
            system=system,
            instruction=instruction,
            template_date=template_date,
            end_token_ids=generation_end_ids(model_name_or_path),
        )

    def with_instruction(self, instruction: str) -> Chat:
        """The same chat with this text right after every problem."""
        return Chat(
            self._original,
            template=self.template,
            stop_token=self.stop_token,
            system=self.system,
            instruction=instruction,
            template_date=self.template_date or None,
            end_token_ids=self.end_token_ids,
        )

    @property
    def template_date(self) -> str:
        """The day that prompts show, as 2026-11-30; "" where the template shows none."""
        return self.conversation.template_date

    @property
    def thoughts_are_special(self) -> bool:
        """Whether others who decode with this tokenizer lose `<think>` and `</think>`. `decode` keeps them."""
        return any(
            token.special and token.content in THOUGHT_TOKENS for token in self._original.added_tokens_decoder.values()
        )

    def render_prompt(self, problem: str) -> str:
        """The prompt of a problem as text, up to and including the generation marker."""
        return self.conversation.prompt(problem)

    def prompt_ids(self, problem: str) -> list[int]:
        """Token ids of the prompt of a problem: the same at training and at generation."""
        return self.prompts_ids([problem])[0]

    def prompts_ids(self, problems: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts of many problems.

        Raises:
            RefusedText: the chat template refuses a problem, or the problem spells a control token that the tokenizer
                cannot hold as text.
        """
        prompts_ids = self._encode([self.render_prompt(problem) for problem in problems], text_is_data=False)
        for at, problem in enumerate(problems):
            if self._control_text.search(problem):
                prompts_ids[at] = self._prompt_ids_in_pieces(problem)
        return [self._begin + prompt_ids for prompt_ids in prompts_ids]

    def _prompt_ids_in_pieces(self, problem: str) -> list[int]:
        """Ids of a prompt whose problem spells control tokens: the problem is tokenised apart, as data."""
        head_ids, tail_ids = self._encode(self.conversation.pieces(problem), text_is_data=False)
        problem_ids = self._encode([problem], text_is_data=True)[0]
        self._check_holds_no_control(f"The problem {problem[:60]!r}", problem_ids)
        return head_ids + problem_ids + tail_ids

    def segment(self, problem: str, completion: str, segment_id: str, *, finished: bool = True) -> Segment:
        """Prompt, completion and stop token as one segment with labels on completion and stop token; see `segments`."""
        return self._join([(segment_id, problem, Target(completion), finished)])[0]

    def segments(self, traces: Sequence[Trace], *, supervision: Supervision = "full") -> list[Segment]:
        """A segment for each trace: prompt + completion + stop token, with labels on completion and stop token.

        Other variants of `supervision` have fewer labels, or only the answer as completion: see `w2sr.supervision`.
        A trace that met the token limit (`finish_reason` "length") gets no stop token: a label there would teach the
        student to stop in the middle of a sentence. What the prompt already opens of the assistant's turn (`opened`)
        is left out of the completion.

        Raises:
            RefusedText: Prompt and completion are not what the tokenizer's own chat template renders, or the completion
                holds text that the tokenizer does not know, or spells a control token that it cannot hold as text.
            ValueError: The trace has no answer and the variant needs one. Both name the trace.
        """
        return self._join(
            [(t.trace_id, t.problem, target_of(t, supervision), t.finish_reason != "length") for t in traces]
        )

    def _join(self, texts: Sequence[tuple[str, str, Target, bool]]) -> list[Segment]:
        problems = list(dict.fromkeys(problem for _, problem, _, _ in texts))
        prompts_ids = dict(zip(problems, self.prompts_ids(problems), strict=True))
        for segment_id, problem, target, _ in texts:
            self.conversation.check(f"Trace {segment_id!r}", problem, target.text)
        encoded = self._encode_targets([self._behind_prompt(target) for _, _, target, _ in texts])
        segments = []
        for (segment_id, problem, target, finished), (ids, loss) in zip(texts, encoded, strict=True):
            self._check_completion_ids(segment_id, self._behind_prompt(target).text, ids)
            end = [self.stop_token_id] if finished else []
            segments.append(segment_of(segment_id, prompts_ids[problem], ids + end, loss + [True for _ in end]))
        return segments

    def _behind_prompt(self, target: Target) -> Target:
        """What of a target stands behind the prompt, which may have opened a thought already."""
        return target.behind(len(target.text) - len(target.text.removeprefix(self.opened)))

    def _encode_targets(self, targets: Sequence[Target]) -> Iterator[tuple[list[int], list[bool]]]:
        """Ids of each target, and which of them carry loss. Offsets take a while, and most targets need none."""
        texts = [target.text for target in targets]
        if all(target.is_full for target in targets):
            return ((ids, [True] * len(ids)) for ids in self._encode(texts, text_is_data=True))
        encoded = self._encoded(texts, True, return_offsets_mapping=True)
        return zip(encoded["input_ids"], map(carries_loss, targets, encoded["offset_mapping"]), strict=True)

    def count_tokens(self, traces: Sequence[Trace]) -> list[int]:
        """Tokens of each completion, with the stop token that `segments` gives it."""
        texts = [trace.completion.removeprefix(self.opened) for trace in traces]
        completions_ids = self._encode(texts, text_is_data=True)
        pairs = zip(traces, completions_ids, strict=True)
        return [len(ids) + (trace.finish_reason != "length") for trace, ids in pairs]

    def completion_ids(self, text: str, *, finished: bool) -> list[int]:
        """Token ids of a completion that is known only as text, with the stop token where it is finished."""
        return self._encode([text], text_is_data=True)[0] + [self.stop_token_id] * finished

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, without control tokens and without any tidying of spaces."""
        ids = [int(token_id) for token_id in token_ids]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs for this tokenizer: its highest id + 1."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def template_hash(self) -> str:
        """16 hex digits that change with the vocabulary, the way of tokenising, the template or what ends a turn."""
        probe_ids = [*self.prompt_ids(PROBE_PROBLEM), self.stop_token_id]
        parts: list[Any] = [sorted(self.vocabulary.items()), self.render_prompt(PROBE_PROBLEM), probe_ids]
        known = {self.stop_token_id, self.tokenizer.eos_token_id}
        parts += [more] if (more := sorted(set(self.stop_token_ids) - known)) else []  # else as stores of 0.1.0 have it
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer so that others stop and prompt as we do: our stop token as its end token, our template.

        A named template is written as a chat template with its system prompt and instruction, so that `Chat.load` gives
        the same prompts. Beside the tokenizer's own template, `system` and `instruction` stay with the caller.
        """
        tokenizer = copy.deepcopy(self._original)
        tokenizer.eos_token = self.stop_token
        if self.template in NAMED_TEMPLATES:
            head, tail = self.conversation.pieces("")
            begin = tokenizer.bos_token if self._begin else ""
            ended = self.stop_token + ("\n" if self.template != "simple" else "")
            tokenizer.chat_template = jinja_template(begin + head, tail, ended)
        tokenizer.save_pretrained(str(directory))

    def check_vocabulary(self, embedding_rows: int) -> None:
        """Raises a ValueError if the model's embedding has no row for some token of the tokenizer."""
        if self.vocab_size > embedding_rows:
            raise ValueError(
                f"The tokenizer of {self.name!r} has ids up to {self.vocab_size - 1:,}; the model's embedding has "
                f"{embedding_rows:,} rows. Use the tokenizer that belongs to the model."
            )

    def check_positions(self, segments: Sequence[Segment], positions: int | None) -> None:
        """Raises a ValueError if a segment is longer than the model's `positions` (None: the model does not say)."""
        longest = max(segments, key=len, default=None)
        if positions is None or longest is None or len(longest) <= positions:
            return
        num_long = sum(len(segment) > positions for segment in segments)
        raise ValueError(
            f"Trace {longest.segment_id!r} has {len(longest):,} tokens with its prompt; the model {self.name!r} has "
            f"{positions:,} positions (max_position_embeddings). {num_long:,} of {len(segments):,} traces are longer "
            f"than that. Set data.max_tokens={positions} with data.overlong=drop or data.overlong=truncate, leave such "
            "traces out (data.gates.max_tokens), or train a model with more positions."
        )

    def check_generation_stops(self, stop_token_ids: Iterable[int]) -> None:
        """Raises a ValueError unless generation ends on the stop token that the student is taught."""
        generation_ids = sorted(stop_token_ids)
        if self.stop_token_id not in generation_ids:
            raise ValueError(
                f"Traces end in the stop token {self.stop_token!r} (id {self.stop_token_id}); generation stops on "
                f"{generation_ids}, so a trained student would run to its token limit. Set eos_token_id in the "
                f"generation config, or stop_token, so that both agree."
            )

    def _find_stop_token(self) -> str | None:
        """The token that the template puts behind an assistant's turn, else the tokenizer's end token."""
        if self.template.startswith("qwen"):
            return "<|im_end|>"
        end_token: str | None = self.tokenizer.eos_token
        after = self.conversation.turn.after.strip()
        if not after:
            return end_token
        tokens = [token for token in self.tokenizer.get_added_vocab() if after.startswith(token)]
        tokens += [after] if after in self.vocabulary else []
        if not tokens:
            raise ValueError(
                f"The chat template of {self.name!r} ends an assistant's turn with {after[:60]!r}, which does not "
                f"begin with a token of its own: generation could not stop on it. {NAMED_OR_REPAIR} Or set stop_token "
                f"to a token of the tokenizer, such as its end token {end_token!r}."
            )
        return max(tokens, key=len)

    def _turn_tokens(self) -> list[str]:
        """The added tokens that the template puts round a problem and a completion, and the stop token."""
        around = "" if self.template == "simple" else self.conversation.surroundings
        added = self.tokenizer.get_added_vocab()
        markers = {token for token in added if token in around and _MARKER.fullmatch(token)}
        return sorted({*markers, self.stop_token}.difference(THOUGHT_TOKENS))

    def _checked_end_token_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        known = set(self.vocabulary.values())
        if unknown := [end for end in ids if end not in known]:
            raise ValueError(
                f"The generation config of {self.name!r} ends completions on the ids {list(ids)}, of which its "
                f"tokenizer has no {unknown}. Correct eos_token_id in its generation_config.json."
            )
        return tuple(ids)

    def _checked_stop_token(self, stop_token: str | None) -> str:
        if stop_token is None:
            raise ValueError(
                f"The tokenizer of {self.name!r} has no end token and its template ends no turn. Set stop_token to one "
                f"of its tokens, such as {sorted(self.tokenizer.get_added_vocab())[:5]}."
            )
        if stop_token not in self.vocabulary:
            candidates = self.tokenizer.get_added_vocab() or self.vocabulary
            nearest = difflib.get_close_matches(stop_token, candidates, n=1, cutoff=0.0)
            raise ValueError(
                f"stop_token={stop_token!r} is not a token of {self.name!r}; the nearest is {nearest[0]!r}. "
                "Set stop_token to a token of the tokenizer."
            )
        return stop_token

    def _check_completion_ids(self, segment_id: str, completion: str, ids: list[int]) -> None:
        unknown_id = self.tokenizer.unk_token_id
        if unknown_id is not None and unknown_id in ids:
            encoded = self.tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
            start, stop = encoded["offset_mapping"][encoded["input_ids"].index(unknown_id)]
            raise RefusedText(
                f"Trace {segment_id!r}: the tokenizer of {self.name!r} does not know {completion[start:stop]!r} in the "
                f"completion ({ids.count(unknown_id)} such tokens). Remove the trace or use another tokenizer."
            )
        self._check_holds_no_control(f"Trace {segment_id!r}: the completion", ids)

    def _check_holds_no_control(self, what: str, ids: list[int]) -> None:
        """Raises where text as data gave a control token: a stop token that is not special, or a word-level one."""
        for at in self._control_ids.intersection(ids):
            raise RefusedText(
                f"{what} spells {self.tokenizer.convert_ids_to_tokens(at)!r}, a control token that the tokenizer of "
                f"{self.name!r} cannot hold as text. Remove it from the text."
            )

    @cached_property
    def _control_tokens(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        return sorted(special.difference(THOUGHT_TOKENS))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset([self.vocabulary[token] for token in self._control_tokens] + list(self.stop_token_ids))

    @cached_property
    def _control_text(self) -> re.Pattern[str]:
        """Matches the spelling of any control token, and nothing where there is none."""
        longest_first = sorted(self._control_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def _begin(self) -> list[int]:
        """The begin token, where the tokenizer puts one before plain text and the template is plain text."""
        begin_id = self.tokenizer.bos_token_id
        starts_with_it = begin_id is not None and self.tokenizer("x")["input_ids"][:1] == [begin_id]
        return [begin_id] if self.template == "simple" and starts_with_it else []

    def _encode(self, texts: Sequence[str], *, text_is_data: bool) -> list[list[int]]:
        """Ids of many texts at once; as data, special tokens that the text spells are split like any other text."""
        return list(self._encoded(texts, text_is_data)["input_ids"]) if texts else []

    def _encoded(self, texts: Sequence[str], text_is_data: bool, **options: bool) -> Any:
        options |= {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=text_is_data, **options)
