"""Where in a completion the answer stands that an extraction rule found."""

from __future__ import annotations

from typing import NamedTuple

from w2sr.verify.extraction import extract, parse_rules


class Highlight(NamedTuple):
    """Where the extracted answer stands, in code points, or None; the answer; and why it has no place, or ""."""

    span: tuple[int, int] | None
    answer: str | None
    note: str


def highlight_answer(completion: str, rule_name: str) -> Highlight:
    r"""Extracts the answer again by the rule that found it, and says where it stands.

    >>> highlight_answer(r"5 and 5: \boxed{5}, so 5.", "boxed")
    Highlight(span=(16, 17), answer='5', note='')
    """
    if not rule_name:
        return Highlight(None, None, "No extraction rule is recorded, so no answer is marked.")
    try:
        (rule,) = parse_rules([rule_name])
    except ValueError as error:
        return Highlight(None, None, f"No answer is marked. {error}")
    answer, _, wrapped = extract(completion, [rule])
    if answer is None or wrapped is None:
        return Highlight(None, None, f"The rule {rule_name} finds no answer now.")
    begin = completion.rfind(answer, *wrapped)  # the wrapper, such as a key of JSON, may hold the same text before it
    span = None if begin < 0 else (begin, begin + len(answer))
    note = "" if span else f"The rule {rule_name} reads {answer}, which does not stand in the completion word for word."
    return Highlight(span, answer, note)
