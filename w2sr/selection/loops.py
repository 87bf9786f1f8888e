"""Completions that end in a loop: found in time linear in their length."""

from __future__ import annotations

import re

TAIL_CHARS = 8_000
"""How much of the end is searched for an exact period. A period is found up to a third of this."""
TAIL_REPEATS = 3
TAIL_MIN_CHARS = 200
"""An exact period counts from this length on: '0000', '}}}}' and a sum of equal terms stay below it."""
SHARE_WORDS = 2_048
SHARE_NGRAM = 8
SHARE_MIN_WORDS = 256
"""A shorter text is not judged by its share: an honest sum of forty equal terms is all repetition, a loop is long."""
SHARE_LIMIT = 0.7
"""Above this share of repeated 8-grams the end is a loop with small changes. Honest casework reaches 0.56 to 0.68."""

_WORD = re.compile(r"\w+|[^\w\s]")


def is_looping(text: str) -> bool:
    """Whether a completion ends in a loop, exact (`tail_loop_chars`) or with small changes (`repeated_frac`).

    Linear in the length of the text.

    >>> is_looping("Let me check that. " * 40)
    True
    """
    return tail_loop_chars(text) >= TAIL_MIN_CHARS or repeated_frac(text) > SHARE_LIMIT


def tail_loop_chars(text: str) -> int:
    """Length, in characters, of the longest end of the text that is one block repeated 3 times or more.

    The last repetition may be cut off. Looks at the last TAIL_CHARS characters, white space at the end left out.
    The prefix function (Knuth, Morris, Pratt) of the reversed text gives the period of every end in linear time.

    >>> tail_loop_chars("so abcabcabcab")
    11
    """
    tail = text.rstrip()[: -TAIL_CHARS - 1 : -1]
    border = [0] * len(tail)
    longest = matched = 0
    for at in range(1, len(tail)):
        while matched and tail[at] != tail[matched]:
            matched = border[matched - 1]
        matched += tail[at] == tail[matched]
        border[at] = matched
        length = at + 1
        if length >= TAIL_REPEATS * (length - matched):
            longest = length
    return longest


def repeated_frac(text: str) -> float:
    """Share of the 8-grams of words and signs in the text's end that occurred there before, in [0, 1].

    Looks at the last SHARE_WORDS words and signs; a text of fewer than SHARE_MIN_WORDS counts as 0.
    """
    words = _WORD.findall(text)[-SHARE_WORDS:]
    if len(words) < SHARE_MIN_WORDS:
        return 0.0
    ngrams = list(zip(*(words[start:] for start in range(SHARE_NGRAM)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams)
