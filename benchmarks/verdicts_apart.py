"""Verdicts of ours and of math-verify that differ: every pair once, under why they do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

EXPLANATIONS = {
    "readable": "The answer as a whole is no mathematics: math-verify then searches inside it for a formula, ours does not.",
    "math-verify:": "Both by math-verify, here in one process after other answers, there in a process of its own.",
    "longer than": "math-verify took longer than the limit there, and not here.",
    "hexadecimal": "math-verify reads `0x1f` as 0 · x · 1 · f, which is 0, so that all hexadecimal numbers are equal; here their values are compared.",
    "times": "math-verify reads `a:b:c` as quotients, so that all times before one o'clock are equal, and `p` as a factor; here the times are compared.",
    "equal numbers": "The same number, with a unit or a counted thing, alone or after the last equals sign, as digits with separators or with a currency sign: math-verify multiplies by the letters of the word, or does not read it.",
    "after rounding": "A decimal of at least six significant digits that the other side rounds to; math-verify compares six decimal places.",
    "units": "A percentage, or two known units: see the rules in `w2sr/verify/comparison.py`.",
    "different: ": "Different forms (a list, a tuple, a value, a relation), of which math-verify compares a part.",
    "is not": "Two plain numbers that differ (here compared exactly).",
    "equal text": "The same text up to typography, which math-verify does not read as mathematics.",
    "equal words": "The same words up to case, which math-verify does not read as mathematics.",
    "words": "Different words; math-verify multiplies letters, so that an anagram is equal.",
    "letter": "Option letters.",
    "sentence": "A sentence; math-verify finds a number at its end.",
    "algebra": "Decided by algebra, where math-verify took too long or does not read one side.",
}


def explain(reason: str) -> str:
    """Why the verdicts differ, from the reason of ours: the first key of EXPLANATIONS that stands in it."""
    return next((text for key, text in EXPLANATIONS.items() if key in reason), f"Not explained: {reason}")


def disagreements(differing: Sequence[Any]) -> str:
    """Every pair with differing verdicts, once, under its explanation."""
    counts = Counter((one.answer, one.reference, mine, explain(reason)) for one, mine, reason, _ in differing)
    groups: dict[tuple[str, bool], list[tuple[str, str, int]]] = defaultdict(list)
    for (answer, reference, mine, why), count in counts.items():
        groups[why, mine].append((answer, reference, count))
    parts = []
    for (why, mine), pairs in sorted(groups.items(), key=lambda item: -len(item[1])):
        head = f"**Ours {'correct' if mine else 'incorrect'}, math-verify {'incorrect' if mine else 'correct'}** ({len(pairs):,} pairs). {why}"
        listed = "; ".join(f"{_code(answer)} for {_code(reference)}" for answer, reference, _ in sorted(pairs))
        parts.append(f"{head}\n\n{listed}.\n")
    return "\n".join(parts)


def _code(text: str) -> str:
    short = " ".join(text.split())
    short = short if len(short) <= 120 else f"{short[:60]} … {short[-50:]}"
    return f"`{short.replace('`', chr(39))}`"
