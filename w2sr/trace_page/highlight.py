"""Where in a completion the answer stands that an extraction rule found."""

from __future__ import annotations

import string
from bisect import bisect_left
from typing import NamedTuple

from w2sr.verify.extraction import NamedRule, extract, parse_rules

_NEXT = str.maketrans(
    string.digits + string.ascii_letters,
    string.digits[1:] + "0" + string.ascii_lowercase[1:] + "a" + string.ascii_uppercase[1:] + "A",
)


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
    answer = extract(completion, [rule]).answer
    if answer is None:
        return Highlight(None, None, f"The rule {rule_name} finds no answer now.")
    span = _span(completion, answer, rule)
    note = "" if span else f"The rule {rule_name} reads {answer}, which does not stand in the completion word for word."
    return Highlight(span, answer, note)


def _span(completion: str, answer: str, rule: NamedRule) -> tuple[int, int] | None:
    """The occurrence of the answer that decides what the rule finds.

    A rule says what it found, not where. So occurrences are changed, digits into other digits and letters into other
    letters: from the deciding one on, the answer found is another; after it, it stays. That is monotone, hence the
    bisection: a completion of a megabyte of sevens costs 20 extractions.
    """
    places = []
    at = completion.find(answer)
    while at >= 0:
        places.append(at)
        at = completion.find(answer, at + len(answer))
    other = answer.translate(_NEXT)
    other = other if other != answer else "x" * len(answer)

    def stays(number: int) -> bool:
        """Whether the rule's answer stays if all occurrences from this one on are changed."""
        if number == len(places):
            return True
        begin = places[number]
        changed = completion[:begin] + completion[begin:].replace(answer, other)
        return extract(changed, [rule]).answer == answer

    first = bisect_left(range(len(places) + 1), True, key=stays)
    return None if first == 0 else (places[first - 1], places[first - 1] + len(answer))
