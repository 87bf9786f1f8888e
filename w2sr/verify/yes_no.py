"""Yes or no: the answer is the word, or a sentence that begins with it."""

from __future__ import annotations

import re

from w2sr.verify.exact import normalize
from w2sr.verify.markup import plain, unwrap

_WORDS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_LEADING = re.compile(r"(yes|true|no|false)(?=\s*(?:[.,;:!—–]|-\s|$))", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)(?![A-Za-z])|[{}$*`_\"'“”()\[\]]")


def read_yes_no(text: str) -> str:
    r"""'yes', 'no', or '' where the text is neither; true and false count as yes and no.

    The word must be the whole text, or begin it and be set off: "no one" is not "no".

    >>> [read_yes_no(text) for text in ("**Yes.**", "No, frost is rare.", r"\text{False}", "No one", "yes or no")]
    ['yes', 'no', 'no', '', '']
    """
    text = _TEXT.sub(" ", unwrap(plain(text))).strip()
    if (whole := _WORDS.get(normalize(text))) is not None:
        return whole
    leading = _LEADING.match(text)
    return _WORDS[leading.group(1).lower()] if leading else ""


def grade(answer: str, reference_answer: str) -> tuple[bool, str]:
    """Whether both say yes or both say no, and one sentence why."""
    given, wanted = read_yes_no(answer), read_yes_no(reference_answer)
    if not given:
        return False, "neither yes nor no"
    return given == wanted, f"{given}" if given == wanted else f"{given} is not {wanted}"


def check_reference(reference_answer: str) -> None:
    """Raises ValueError where the reference is not one of yes, no, true, false."""
    if normalize(reference_answer) not in _WORDS:
        raise ValueError(f"the reference answer {reference_answer[:80]!r} is none of yes, no, true, false")
