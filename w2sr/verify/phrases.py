r"""What stands after a phrase such as "the answer is": the rest of its line, an option letter, or yes and no.

Emphasis, quotation marks and brackets that open just before the phrase (`**Answer:** 26`, `(the answer is 5)`) do not
belong to the answer; they belong to its span.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from w2sr.verify.markup import plain, unwrap, without_end

Span = tuple[int, int]
"""Characters of a text: the first, and the one after the last."""

MAX_LABEL_CHARS = 200
"""Markup that opens earlier before a phrase is not the phrase's own."""

MAX_PHRASES = 8
"""So many of the last "answer is" are looked at."""


class Found(NamedTuple):
    """An answer, and the characters of the text that it stands in with its wrapper."""

    answer: str
    span: Span


Rule = Callable[[str], Found | None]

_SPACE = re.compile(r"\s*")
_BULLET = re.compile(r"[-+*•]\s+")
_STARS = re.compile(r"\*{1,3}(?=\s)")
# A full stop behind a digit, a closing mark or a word of four letters, which is no abbreviation, and a sentence; `。`.
_NEXT_SENTENCE = re.compile(r"(?:(?<=[0-9)\]}$*\"”%°])|(?<=[a-z]{4}))\.\s+(?=[A-Z][\w'’]*,?\s[a-z])|。(?=.)")
_LABEL = re.compile(r"[A-Za-z ,'’*_`\"“”()\[\]{}\\<>/-]*$")
_MARK = re.compile(
    r"(?P<opening>[(\[{](?![^\w*_\"“\\<]|\d)|\\[(\[]|\\[A-Za-z]+\{|(?<!\w)(?:\*{1,3}|__?|`+|[\"“]|<[A-Za-z]+>)(?!\s))"
    r"|\\[)\]]|[)\]}”]|</[A-Za-z]+>|\*{1,3}|__?|`+|\""
)
_BLOCK = re.compile(r"```[\w+-]*\n.*?```|\\\[[ \t]*\n.*?\\\]|\$\$[ \t]*\n.*?\$\$", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\(": r"\)", r"\[": r"\]", "“": "”"}
_OPENING = {closing: opening for opening, closing in _CLOSING.items()}

_COMMANDS = r"\\(?:boxed|fbox|text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox)(?![A-Za-z])"
_LINE_MARKUP = re.compile(
    rf"{_COMMANDS}|\\[()\[\],;! ]|[*_$`{{}}\"“”«»]|</?[A-Za-z]+>|(?<![A-Za-z])['‘]|['’](?![A-Za-z])"
)
_ANSWER_IS = re.compile(
    r"(?<![A-Za-z])(?:answer|(?:correct|right|best) (?:option|choice|letter))[*_\"”]{0,3}"
    r"(?:\s(?:is|would be|must be|should be)(?![A-Za-z'’])|\s?:|[ \t]*\n(?=\s*\S))",
    re.IGNORECASE,
)

_NAMED = r"(?:(?i:option|choice|letter|answer)\s+)?"
_LONE_LETTER = re.compile(rf"{_NAMED}[(\[]?([A-Za-z])[)\]]?[.:,;。、!?]*")
_LABELLED_LETTER = re.compile(rf"{_NAMED}[(\[]?([A-Za-z])[)\]]")
_CAPITAL = r"([A-Z])(?![A-Za-z0-9'’]|-[A-Za-z]|\s?[=≈<>+#*/^&%]|\s?-\s?[0-9])"  # no word, no variable
_LEADING_LETTER = re.compile(_NAMED + _CAPITAL)
_CUED_LETTER = re.compile(
    rf"(?:(?<![A-Za-z])(?i:is|be|option|choice|letter|choose|pick|select|with)\s+[(\[]?{_CAPITAL}"
    rf"|(?:(?<![A-Za-z])(?i:so|hence|thus|therefore),?|:)\s+[(\[]?{_CAPITAL}(?=[)\]]?[.!。]*$))"
)
_BRACKETED_LETTER = re.compile(r"(?<!not )(?<!n't )(?<!n’t )\(([A-Z])\)")
# "A" and "I" before other words are an article and a pronoun.
_NO_WORD = re.compile(r"(?!\s*[A-Za-z])")
_AFTER_LETTER = {
    "A": re.compile(
        r"\s(?:because|since|as|for|is|was|but|by|due|given|if|while|so|not|rather|which|that|with|from|in|on|at|the|"
        r"this|it|we|you)(?![A-Za-z])"
    ),
    "I": re.compile(r"\s(?:because|since|as|is|due|given)(?![A-Za-z])"),
}
_REFUSED = re.compile(r"[)\]]?\s(?:is|was)(?:n['’]t|\s(?:not|wrong|incorrect|false|out))(?![A-Za-z])")
_SECOND_LETTER = re.compile(r"[)\]]?\s?(?:and|or|&|/)\s?[(\[]?[A-Z](?![A-Za-z'’])")
_ANY_LETTER = re.compile(r"(?<![A-Za-z'’])[B-HJ-Z](?![A-Za-z'’])")

# "no" before another word than these is none: "no valid solution", "no one".
_AFTER_NO = (
    r"(?!\s(?!(?:it|its|he|she|they|we|you|I|this|that|these|those|there|the|a|an|because|since|as|for|not|but|and|in|if|"
    r"while|although|though|due)(?![A-Za-z]))[A-Za-z])"
)
_YES_WORDS = rf"(yes|no{_AFTER_NO}|true|false)(?![A-Za-z-]| (?:and|or) (?:yes|no|true|false)(?![A-Za-z]))"
_YES_NO = re.compile(
    r"(?:an? (?:[a-z]+ )?|simply |just |clearly |definitely |probably |(?:most )?likely |therefore,? |thus,? |that )?"
    + _YES_WORDS,
    re.IGNORECASE,
)
_YES_AT_END = re.compile(r"(?<![A-Za-z])(?:is|be|so|thus|hence|therefore|say)[,:]? (yes|no|true|false)[.!。]*$", re.I)
_ANY_YES_NO = re.compile(r"(?<![A-Za-z])(?:yes|no|true|false)(?![A-Za-z])", re.IGNORECASE)


def end_of_space(text: str, begin: int) -> int:
    """Where the white space at `begin` ends."""
    match = _SPACE.match(text, begin)
    assert match is not None  # the pattern matches the empty text
    return match.end()


class _Opened(NamedTuple):
    """Markup that opens before a phrase: where, and the mark that closes it."""

    place: int
    closing: str


def rest_of_line(text: str, phrase: Span) -> tuple[Span, Span] | None:
    """What follows a phrase on its line, or on the next that is not empty, and its span with phrase and markup.

    A fenced block and a display formula that begin there are taken whole.

    >>> answer, whole = rest_of_line("So **the answer is 5**, dear.", (5, 18))
    >>> "So **the answer is 5**, dear."[slice(*answer)], "So **the answer is 5**, dear."[slice(*whole)]
    ('5', '**the answer is 5**')
    """
    start, place, opened = _after_label(text, phrase)
    if "\n" in text[phrase[1] : place] and (bullet := _BULLET.match(text, place)) is not None:
        place = bullet.end()
    block, end_of_line = _BLOCK.match(text, place), text.find("\n", place)
    line = block.group() if block else text[place : end_of_line if end_of_line >= 0 else len(text)]
    if not line.strip("*` \t\r"):
        return None
    stop = end = place + len(without_end(line.rstrip()))
    for mark in reversed(opened):
        length = _length_before(mark.closing, text[place:stop])
        if length > 0:
            stop = place + length
            start, end = (mark.place, stop + len(mark.closing)) if mark.place < phrase[0] else (start, stop)
    return (place, stop), (start, end)


def _after_label(text: str, phrase: Span) -> tuple[int, int, list[_Opened]]:
    """Where phrase and markup begin, where the text behind begins, and the markup that is still open there.

    Skips white space, one colon, and marks that close what opened before the phrase: `**Answer**: 26`.
    """
    start, place = phrase
    opened = _opened(text, start)
    has_colon = text[place - 1] == ":"
    while True:
        here = end_of_space(text, place)
        closed = [index for index, mark in enumerate(opened) if text.startswith(mark.closing, here)]
        if closed:
            mark = opened[closed[-1]]
            start, place, opened = min(start, mark.place), here + len(mark.closing), opened[: closed[-1]]
        elif text.startswith(":", here) and not has_colon:
            place, has_colon = here + 1, True
        elif (stars := _STARS.match(text, place)) is not None:
            place = stars.end()
        else:
            return start, here, opened


def _opened(text: str, end: int) -> list[_Opened]:
    """The markup that is open at `end` and opened on the same line, with only words between.

    A quotation that opened earlier on the line (a value of JSON) is open there too, but no part of the phrase.
    """
    begin = text.rfind("\n", 0, end) + 1
    label = _LABEL.search(text, max(begin, end - MAX_LABEL_CHARS), end)
    assert label is not None  # the pattern matches the empty text
    opened = [_Opened(end, '"')] if text.count('"', begin, label.start()) % 2 else []
    for mark in _MARK.finditer(text, label.start(), end):
        token = mark.group()
        closed = [index for index, other in enumerate(opened) if other.closing == token]
        if closed:
            del opened[closed[-1] :]
        elif mark["opening"]:
            closing = f"</{token[1:]}" if token.startswith("<") else "}" if token.endswith("{") else token
            opened.append(_Opened(mark.start(), _CLOSING.get(closing, closing)))
    return opened


def _length_before(closing: str, line: str) -> int:
    """How much of a line stands before the mark that closes; -1 where none does."""
    if closing[0] in "*_":
        match = re.search(re.escape(closing) + r"(?![\w*])", line)
        return -1 if match is None else match.start()
    if closing not in _OPENING:
        return line.find(closing)
    depth = 1
    for token in re.finditer(f"{re.escape(_OPENING[closing])}|{re.escape(closing)}", line):
        depth += -1 if token.group() == closing else 1
        if depth == 0:
            return token.start()
    return -1


def after_text(marker: str) -> Rule:
    """The rest of the line after the last `marker`; where that is empty, the next line that is not.

    A marker that begins or ends with a letter or digit does not stand inside a word: `A:` is not found in `USA:`. Case
    counts only for a marker without a word of two letters: `The answer is` is also found within a sentence.
    """
    marker = plain(marker)
    words = re.search(r"[^\W\d_]{2}", marker)
    pattern = re.compile(
        (r"(?<!\w)" if marker[:1].isalnum() else "") + re.escape(marker) + (r"(?!\w)" if marker[-1:].isalnum() else ""),
        re.IGNORECASE if words else 0,
    )

    def find(text: str) -> Found | None:
        last = None
        for match in pattern.finditer(text):
            last = match
        return None if last is None else answer_behind(text, last.span())

    return find


def answer_behind(text: str, phrase: Span) -> Found | None:
    """The rest of the line up to the next sentence ("is 5. I hope it is correct."), with the phrase in its span."""
    rest = rest_of_line(text, phrase)
    if rest is None:
        return None
    (begin, stop), (start, end) = rest
    line = text[begin:stop]
    if "\n" not in line and (sentence := _NEXT_SENTENCE.search(line)) is not None:
        stop = end = begin + sentence.start()
    return Found(text[begin:stop].strip(), (start, end))


def choice_letter(text: str) -> Found | None:
    """The letter that a sentence with "the answer is" or "answer:" chooses; the last such sentence decides.

    The letter stands first ("(B)", "B) Bath", "B because"), in brackets ("vitamin C (D)") or behind a word of choice
    ("I think it is B"). An article and a pronoun are no letters, nor is one of two ("A or B").

    >>> choice_letter("A is wrong. The answer is (B), not A.").answer, choice_letter("Answer: **vitamin C (D)**").answer
    ('B', 'D')
    """
    return _after_answer_is(text, _letter, _ANY_LETTER)


def yes_no(text: str) -> Found | None:
    """The word yes, no, true or false that follows "the answer is" or "answer:", or ends that sentence.

    >>> yes_no("No, wait. So the answer is **yes**.")
    Found(answer='yes', span=(17, 34))
    """
    return _after_answer_is(text, _yes_or_no, _ANY_YES_NO)


def _after_answer_is(text: str, read: Callable[[str], str], speaks: re.Pattern[str]) -> Found | None:
    """What `read` finds behind the last "answer is" that says anything of the kind; None where nothing follows it."""
    phrases = [match.span() for match in _ANSWER_IS.finditer(text)][-MAX_PHRASES:]
    limit = len(text)
    for phrase in reversed(phrases):
        rest = rest_of_line(text[:limit], phrase)
        if rest is None:
            return None  # the text was cut
        line = " ".join(_LINE_MARKUP.sub("", unwrap(text[slice(*rest[0])])).split())
        if answer := read(line):
            return Found(answer, rest[1])
        if speaks.search(line):
            return None
        limit = phrase[0]
    return None


def _letter(line: str) -> str:
    """The chosen letter in upper case, or ""."""
    if (lone := _LONE_LETTER.fullmatch(line)) is not None:
        return lone.group(1).upper()
    for pattern in (_LABELLED_LETTER, _LEADING_LETTER):
        first = pattern.match(line)
        if first is not None and _chooses(line, first):
            return first.group(1).upper()
        if first is not None and _SECOND_LETTER.match(line, first.end(1)):
            return ""
    if bracketed := _BRACKETED_LETTER.findall(line):
        return str(bracketed[-1])
    cued = [match[match.lastindex or 0] for match in _CUED_LETTER.finditer(line) if _chooses(line, match)]
    return cued[-1] if cued else ""


def _chooses(line: str, match: re.Match[str]) -> bool:
    """Whether a letter is one: no word, not one of two, and not said to be wrong."""
    letter, end = match[match.lastindex or 0], match.end(match.lastindex or 0)
    follows = _AFTER_LETTER.get(letter)
    is_word = match.end() == end and follows is not None and not (follows.match(line, end) or _NO_WORD.match(line, end))
    return not is_word and not _REFUSED.match(line, end) and not _SECOND_LETTER.match(line, end)


def _yes_or_no(line: str) -> str:
    word = _YES_NO.match(line) or _YES_AT_END.search(line)
    return word.group(1) if word else ""
