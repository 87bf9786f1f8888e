r"""Multiple choice: an answer as a letter, as a letter with its text, or as the text of the option.

A reference is the letter of the gold, `B`, or the letter with the option's text, `B) Bath`, as `read_choice_problems`
writes it. Only the second lets an answer that gives the text alone be mapped to its letter. Where an answer bears a
letter, the letter decides: what follows it may be a paraphrase of the option. A single letter is always read as a
letter, also where it is the text of some option.
"""

from __future__ import annotations

import re

from w2sr.verify.exact import normalize
from w2sr.verify.markup import plain, unwrap

_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|bf|rm)(?![A-Za-z])|\\(?=[$%#&])|[{}$*`_]|\\[,;! ]"
)
_LEAD = re.compile(
    r"(?:the )?(?:(?:correct|right|best|final) )?(?:option|choice|answer|letter)(?: is)?(?![A-Za-z])[ :]*(?=\S)", re.I
)
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,;、。]?")
_LABELLED = re.compile(r"(?:[(\[]?([A-Za-z])[)\]][.:]?\s*|([A-Za-z])(?:\.\s+|[:、]\s*|\s+[-–—]\s+))(\S.*)", re.DOTALL)


def read_choice(text: str) -> tuple[str, str]:
    r"""The letter in upper case ("" without one) and the text beside it ("" without one).

    >>> read_choice(r"\text{(b)}"), read_choice("B. Bath"), read_choice("Bath"), read_choice("option C")
    (('B', ''), ('B', 'Bath'), ('', 'Bath'), ('C', ''))
    """
    text = _plain_text(text)
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    if (letter := _LETTER.fullmatch(text)) is not None:
        return letter.group(1).upper(), ""
    if (labelled := _LABELLED.fullmatch(text)) is not None:
        return (labelled.group(1) or labelled.group(2)).upper(), labelled.group(3)
    return "", text


def _plain_text(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", unwrap(plain(text))).split())


def grade(answer: str, reference_answer: str) -> tuple[bool, str]:
    """Whether the answer chooses the gold option, and one sentence why.

    >>> grade("(B)", "B) Bath"), grade("bath", "B) Bath"), grade("C", "B) Bath")
    ((True, 'letter B'), (True, 'the text of option B'), (False, 'letter C is not B'))
    """
    wanted, gold = read_choice(reference_answer)
    letter, text = read_choice(answer)
    if gold and text and _same(_plain_text(answer), gold):  # "E. coli" is no letter E
        return True, f"the text of option {wanted}"
    if letter:
        equal = letter == wanted
        beside = f"letter {letter} beside other text" if equal and gold and text and not _same(text, gold) else ""
        return equal, beside or f"letter {letter}" + ("" if equal else f" is not {wanted}")
    if not gold:
        return False, f"the answer names no letter, and the reference {wanted} names no text to compare with"
    return _same(text, gold), f"the text {'' if _same(text, gold) else 'is not that '}of option {wanted}"


def _same(text: str, gold: str) -> bool:
    return normalize(text) == normalize(gold)


def check_reference(reference_answer: str) -> None:
    """Raises ValueError where the reference names no letter."""
    letter, _ = read_choice(reference_answer)
    if not letter:
        raise ValueError(f"the reference answer {reference_answer[:80]!r} is no option: write B, or B) its text")
