r"""Typography that does not change the meaning of an answer: Unicode forms, and markup round the whole answer.

`plain` folds Unicode forms of ASCII characters; `unwrap` removes Markdown, LaTeX and HTML markup and quotation marks
that stand round the *whole* text, with the punctuation that ends a sentence. Inside the text only Markdown's `**bold**`
is removed; brackets, `*`, `_` and `$` that are part of it stay. Extraction applies both to every answer; the kinds of
comparison apply them to references and to answers that come from elsewhere. Both take linear time.
"""

from __future__ import annotations

import re
import unicodedata

MAX_UNWRAP_CHARS = 10_000
"""A longer text is not unwrapped: an answer is short, and each level of markup costs one pass."""

MAX_LEVELS = 16
"""So many levels of markup are removed."""

# Soft hyphen, zero-width characters, marks of direction, invisible operators, variation selectors.
_INVISIBLE = "\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0e\ufe0f\ufeff"
_SPELLED = {
    "\u3000": " ",  # ideographic space
    "\uff61": "。",  # half-width ideographic full stop
    "\uffe5": "¥",
    "\u2010": "-",  # hyphens and the minus sign; dashes have meanings of their own
    "\u2011": "-",
    "\u2212": "-",
    "\ufe63": "-",
    "\u2044": "/",
    "\u2215": "/",
}
_FOLDED = re.compile(
    rf"[{_INVISIBLE}{''.join(_SPELLED)}\uff01-\uff5e\U0001d400-\U0001d7ff]|(?![0-9])\d"  # \d: digits of every script
)

_NAMES = (
    "boxed|fbox|text|textbf|textit|textrm|textsf|texttt|textnormal|emph|underline|mbox|"
    "mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm"
)
_COMMAND = re.compile(rf"\\(?:{_NAMES})\s*\{{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_FENCE = re.compile(r"(?P<mark>```)[\w+-]*\n(?P<inner>.*)```", re.DOTALL)
_TAG = re.compile(r"(?P<mark><(answer|b|strong|i|em|u|code)>)(?P<inner>.*)</\2>", re.DOTALL | re.IGNORECASE)
# `__init__`, `_x` and the row `_Q_` of a board are no emphasis.
_UNDERSCORES = re.compile(r"(?P<mark>__?)(?P<inner>[0-9]|[0-9A-Z].*\S)(?P=mark)", re.DOTALL)
# Opens behind no word and closes before none: `x**2 + y**2` and the pattern `a/**/b` have none.
_STRONG = re.compile(r"(?<![\w*/])\*\*(?=[^\s*/])((?:(?!\*\*)[^\n])*?)(?<![\s/])\*\*(?![\w*/])")
_PAIRS = (
    ("**", "**"),
    ("*", "*"),
    ("```", "```"),
    ("``", "''"),
    ("`", "`"),
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("‘", "’"),
    ("„", "“"),
    ("«", "»"),
    ("「", "」"),
    ("『", "』"),
)
_ENDS = ".,;。、"


def plain(text: str) -> str:
    r"""The text with Unicode forms of ASCII characters as ASCII, and without invisible characters.

    Digits of every script, full-width and mathematical letters, full-width punctuation, hyphens and the minus sign,
    the fraction slash. What has a meaning of its own stays: superscripts, dashes, `½`, accents, other letters.

    >>> plain("（Ｂ）\u200b ６ ٣ −5 x²")
    '(B) 6 3 -5 x²'
    """
    return text if text.isascii() else text.translate(_FOLDING)


def plain_with_places(text: str) -> tuple[str, list[int] | None]:
    """`plain(text)`, and where in `text` each of its characters stands; None where each has kept its place."""
    folded = plain(text)
    if len(folded) == len(text):
        return folded, None
    return folded, [place for place, character in enumerate(text) if _FOLDING[ord(character)]]


class _Folding(dict[int, str]):
    """Code point → its character, folded to at most one; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


_FOLDING = _Folding()


def _fold(character: str) -> str:
    if _FOLDED.match(character) is None:
        return character
    if character in _SPELLED:
        return _SPELLED[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.category(character) in ("Cf", "Mn"):
        return ""
    return unicodedata.normalize("NFKC", character)


def unwrap(text: str) -> str:
    r"""The text without markup round all of it and without the punctuation that ends a sentence.

    Markup that does not close, or closes before the end, is part of the text. What would leave nothing stays.

    >>> unwrap("**5**."), unwrap(r"\(\boxed{\text{B}}\)"), unwrap('"Yes".'), unwrap("**5** or **6**"), unwrap("C*")
    ('5', 'B', 'Yes', '5 or 6', 'C*')
    """
    text = text.strip()
    if len(text) > MAX_UNWRAP_CHARS:
        return text
    for _ in range(MAX_LEVELS):
        inner = without_end(_peeled(text)).strip()
        if inner == text:
            break
        text = inner
    return _STRONG.sub(r"\1", text)


def without_end(text: str) -> str:
    """Without one mark at the end; an ellipsis stays."""
    return text[:-1].rstrip() if len(text) > 1 and text[-1] in _ENDS and text[-2] not in _ENDS else text


def _peeled(text: str) -> str:
    """Without one level of markup."""
    if (command := _COMMAND.match(text)) is not None:
        return text[command.end() : -1] if _closes_at_the_end(text, command.end()) else text
    for pattern in (_FENCE, _TAG, _UNDERSCORES):
        match = pattern.fullmatch(text)
        if match is not None and match["inner"].strip() and match["mark"] not in match["inner"]:
            return match["inner"]
    for begin, end in _PAIRS:
        inner = text[len(begin) : -len(end)]
        if text.startswith(begin) and text.endswith(end) and len(text) >= len(begin) + len(end) and inner.strip():
            is_emphasis = begin[0] == "*"
            if begin not in inner and end not in inner and not (is_emphasis and inner != inner.strip()):
                return inner
    return text


def _closes_at_the_end(text: str, position: int) -> bool:
    """Whether the brace that is open at `position` closes with the last character, and holds something."""
    depth = 1
    for token in _BRACE.finditer(text, position):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return token.end() == len(text) and bool(text[position:-1].strip())
    return False
