"""The only place where text becomes token ids: a problem and a completion to a Segment.

A prompt and its completion are tokenised apart and their ids joined. So the prompt ids at training are exactly those at
generation, and a completion never reaches back into its prompt. The price: at the seam the ids may differ from those of
the joined text (after a prompt that ends in a space, "x" follows where joined text would hold " x"), and tokenizers
that put a space before every text put one before the completion. Training and generation pay it alike.

Text is data: a problem or completion that spells `<|im_end|>` gets the tokens of that spelling, not the control token.

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

from jinja2 import TemplateError

from w2sr.supervision import Supervision, Target, carries_loss, segment_of, target_of
from w2sr.templates import NAMED_TEMPLATES, Template, jinja_template
from w2sr.tokenizer import load_tokenizer
from w2sr.types import Segment, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_PROBLEM = "Tom has 12 naïve pens.\n\n<think>He loses 7</think>: how many are left? \\boxed{5}"
_PLACEHOLDER = "PROBLEMPLACEHOLDER"
_NAMED_OR_REPAIR = "Set template to qwen-base, qwen-instruct or simple, or repair the tokenizer's chat_template."


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

    Raises:
        ValueError: The tokenizer has no chat template, no such token or no stop token, or the template is unknown.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template = "auto",
        stop_token: str | None = None,
        system: str | None = None,
        instruction: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.name = str(tokenizer.name_or_path)
        self.template: Template = "model" if template == "auto" else template
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._check_template()
        _, default_system, default_instruction = NAMED_TEMPLATES.get(self.template, (None, "", ""))
        self.system = default_system if system is None else system
        self.instruction = default_instruction if instruction is None else instruction
        if self.system and self.template == "simple":
            raise ValueError(f"template=simple has no place for system={self.system!r}. Unset one of them.")
        self.stop_token = self._checked_stop_token(self._find_stop_token() if stop_token is None else stop_token)
        self.stop_token_id = self.vocabulary[self.stop_token]
        end_ids = [self.stop_token_id, tokenizer.eos_token_id]
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(end for end in end_ids if end is not None))

    @classmethod
    def load(
        cls,
        model_name_or_path: str | Path,
        *,
        template: Template = "auto",
        stop_token: str | None = None,
        system: str | None = None,
        instruction: str | None = None,
        trust_remote_code: bool = False,
    ) -> Chat:
        """Chat with the tokenizer of a model directory or hub name; see the class for the options.

        Raises:
            ValueError: There is no tokenizer, it is not a fast one, it differs from its own tokenizer.json (see
                `load_tokenizer`), or the options do not fit it.
        """
        tokenizer = load_tokenizer(model_name_or_path, trust_remote_code=trust_remote_code)
        return cls(tokenizer, template=template, stop_token=stop_token, system=system, instruction=instruction)

    def with_instruction(self, instruction: str) -> Chat:
        """The same chat with this text right after every problem."""
        return Chat(
            self.tokenizer,
            template=self.template,
            stop_token=self.stop_token,
            system=self.system,
            instruction=instruction,
        )

    def render_prompt(self, problem: str) -> str:
        """The prompt of a problem as text, up to and including the generation marker."""
        content = problem + self.instruction
        if self.template in NAMED_TEMPLATES:
            return NAMED_TEMPLATES[self.template][0](content, self.system)
        return self._apply_own_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def prompt_ids(self, problem: str) -> list[int]:
        """Token ids of the prompt of a problem: the same at training and at generation."""
        return self._prompts_ids([problem])[0]

    def _prompts_ids(self, problems: Sequence[str]) -> list[list[int]]:
        prompts_ids = self._encode([self.render_prompt(problem) for problem in problems], text_is_data=False)
        for at, problem in enumerate(problems):
            if self._control_text.search(problem):
                prompts_ids[at] = self._prompt_ids_in_pieces(problem)
        return [self._begin + prompt_ids for prompt_ids in prompts_ids]

    def _prompt_ids_in_pieces(self, problem: str) -> list[int]:
        """Ids of a prompt whose problem spells control tokens: the problem is tokenised apart, as data."""
        pieces = self.render_prompt(_PLACEHOLDER).split(_PLACEHOLDER)
        if len(pieces) != 2:
            raise ValueError(
                f"The problem {problem[:60]!r} spells a control token, and the chat template of {self.name!r} shows a "
                f"problem {len(pieces) - 1} times instead of once. Remove the problem or choose template=simple."
            )
        head_ids, tail_ids = self._encode(pieces, text_is_data=False)
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
        student to stop in the middle of a sentence.

        Raises:
            ValueError: The tokenizer's own chat template would delete text of the completion, or the completion holds
                text that the tokenizer does not know or spells a stop token that is not special, or the trace has no
                answer and the variant needs one. The trace is named.
        """
        return self._join(
            [(t.trace_id, t.problem, target_of(t, supervision), t.finish_reason != "length") for t in traces]
        )

    def _join(self, texts: Sequence[tuple[str, str, Target, bool]]) -> list[Segment]:
        problems = list(dict.fromkeys(problem for _, problem, _, _ in texts))
        prompts_ids = dict(zip(problems, self._prompts_ids(problems), strict=True))
        encoded = self._encode_targets([target for _, _, target, _ in texts])
        segments = []
        for (segment_id, problem, target, finished), (ids, loss) in zip(texts, encoded, strict=True):
            self._check_survives(segment_id, problem, target.text)
            self._check_completion_ids(segment_id, target.text, ids)
            end = [self.stop_token_id] if finished else []
            segments.append(segment_of(segment_id, prompts_ids[problem], ids + end, loss + [True for _ in end]))
        return segments

    def _encode_targets(self, targets: Sequence[Target]) -> Iterator[tuple[list[int], list[bool]]]:
        """Ids of each target, and which of them carry loss. Offsets take a while, and most targets need none."""
        texts = [target.text for target in targets]
        if all(target.is_full for target in targets):
            return ((ids, [True] * len(ids)) for ids in self._encode(texts, text_is_data=True))
        encoded = self._encoded(texts, True, return_offsets_mapping=True)
        return zip(encoded["input_ids"], map(carries_loss, targets, encoded["offset_mapping"]), strict=True)

    def count_tokens(self, traces: Sequence[Trace]) -> list[int]:
        """Tokens of each completion, with the stop token that `segments` gives it."""
        completions_ids = self._encode([trace.completion for trace in traces], text_is_data=True)
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
        """16 hex digits that change with the vocabulary, the way of tokenising, the template or the stop token."""
        probe_ids = [*self.prompt_ids(PROBE_PROBLEM), self.stop_token_id]
        parts = [sorted(self.vocabulary.items()), self.render_prompt(PROBE_PROBLEM), probe_ids]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer so that others stop and prompt as we do: our stop token as its end token, our template.

        A named template is written as a chat template with its system prompt and instruction, so that `Chat.load` gives
        the same prompts. Beside the tokenizer's own template, `system` and `instruction` stay with the caller.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.eos_token = self.stop_token
        if self.template in NAMED_TEMPLATES:
            head, tail = self.render_prompt(_PLACEHOLDER).split(_PLACEHOLDER)
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

    def check_generation_stops(self, stop_token_ids: Iterable[int]) -> None:
        """Raises a ValueError unless generation ends on the stop token that the student is taught."""
        generation_ids = sorted(stop_token_ids)
        if self.stop_token_id not in generation_ids:
            raise ValueError(
                f"Traces end in the stop token {self.stop_token!r} (id {self.stop_token_id}); generation stops on "
                f"{generation_ids}, so a trained student would run to its token limit. Set eos_token_id in the "
                f"generation config, or stop_token, so that both agree."
            )

    def _check_template(self) -> None:
        if self.template != "model" and self.template not in NAMED_TEMPLATES:
            names = ", ".join(["auto", "model", *NAMED_TEMPLATES])
            raise ValueError(f"template={self.template!r} is unknown. Choose one of {names}.")
        if self.template == "model" and not self.tokenizer.chat_template:
            chatml = {"<|im_start|>", "<|im_end|>"} <= self.vocabulary.keys()
            fitting = "qwen-base, qwen-instruct or simple" if chatml else "simple"
            raise ValueError(
                f"The tokenizer of {self.name!r} has no chat template. Set template to {fitting}, or add a "
                "chat_template to its tokenizer_config.json."
            )
        if self.template.startswith("qwen"):
            missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in self.vocabulary]
            if missing:
                raise ValueError(
                    f"template={self.template} needs the tokens {' and '.join(missing)}, which the tokenizer of "
                    f"{self.name!r} lacks. Set template to simple, or to model if it has a chat template."
                )

    def _find_stop_token(self) -> str | None:
        if self.template.startswith("qwen"):
            return "<|im_end|>"
        if self.template == "model":
            turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PLACEHOLDER}]
            _, _, after = self._apply_own_template(turns).rpartition(_PLACEHOLDER)
            if control := self._control_text.search(after):
                return control.group()
        end_token: str | None = self.tokenizer.eos_token
        return end_token

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

    def _check_survives(self, segment_id: str, problem: str, completion: str) -> None:
        """Raises if the tokenizer's own template deletes text from an assistant turn (whitespace does not count).

        Our segments keep the whole completion, but a chat with the student through that template would not.
        """
        if self.template in NAMED_TEMPLATES:
            return
        turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": completion}]
        if "".join(completion.split()) in "".join(self._apply_own_template(turns).split()):
            return
        thought = completion.partition("</think>")
        lost = f"everything up to </think>, {len(thought[0]) + 8:,} of" if thought[1] else "or changes some of"
        raise ValueError(
            f"Trace {segment_id!r}: the chat template of {self.name!r} deletes {lost} {len(completion):,} characters "
            f"of the completion: the student's reasoning would be lost. {_NAMED_OR_REPAIR}"
        )

    def _check_completion_ids(self, segment_id: str, completion: str, ids: list[int]) -> None:
        unknown_id = self.tokenizer.unk_token_id
        if unknown_id is not None and unknown_id in ids:
            encoded = self.tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
            start, stop = encoded["offset_mapping"][encoded["input_ids"].index(unknown_id)]
            raise ValueError(
                f"Trace {segment_id!r}: the tokenizer of {self.name!r} does not know {completion[start:stop]!r} in the "
                f"completion ({ids.count(unknown_id)} such tokens). Remove the trace or use another tokenizer."
            )
        self._check_holds_no_control(f"Trace {segment_id!r}: the completion", ids)

    def _check_holds_no_control(self, what: str, ids: list[int]) -> None:
        """Raises where text as data gave a control token: a stop token that is not special, or a word-level one."""
        for at in self._control_ids.intersection(ids):
            raise ValueError(
                f"{what} spells {self.tokenizer.convert_ids_to_tokens(at)!r}, a control token that the tokenizer of "
                f"{self.name!r} cannot hold as text. Remove it from the text."
            )

    @cached_property
    def _control_tokens(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens))

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

    def _apply_own_template(self, turns: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            text = self.tokenizer.apply_chat_template(
                system + turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            roles = [turn["role"] for turn in system + turns]
            raise ValueError(
                f"The chat template of {self.name!r} refuses the turns {roles}: {error}. {_NAMED_OR_REPAIR}"
            ) from error
        return str(text)
