"""Generation with a calculator: any engine that ends on a text can go on behind the result of a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan

from w2sr.chat import Chat
from w2sr.rollouts.protocol import Generator
from w2sr.tools import Calculator
from w2sr.types import Completion, SampleRequest, Sampling


@dataclass
class _Draft:
    """A completion under way: what was sampled and inserted so far, its text, and which characters were inserted.

    `logprobs`: of the sampled tokens, NaN for inserted ones, which nobody sampled; None where the engine gives none.
    """

    request: SampleRequest
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[float, ...] | None = ()
    spans: tuple[tuple[int, int], ...] = ()

    def rest(self) -> SampleRequest:
        """The request for what is still to be written."""
        return replace(self.request, prompt_ids=self.request.prompt_ids + self.token_ids, num_done=len(self.token_ids))

    def finished(self, last: Completion) -> Completion:
        """The whole completion, with its last part."""
        return replace(
            last,
            token_ids=self.token_ids + last.token_ids,
            text=self.text + last.text,
            no_loss_spans=self.spans,
            logprobs=self.logprobs_with(last, 0),
        )

    def logprobs_with(self, part: Completion, num_inserted: int) -> tuple[float, ...] | None:
        """The log-probabilities up to the end of a part and of what is inserted behind it."""
        if self.logprobs is None or part.logprobs is None:
            return None
        return self.logprobs + part.logprobs + (nan,) * num_inserted


class ToolGenerator:
    """Answers the calls of a calculator in what another generator writes.

    All requests are sampled up to their next call or their end; those with a call go on in a next round behind its
    result. The noise of a token depends on its position, so a result that the model would have written itself changes
    nothing that follows. Inserted tokens count towards `max_new_tokens`. A result that the tokenizer cannot spell is
    left to the model.

    Args:
        generator: the engine. It must honour `Sampling.stop_text` and `SampleRequest.num_done`.
        calculator: how calls look.
        chat: encodes results, and tells the end of a completion from the end of a call.
    """

    def __init__(self, generator: Generator, calculator: Calculator, chat: Chat) -> None:
        self.generator, self.calculator, self.chat = generator, calculator, chat

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """See `Generator.stream`. `Completion.no_loss_spans` says where results stand; their `logprobs` are NaN."""
        if sampling.stop_text:
            raise ValueError(
                f"sampling.stop_text={sampling.stop_text} and a calculator exclude each other: the calculator ends "
                "completions at its own text. Unset one of them."
            )
        drafts = {(request.problem_id, request.sample_index): _Draft(request) for request in requests}
        until_call = replace(sampling, stop_text=(self.calculator.close,))
        for calls_left in range(self.calculator.max_calls, -1, -1):
            rest = [draft.rest() for draft in drafts.values()]
            for part in self.generator.stream(rest, until_call if calls_left else sampling):
                draft = drafts[part.problem_id, part.sample_index]
                if not (calls_left and self._goes_on(draft, part, sampling.max_new_tokens)):
                    yield drafts.pop((part.problem_id, part.sample_index)).finished(part)

    def _goes_on(self, draft: _Draft, part: Completion, max_new_tokens: int) -> bool:
        """Takes the part into the draft, with the result of its call, unless the completion ends with it."""
        num_tokens = len(draft.token_ids) + len(part.token_ids)
        paused = part.finish_reason == "stop" and part.token_ids[-1] not in self.chat.stop_token_ids
        if not paused or num_tokens >= max_new_tokens:
            return False
        text = draft.text + part.text
        result = self.calculator.answer(text) or ""
        inserted = self._encoded(result)
        if self.chat.tokenizer.unk_token_id in inserted:
            result, inserted = "", ()
        if num_tokens + len(inserted) >= max_new_tokens:
            return False  # a result without a word behind it helps nobody
        draft.token_ids += part.token_ids + inserted
        draft.logprobs = draft.logprobs_with(part, len(inserted))
        draft.text = text + result
        if result:
            draft.spans += ((len(text), len(text) + len(result)),)
        return True

    def _encoded(self, text: str) -> tuple[int, ...]:
        ids = self.chat.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)
