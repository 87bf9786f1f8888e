"""Extraction rules: completion → answer and where it stands, each a named function `str -> Found | None`.

A config names the rules of a source in the order in which they are tried; the first that yields an answer wins and its
name is recorded with the answer. The span of an answer takes its wrapper in (the box, `#### `, the tags, the marker,
`"key": `): it is the piece of text that the rule would read again if it stood alone. Every rule takes time linear in
the length of the completion, so a hostile completion of a megabyte costs milliseconds.

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

Span = tuple[int, int]
"""Characters of a text: the first, and the one after the last."""


MAX_UNWRAP_CHARS = 10_000
"""Boxes within boxes are peeled up to this length; peeling is quadratic in the depth."""

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\s*(\\[dt]?frac(?:\{[^{}\n]*\}){2}|[^\s${}\\]+)")
_SPACE = re.compile(r"\s*")
_HASH_LINE = re.compile(r"####[ \t]*([^\n]*)")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-−+]\s?(?=[0-9.$\\]))?(?:\\?\$\s?)?"
    rf"(?:\\[dtc]?frac\{{-?(?:{_DIGITS})\}}\{{(?:{_DIGITS})\}}"
    rf"|(?<![A-Za-z_0-9.])(?:{_DIGITS})(?:\s?/\s?[0-9]+(?![0-9]|\.[0-9]))?(?:\s?\\?%)?)"
)
_ANSWER_IS = re.compile(r"(?<![A-Za-z])answer(?: is(?::|(?![A-Za-z]))|\*{0,2}:)", re.IGNORECASE)
_CHOICE_LETTER = re.compile(r"(?:(?i:option|choice|letter) )?[(\[]?([A-Z])(?![A-Za-z0-9'’]|-[A-Za-z])")
_BRACKETED_LETTER = re.compile(r"\(([A-Z])\)")
_YES_NO = re.compile(r"(yes|no|true|false)(?![A-Za-z-]| one(?![A-Za-z]))", re.IGNORECASE)


class Found(NamedTuple):
    """An answer, and the characters of the text that it stands in with its wrapper."""

    answer: str
    span: Span


Rule = Callable[[str], Found | None]


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

    Empty boxes do not count. A box that opens after the last complete one and never closes means that the completion
    was cut inside its answer: there is no answer then.

    >>> boxed(r"so \boxed{3}, no: $\boxed{\frac{1}{2}}$.")
    Found(answer='\\frac{1}{2}', span=(19, 38))
    """
    # one entry an open brace: where its box begins and where the content of that does, None for other braces
    opened: list[Span | None] = []
    last, where, position = (0, 0), (0, 0), 0
    while (token := _BOX_TOKEN.search(text, position)) is not None:
        position = token.end()
        symbol = token.group()
        if symbol == "{":
            opened.append(None)
        elif symbol == "}":
            box = opened.pop() if opened else None
            if box is not None and _end_of_space(text, box[1]) < token.start():
                last, where = (box[1], token.start()), (box[0], token.end())
        elif symbol in (r"\boxed", r"\fbox"):
            brace = _end_of_space(text, position)
            if brace < len(text) and text[brace] == "{":
                opened.append((token.start(), brace + 1))
                position = brace + 1
            elif (bare := _UNBRACED.match(text, position)) is not None:
                last = bare.span(1)
                where = token.start(), bare.start(1) + len(_unpunctuated(bare.group(1)))
    if last == (0, 0) or any(box is not None and box[1] > last[1] for box in opened):
        return None
    return Found(_peel(text[slice(*last)].strip()), where)


def _end_of_space(text: str, begin: int) -> int:
    match = _SPACE.match(text, begin)
    assert match is not None  # the pattern matches the empty text
    return match.end()


def _peel(answer: str) -> str:
    """Removes boxes around the whole answer, and the punctuation that an unbraced box drags along."""
    while len(answer) <= MAX_UNWRAP_CHARS and (
        match := re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", answer, re.DOTALL)
    ):
        answer = match.group(1).strip()
    return _unpunctuated(answer)


def _unpunctuated(answer: str) -> str:
    return answer.rstrip(".,;") or answer


def after_hashes(text: str) -> Found | None:
    """The rest of the last non-empty line that follows `####`, as GSM8K writes it."""
    found = None
    for match in _HASH_LINE.finditer(text):
        if line := match.group(1).strip():
            found = Found(line, (match.start(), match.start(1) + len(match.group(1).rstrip())))
    return found


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


def last_number(text: str) -> Found | None:
    r"""The last number with its sign, thousands commas, decimals, percent sign or denominator.

    A minus counts as a sign only where no operand stands before it, and the period that ends a sentence is not read.

    >>> last_number("16 - 3 = 13, so she makes $1,026.50.")
    Found(answer='$1,026.50', span=(26, 35))
    """
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return None if found is None else Found(found.group().strip(), found.span())


def choice_letter(text: str) -> Found | None:
    """The letter that stands after the last "answer is" or "answer:"; where none does, the last "(X)" of that line.

    >>> choice_letter("A is wrong. The answer is (B), not A.").answer, choice_letter("Answer: **vitamin C (D)**").answer
    ('B', 'D')
    """
    line, span = _after_answer_is(text)
    if (letter := _CHOICE_LETTER.match(line)) is not None:
        return Found(letter.group(1), span)
    bracketed = _BRACKETED_LETTER.findall(line)
    return Found(bracketed[-1], span) if bracketed else None


def yes_no(text: str) -> Found | None:
    """The word yes, no, true or false that stands after the last "answer is" or "answer:".

    >>> yes_no("No, wait. So the answer is **yes**.")
    Found(answer='yes', span=(17, 35))
    """
    line, span = _after_answer_is(text)
    word = _YES_NO.match(line)
    return Found(word.group(1), span) if word else None


def _after_answer_is(text: str) -> tuple[str, Span]:
    """What follows the last "answer is" or "answer:", up to the end of the line, its markup removed ("" for none), and
    the characters of phrase and line."""
    span = None
    for match in _ANSWER_IS.finditer(text):
        span = match.span()
    if span is None:
        return "", (0, 0)
    rest = text[span[1] :]
    line = rest.lstrip().partition("\n")[0].rstrip()
    end = span[1] + len(rest) - len(rest.lstrip()) + len(line)
    return line.replace("*", "").replace("$", "").lstrip(), (span[0], end)


def after_text(marker: str) -> Rule:
    """The rest of the line after the last `marker`; where that is empty, the next line that is not.

    Case counts. A marker that begins with a letter or digit must not stand inside a word: `A:` is not found in `USA:`.
    """
    pattern = re.compile((r"(?<!\w)" if marker[:1].isalnum() else "") + re.escape(marker))

    def find(text: str) -> Found | None:
        last = None
        for match in pattern.finditer(text):
            last = match
        if last is None:
            return None
        begin = _end_of_space(text, last.end())
        line = text[begin:].partition("\n")[0]
        bare = line.lstrip(" \t\r*`")
        answer = bare.rstrip(" \t\r*`").rstrip(".")
        return Found(answer, (last.start(), begin + len(line) - len(bare) + len(answer))) if answer else None

    return find


def json_value(key: str) -> Rule:
    """The value of the last `"key":` in JSON that need not be well formed: see w2sr.verify.loose_json."""
    from w2sr.verify.loose_json import last_value

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
    for rule in rules:
        found = rule.find(text)
        if found is not None and found.answer.strip():
            return Extraction(found.answer.strip(), rule.name, (before + found.span[0], before + found.span[1]))
    return Extraction(None, "", None)
