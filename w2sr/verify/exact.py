"""Exact grading: equality of texts after case, whitespace and punctuation at the edges of words are removed."""

from __future__ import annotations

import unicodedata

_TRAILING = ".,;:!?\"'`()[]{}*_$“”‘’«»"
_LEADING = _TRAILING.replace(".", "")  # ".5" keeps its point


def normalize(text: str) -> str:
    """The text in lower case, with single spaces, its words stripped of surrounding punctuation.

    Signs, decimal points and symbols inside a word stay: "-5", "1.5", "C++" and "5" all differ.

    >>> normalize("  (A).  Yes, “don't”!")
    "a yes don't"
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    stripped = (word.rstrip(_TRAILING).lstrip(_LEADING) for word in words)
    return " ".join(word for word in stripped if word)


def grade(answer: str, reference_answer: str) -> tuple[bool, str]:
    """Whether the two texts are equal, and one sentence why."""
    equal = normalize(answer) == normalize(reference_answer)
    return equal, "equal text" if equal else "different text"


def check_reference(reference_answer: str) -> None:
    """Raises ValueError where nothing is left of the reference to compare with."""
    if not normalize(reference_answer):
        raise ValueError(f"the reference answer {reference_answer!r} is empty or only punctuation")
