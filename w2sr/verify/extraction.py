"""Extraction rules: completion → answer and where it stands, each a named function `str -> Found | None`.

A config names the rules of a source in the order in which they are tried; the first that yields an answer wins and its
name is recorded with the answer. The span of an answer takes its wrapper in (the box, `#### `, the tags, the marker,
`"key": `): it is the piece of text that the rule would read again if it stood alone. Every rule takes time linear in
the length of the completion, so a hostile completion of a megabyte costs milliseconds.

Every rule reads the completion with Unicode forms of ASCII folded, and every answer is freed from markup round all of
it and from the punctuation that ends a sentence (w2sr.verify.markup): `#### **18**` and `<answer>"18".</answer>` give
18. Spans are those of the completion as it was written.

Thinking. Where a completion contains `</think>`, only the text after the last one is read. A block that opens and never
closes (`<think>` without a later `</think>`) was cut off: no rule yields an answer, because `last_number` would
otherwise credit an interim result. A block that the *prompt* opened leaves no trace in the completion: say so with
`prompt_opens_think=True`, and a completion without `</think>` has no answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from w2sr.verify.last_number import last_number
from w2sr.verify.markup import plain, plain_with_places, unwrap
from w2sr.verify.phrases import Found, Rule, Span, after_text, answer_behind, choice_letter, end_of_space, yes_no

__all__ = ["Extraction", "Found", "NamedRule", "Rule", "Span", "extract", "parse_rules", "visible_part"]

MAX_BETWEEN_CHARS = 60
"""Boxes that stand farther apart are no list."""

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\s*(\\[dt]?frac(?:\{[^{}\n]*\}){2}|[^\s${}\\]+)")
_TEX_SPACE = re.compile(r"\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])|\\text(?![A-Za-z])|[{}$*\s]")
_LISTED = re.compile(r",|;|[,;]?and")  # "or" stands as often between two forms of one answer
_HASH_LINE = re.compile(r"####(?=[ \t]*[^\s])")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)


class Extraction(NamedTuple):
    """An extracted answer, the name of the rule that found it, and the characters of the completion that hold it.

    (None, "", None) where no rule found any.
    """

    answer: str | None
    rule: str
    span: Span | None


class NamedRule(NamedTuple):
    """A rule with the name under which configs know it."""

    name: str
    find: Rule


def boxed(text: str) -> Found | None:
    r"""The content of the last outermost \boxed{...} or \fbox{...}, braces matched; also `\boxed 5`.

    Boxes with only a comma or "and" between them are one list: `\boxed{5}` and `\boxed{7}` give "5, 7". Empty boxes do
    not count. A box that opens after the last complete one and never closes means that the completion was cut inside
    its answer: there is no answer then.

    >>> boxed(r"so \boxed{3}, no: $\boxed{\frac{1}{2}}$.")
    Found(answer='\\frac{1}{2}', span=(19, 38))
    """
    # one entry an open brace: where its box begins and where the content of that does, None for other braces
    opened: list[Span | None] = []
    boxes: list[tuple[Span, Span]] = []  # content, and the whole box
    position = 0
    while (token := _BOX_TOKEN.search(text, position)) is not None:
        position = token.end()
        symbol = token.group()
        if symbol == "{":
            opened.append(None)
        elif symbol == "}":
            box = opened.pop() if opened else None
            if box is not None and end_of_space(text, box[1]) < token.start():
                while boxes and boxes[-1][1][0] > box[0]:
                    boxes.pop()  # a box within this one
                boxes.append(((box[1], token.start()), (box[0], token.end())))
        elif symbol in (r"\boxed", r"\fbox"):
            brace = end_of_space(text, position)
            if brace < len(text) and text[brace] == "{":
                opened.append((token.start(), brace + 1))
                position = brace + 1
            elif (bare := _UNBRACED.match(text, position)) is not None:
                end = bare.start(1) + len(bare.group(1).rstrip(".,;") or bare.group(1))
                boxes.append(((bare.start(1), end), (token.start(), end)))
    if not boxes or any(box is not None and box[1] > boxes[-1][0][1] for box in opened):
        return None
    return _last_list(text, boxes)


def _last_list(text: str, boxes: Sequence[tuple[Span, Span]]) -> Found:
    """The last box with those before it that are listed with it."""
    content, (begin, end) = boxes[-1]
    answers = [text[slice(*content)].strip()]
    for content, where in reversed(boxes[:-1]):
        between = text[where[1] : begin]
        if len(between) > MAX_BETWEEN_CHARS or not _LISTED.fullmatch(_TEX_SPACE.sub("", between)):
            break
        begin = where[0]
        answers.append(text[slice(*content)].strip())
    return Found(", ".join(dict.fromkeys(reversed(answers))), (begin, end))


def after_hashes(text: str) -> Found | None:
    """The rest of the last line that goes on after `####`, as GSM8K writes it."""
    last = None
    for match in _HASH_LINE.finditer(text):
        last = match
    return None if last is None else answer_behind(text, last.span())


def answer_tag(text: str) -> Found | None:
    """The content of the last `<answer>…</answer>`; None where a later `<answer>` was never closed."""
    opened: Span | None = None
    found: Found | None = None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag.group(1):
            opened = tag.span()
        elif opened is not None:
            if answer := text[opened[1] : tag.start()].strip():
                found = Found(answer, (opened[0], tag.end()))
            opened = None
    return None if opened is not None else found


def json_value(key: str) -> Rule:
    """The value of the last `"key":` in JSON that need not be well formed: see w2sr.verify.loose_json."""
    from w2sr.verify.loose_json import last_value

    key = plain(key)

    def find(text: str) -> Found | None:
        value = last_value(text, key)
        return None if value is None else Found(*value)

    return find


_RULES: dict[str, Rule] = {
    "boxed": boxed,
    "hash": after_hashes,
    "answer_tag": answer_tag,
    "last_number": last_number,
    "choice_letter": choice_letter,
    "yes_no": yes_no,
}
_RULES_WITH_ARGUMENT: dict[str, Callable[[str], Rule]] = {"json": json_value, "after": after_text}


def parse_rules(names: Sequence[str]) -> tuple[NamedRule, ...]:
    """Turns the rule names of a config into rules, in their order.

    Raises:
        ValueError: no name at all, an unknown name (with the nearest known ones), or `json`/`after` without argument.

    >>> [rule.name for rule in parse_rules(["json:answer", "last_number"])]
    ['json:answer', 'last_number']
    """
    if isinstance(names, str):
        raise ValueError(f"Extraction rules are a list of names; got the text {names!r}. Write [{names!r}].")
    if not names:
        raise ValueError(f"No extraction rule was given; name at least one of: {_known_names()}.")
    return tuple(NamedRule(name, _parse_rule(name)) for name in names)


def _parse_rule(name: str) -> Rule:
    head, _, argument = name.partition(":")
    if head in _RULES_WITH_ARGUMENT:
        if not argument.strip():
            raise ValueError(
                f"Extraction rule {name!r} lacks its argument: write {head}:KEY, for example {head}:answer."
            )
        return _RULES_WITH_ARGUMENT[head](argument)
    if name not in _RULES:
        near = difflib.get_close_matches(name, [*_RULES, *_RULES_WITH_ARGUMENT], n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"Unknown extraction rule {name!r}.{hint} Known rules: {_known_names()}.")
    return _RULES[name]


def _known_names() -> str:
    return ", ".join([*_RULES, "json:KEY", "after:TEXT"])


def visible_part(completion: str, *, prompt_opens_think: bool = False) -> str | None:
    """The text after the thinking, or None where the thinking never ended. See the top of this file."""
    _, close, tail = completion.rpartition("</think>")
    if "<think>" in tail or (prompt_opens_think and not close):
        return None
    return tail


def extract(completion: str, rules: Sequence[NamedRule], *, prompt_opens_think: bool = False) -> Extraction:
    r"""The answer of the first rule that finds one.

    >>> extract(r"6 sheep. \boxed{6}", parse_rules(["hash", "boxed"]))
    Extraction(answer='6', rule='boxed', span=(9, 18))
    """
    text = visible_part(completion, prompt_opens_think=prompt_opens_think)
    if text is None:
        return Extraction(None, "", None)
    before = len(completion) - len(text)
    text, places = plain_with_places(text)
    for rule in rules:
        found = rule.find(text)
        if found is not None and (answer := unwrap(found.answer)):
            begin, end = found.span
            if places is not None:
                begin, end = places[begin], places[end - 1] + 1
            return Extraction(answer, rule.name, (before + begin, before + end))
    return Extraction(None, "", None)
