r"""Exact grading: equality of texts up to typography.

What does not count: case; Unicode forms, markup round the whole answer and the end of a sentence (w2sr.verify.markup);
the shape of quotation marks; spaces next to commas and brackets, and the commas of a list of single words (`a, b` and
`a b`) and of a date. JSON lists and objects are equal if their values are. Everything else counts: brackets, signs,
`_`, `*`, `$`, `!` and exponents.
"""

from __future__ import annotations

import json
import re
import unicodedata

from w2sr.verify.markup import MAX_UNWRAP_CHARS, plain, unwrap

_QUOTES = str.maketrans(dict.fromkeys("’‘‛´", "'") | dict.fromkeys("“”„‟", '"'))
_ESCAPED = re.compile(r"\\([%_#&$])")
_OPTION = re.compile(r"\(([a-z])\)")
_COMMA = re.compile(r" ?, ?")
_BRACKET = re.compile(r" ?([()\[\]{}<>]) ?")
_WORDS = re.compile(r"[\w.'+-]+(?:, [\w.'+-]+)*|[^\W\d]+ [0-9]{1,2}, [0-9]{4}")  # also: May 1, 2021
_SINGLE_QUOTED = re.compile(r"'([^'\"\\]*)'")


def normalize(text: str) -> str:
    r"""One spelling for texts that are equal.

    >>> normalize("**May 1,  2021**."), normalize("['a','b']"), normalize("_ _ Q _"), normalize("(B)")
    ('may 1 2021', '["a", "b"]', '_ _ q _', 'b')
    """
    text = unwrap(plain(text))
    if (value := _read_json(text)) is not None:
        return value.casefold()
    text = unicodedata.normalize("NFC", _ESCAPED.sub(r"\1", text).translate(_QUOTES)).casefold()
    text = _COMMA.sub(", ", _BRACKET.sub(r"\1", " ".join(text.split()))).strip()
    if (option := _OPTION.fullmatch(text)) is not None:
        return option.group(1)
    return text.replace(", ", " ") if _WORDS.fullmatch(text) else text


def _read_json(text: str) -> str | None:
    """A JSON list or object in one spelling, also if it has Python's quotation marks; None for other text."""
    if text[:1] not in ("[", "{") or len(text) > MAX_UNWRAP_CHARS:
        return None
    for spelled in (text, _SINGLE_QUOTED.sub(r'"\1"', text)):
        try:
            return json.dumps(json.loads(spelled, parse_float=_parse_float), sort_keys=True, ensure_ascii=False)
        except (ValueError, RecursionError):
            continue
    return None


def _parse_float(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value


def grade(answer: str, reference_answer: str) -> tuple[bool, str]:
    """Whether the two texts are equal, and one sentence why."""
    equal = normalize(answer) == normalize(reference_answer)
    return equal, "equal text" if equal else "different text"


def check_reference(reference_answer: str) -> None:
    """Raises ValueError where nothing is left of the reference to compare with."""
    if not normalize(reference_answer):
        raise ValueError(f"the reference answer {reference_answer!r} is empty")
