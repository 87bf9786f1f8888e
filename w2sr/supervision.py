r"""Which tokens teach: the variants of one set of traces, as spans of characters and then as labels.

    completion      Mia has 23. Tom has 23 + 8 = 31. So Tom has \boxed{31}.<stop>
    full            ------------------------------------------------------++++++
    process_only    --------------------------------------------          -++++++
    outcome_only                                                ----------  ++++++   (the rest stays as context)
    outcome_hard    \boxed{31}<stop>, all of it                                      (the rest is gone)

*The answer* is the span that the extraction rule of the trace gives (`w2sr.verify.extraction`): the answer's own
characters with their wrapper, such as `\boxed{…}`. The wrapper belongs to it because it is how an answer is given: a
student that was to learn the process alone would otherwise be taught to open a box. Every earlier mention of the answer
("Tom has 23 + 8 = 31") is process. `outcome_hard` keeps the text of that span alone, which the same rule reads again.

*Borders.* A token belongs to a span if one of its characters does. So the answer is taught whole, and a token such as
`}.` that reaches out of it belongs to it with all it holds. Process and outcome share no token, and together they are
all tokens of the completion.

*The stop token* carries loss in every variant, where a trace has one.

*Spans without loss* (`Trace.no_loss_spans`), such as results of tools that the teacher did not write, carry none in any
variant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from w2sr.rows import parse_spans
from w2sr.types import IGNORE_INDEX, Segment, Trace
from w2sr.verify.extraction import NamedRule, Span, extract, parse_rules

Supervision = Literal["full", "process_only", "outcome_only", "outcome_hard"]


class Target(NamedTuple):
    """The text that a student is given after the prompt, and which of its characters teach.

    A token carries loss if it touches `taught` (None: the whole text) and none of the spans `silent`.
    """

    text: str
    taught: Span | None = None
    silent: tuple[Span, ...] = ()

    @property
    def is_full(self) -> bool:
        """Whether every token carries loss."""
        return self.taught is None and not self.silent

    def behind(self, num: int) -> Target:
        """The target without its first `num` characters.

        >>> Target("<think>so 5", taught=(10, 11), silent=((0, 9),)).behind(7)
        Target(text='so 5', taught=(3, 4), silent=((0, 2),))
        """
        taught, *silent = [span and _moved(span, num) for span in (self.taught, *self.silent)]
        return Target(self.text[num:], taught, tuple(span for span in silent if span))


def _moved(span: Span, num: int) -> Span:
    return (max(span[0] - num, 0), max(span[1] - num, 0))


def target_of(trace: Trace, supervision: Supervision) -> Target:
    """What of a trace teaches under a variant.

    Raises:
        ValueError: the variant is unknown, needs an answer that the trace has not, or `no_loss_spans` cannot be read.
    """
    if supervision not in get_args(Supervision):
        raise ValueError(f"supervision={supervision!r} is unknown. Choose one of {', '.join(get_args(Supervision))}.")
    silent = no_loss_spans(trace)
    if supervision == "full":
        return Target(trace.completion, silent=silent)
    answer = answer_span(trace)
    if answer is None:
        raise ValueError(
            f"Trace {trace.trace_id!r} has no final answer (answer_rule {trace.answer_rule!r}), and "
            f"supervision={supervision} asks which of its tokens are one. Leave such traces out, or verify them first."
        )
    if supervision == "process_only":
        return Target(trace.completion, silent=(*silent, answer))
    if supervision == "outcome_only":
        return Target(trace.completion, taught=answer, silent=silent)
    begin, end = answer
    head, tail = ("{", "\n}") if trace.answer_rule.startswith("json:") else ("", "")
    kept = [(max(start, begin), min(stop, end)) for start, stop in silent if start < end and stop > begin]
    moved = tuple((len(head) + start - begin, len(head) + stop - begin) for start, stop in kept)
    return Target(head + trace.completion[begin:end] + tail, silent=moved)


def answer_span(trace: Trace) -> Span | None:
    """Where the final answer of a verified trace stands, by the rule that found it; None where it has none."""
    if not trace.answer_rule:
        return None
    return extract(trace.completion, _rules(trace.answer_rule)).span


@lru_cache
def _rules(name: str) -> tuple[NamedRule, ...]:
    return parse_rules([name])


def with_answer(traces: Iterable[Trace]) -> list[Trace]:
    """The traces whose final answer can be found: those that the variants other than `full` can be made of."""
    return [trace for trace in traces if answer_span(trace) is not None]


def no_loss_spans(trace: Trace) -> tuple[Span, ...]:
    """The spans of `Trace.no_loss_spans`.

    Raises:
        ValueError: it is not a JSON list of [start, end] within the completion.
    """
    try:
        spans = parse_spans(trace.no_loss_spans, len(trace.completion))
    except ValueError as error:
        raise ValueError(f"Trace {trace.trace_id!r}: {error}.") from error
    return tuple((start, end) for start, end in spans if start < end)


def carries_loss(target: Target, offsets: Sequence[Span]) -> list[bool]:
    """For each token, whether it carries loss; `offsets` are the characters of `target.text` that it stands for.

    A token without characters (some tokenizers put a space before every text) counts as the character after it.

    >>> carries_loss(Target("is \\\\boxed{3}.", taught=(3, 12)), [(0, 2), (2, 4), (4, 10), (10, 11), (11, 13)])
    [False, True, True, True, True]
    """
    return [
        (target.taught is None or _touch(token, target.taught)) and not any(_touch(token, s) for s in target.silent)
        for token in offsets
    ]


def _touch(token: Span, span: Span) -> bool:
    return token[0] < span[1] and max(token[1], token[0] + 1) > span[0]


def labels_of(input_ids: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Labels [L] int64 of a segment: every token that carries loss by `loss` [L], at the place before it.

    >>> labels_of(np.array([7, 8, 9, 4]), np.array([False, False, True, True])).tolist()
    [-100, 9, 4, -100]
    """
    labels = np.full(len(input_ids), IGNORE_INDEX, dtype=np.int64)
    labels[:-1] = np.where(loss[1:], input_ids[1:], IGNORE_INDEX)
    return labels


def segment_of(segment_id: str, prompt_ids: list[int], target_ids: list[int], loss: list[bool]) -> Segment:
    """Prompt and target as one segment; `loss` says which target tokens carry loss, the prompt never does."""
    assert prompt_ids, f"{segment_id}: without a prompt nothing predicts the first token of the completion"
    input_ids = np.array(prompt_ids + target_ids, dtype=np.int64)
    return Segment(segment_id, input_ids, labels_of(input_ids, np.array([False] * len(prompt_ids) + loss)))
