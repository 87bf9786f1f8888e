r"""The value of a key in JSON as models write it: fenced, with raw newlines, LaTeX escapes such as `\(` or `\frac`,
unquoted numbers and sums, missing quotes, and text around it.

Only the last occurrence of the key is read, and only what stands there: nothing is searched for elsewhere.
"""

from __future__ import annotations

import re

# Of several readings of a quoted value, in this order: it ends at a quote that JSON allows to stand there (so that a
# stray quote inside does not end it); at any quote of the line; at an allowed quote of a later line.
_ENDS_VALUE = r"(?=\s*(?:[,}\]]|$))"
_ALLOWED_END = re.compile(rf'"((?:[^"\\\n]|\\.|"(?!\s*(?:[,}}\]]|$)))*)"{_ENDS_VALUE}')
_LINE_END = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_LATER_LINE = re.compile(rf'"((?:[^"\\]|\\.)*)"{_ENDS_VALUE}', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'((?:[^'\\\n]|\\.)*)'")
_BARE = re.compile(r"[^\n,}\"]*(?:,[0-9]{3}(?![0-9])[^\n,}\"]*)*")
_LIST = re.compile(r"\[[^\[\]\n]*\]")

# `\frac` in a string is the JSON escape `\f` and "rac": the LaTeX command is meant.
_LATEX_NAMES = (
    "begin|beta|binom|boxed|fbox|frac|forall|ne(?![a-z])|neq|not|nu(?![a-z])|rangle|rceil|rfloor|rho|right|tan|tau|"
    "text|tfrac|theta|times|to(?![a-z])|triangle"
)
_ESCAPE = re.compile(rf'\\(?:({_LATEX_NAMES})|u([0-9a-fA-F]{{4}})|(["\\/bfnrt]))')
_ESCAPED = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


Value = tuple[str, tuple[int, int]]
"""The text of a value, and the characters from its key to its end."""


def last_value(text: str, key: str) -> Value | None:
    """The value of the last `"key":` and where it stands; None where the key is missing, null, an object, or cut off.

    >>> last_value('``` json {"answer": "$1,200"}```', "answer")
    ('$1,200', (10, 28))
    """
    last = None
    for match in re.finditer(rf"([\"']){re.escape(key)}\1\s*:\s*", text):
        last = match
    if last is None or (begin := last.end()) == len(text):
        return None
    if text[begin] == '"':
        found = _quoted(text, begin)
    elif text[begin] == "'":
        single = _SINGLE_QUOTED.match(text, begin)
        found = None if single is None else (_unescape(single.group(1)), single.end())
    else:
        found = _unquoted(text, begin)
    return None if found is None else (found[0], (last.start(), found[1]))


def _quoted(text: str, begin: int) -> tuple[str, int] | None:
    """The value and where it ends; likewise below."""
    for pattern in (_ALLOWED_END, _LINE_END, _LATER_LINE):
        match = pattern.match(text, begin)
        if match is not None:
            value = _unescape(match.group(1)).strip()
            return (value, match.end()) if value else None
    line, newline, _ = text[begin + 1 :].partition("\n")
    bare = line.rstrip().rstrip(",")
    value = _unescape(bare.lstrip())
    return (value, begin + 1 + len(bare)) if newline and value else None


def _unquoted(text: str, begin: int) -> tuple[str, int] | None:
    if text[begin] == "{":
        return None
    if text[begin] == "[":
        bracketed = _LIST.match(text, begin)
        return None if bracketed is None else (bracketed.group(), bracketed.end())
    match = _BARE.match(text, begin)
    assert match is not None  # the pattern matches the empty text
    if match.end() == len(text):
        return None  # a number without an end may lack its last digits
    value = match.group().strip()
    return None if value in ("", "null", "None") else (value, begin + len(match.group().rstrip()))


def _unescape(raw: str) -> str:
    def decode(match: re.Match[str]) -> str:
        latex, code, letter = match.groups()
        if latex:
            return match.group()
        return chr(int(code, 16)) if code else _ESCAPED[letter]

    return _ESCAPE.sub(decode, raw)
