"""Answers with a structure: who is what, or what comes before what. Compared as structures, not as text.

Assignment: "Alice is a knight, Bob is a knave", "Bob: knave; Alice: knight", "Alice and Bob are knights". The order of
the clauses does not matter; every name must be there, and no other. Ordering: "C < A < B", which is "B > A > C".
"""

from __future__ import annotations

import re

from w2sr.verify.markup import plain, unwrap

Assignment = frozenset[tuple[str, str]]
"""Pairs of name and value, in lower case."""
Ordering = tuple[str, ...]
"""Names from the smallest to the largest, in lower case."""

MAX_ANSWER_CHARS = 10_000
"""A longer answer has no structure that is read."""

_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|left|right)(?![A-Za-z])|[{}$*`_\"“”\[\]]"
)
_LEAD = re.compile(r"(?:(?:so|thus|hence|therefore|then|the answer is|answer)\b[,:]?\s*)+", re.IGNORECASE)
_CLAUSES = re.compile(r"[,;\n]|\.(?:\s|$)|\band\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"(?P<name>\w[\w' -]*?)(?:\s*[:=]\s*(?:(?:is\s+)?an?\s+)?|\s+(?P<verb>is|are)\s+(?:an?\s+|the\s+)?|\s+an?\s+)"
    r"(?P<value>\w[\w' -]*)",
    re.IGNORECASE,
)
_ITEM = re.compile(r"\w[\w' -]*")


def read_structure(text: str) -> Assignment | Ordering | None:
    """The assignment or ordering that the text states, or None where it states neither, or contradicts itself.

    >>> sorted(read_structure("Bob is a knave, and Alice is a knight"))
    [('alice', 'knight'), ('bob', 'knave')]
    >>> read_structure("B > A > C")
    ('c', 'a', 'b')
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = unwrap(plain(text)).replace(r"\lt", "<").replace(r"\gt", ">")
    text = " ".join(_MARKUP.sub(" ", text.replace("\n", " ; ")).split()).strip(" ;.,")
    text = text[lead.end() :] if (lead := _LEAD.match(text)) else text
    return _read_ordering(text) if "<" in text or ">" in text else _read_assignment(text)


def _read_ordering(text: str) -> Ordering | None:
    sign = "<" if "<" in text else ">"
    items = tuple(item.strip().casefold() for item in text.split(sign))
    if ("<" in text and ">" in text) or len(set(items)) != len(items):
        return None
    if not all(_ITEM.fullmatch(item) for item in items):
        return None
    return items if sign == "<" else items[::-1]


def _read_assignment(text: str) -> Assignment | None:
    found: dict[str, str] = {}
    pending: list[str] = []  # names that wait for their verb: "Alice and Bob are knights"
    for clause in (part.strip(" -•") for part in _CLAUSES.split(text)):
        if not clause:
            continue
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            pending.append(clause)
            continue
        value, plural = match["value"].casefold(), (match["verb"] or "").lower() == "are"
        if pending and not plural:
            return None
        for name in (*pending, match["name"]):
            known = found.setdefault(
                name.casefold().removeprefix("both "), value.removesuffix("s") if plural else value
            )
            if known != (value.removesuffix("s") if plural else value):
                return None
        pending = []
    return frozenset(found.items()) if found and not pending else None


def grade(answer: str, reference_answer: str) -> tuple[bool, str]:
    """Whether the two structures are equal, and one sentence why.

    >>> grade("Bob is a knave, Alice is a knight", "Alice is a knight, Bob is a knave")
    (True, 'equal assignments')
    """
    given, wanted = read_structure(answer), read_structure(reference_answer)
    if given is None or isinstance(given, tuple) != isinstance(wanted, tuple):
        return False, f"the answer is no {'ordering' if isinstance(wanted, tuple) else 'assignment'}"
    if isinstance(given, tuple):
        return given == wanted, "equal orderings" if given == wanted else "another ordering"
    assert isinstance(wanted, frozenset)
    if given == wanted:
        return True, "equal assignments"
    if {name for name, _ in given} != {name for name, _ in wanted}:
        return False, "other names than the reference"
    return False, f"{len(wanted - given)} of {len(wanted)} differ"


def check_reference(reference_answer: str) -> None:
    """Raises ValueError where the reference states no structure."""
    if read_structure(reference_answer) is None:
        raise ValueError(
            f"the reference answer {reference_answer[:80]!r} is neither an assignment (Alice is a knight, Bob is a "
            "knave) nor an ordering (C < A < B)"
        )
