r"""The form of an answer: a value, a list, a set, a tuple, an interval or a relation, and its name where it has one.

`read` takes canonical text (spelling.py) apart at its outer commas, brackets and relation signs. Values themselves stay
text. `x = 5` is the value 5 named x; `2 \le x < 3` and `x \in [2,3)` are the interval [2,3) named x; `7 \cdot 5 = 35`
is its last part; `x^2+y^2 = 25` is a relation and no value; `\pm 3` is the list 3, -3.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from w2sr.verify.units import split_unit

MAX_ITEMS = 100
"""A longer list is one opaque value."""

MAX_DEPTH = 6

VALUE, LIST, SET, RELATION, OPAQUE = "value", "list", "set", "relation", "opaque"
INTERVALS = ("()", "[]", "[)", "(]")

_OPEN, _CLOSE = ("(", "[", "{", r"\{", r"\langle", r"\begin"), (")", "]", "}", r"\}", r"\rangle", r"\end")
_TOKEN = re.compile(
    r"\\(?:le|ge|ne|in|approx|equiv|langle|rangle|begin|end|pm|mp|cup|cap)(?![A-Za-z])|\\.|[][(){},;=<>]"
)
_RELATIONS = ("=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx", r"\equiv")
_LETTER = r"(?:[A-Za-z]|\\[A-Za-z]+ ?)"
_VARIABLE = re.compile(rf"{_LETTER}(?:_\{{[^{{}}]*\}})?'*(?:\^\{{[']\}})?(?:\({_LETTER}(?:,{_LETTER})*\))?")
_LABEL = re.compile(
    r"\|?[A-Z]{1,4}'*\|?|[A-Za-z]{2}|(?:m ?)?\\angle ?[A-Z]{1,3}"
    r"|\\(?:overline|triangle|angle|vec|text|max|min)(?: ?\{[^{}]*\})?(?:\([^()]*\))?"
    r"|(?:\\?[A-Za-z]+_?\{[^{}]*\})|[A-Z]\([^()]*\)"
)
_SINGLE_LETTERS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{1,2}(?![A-Za-z])")


class Answer(NamedTuple):
    """An answer. `form` is one of the constants above or a pair of brackets; `text` is its canonical text.

    `text` is without a name, a percent sign and a unit, which have fields of their own (see units.py); `whole` is all
    of the text where there is a name.
    """

    form: str
    text: str
    name: str = ""
    items: tuple[Answer, ...] = ()
    percent: bool = False
    unit: str = ""
    from_relation: bool = False
    whole: str = ""


def read(text: str, depth: int = 0) -> Answer:
    r"""The form of canonical text.

    >>> read("[2,3)").form, read(r"2\le x<3").form, read("x=5,7").items[1].name, read("x+y=7").form
    ('[)', '[)', 'x', 'relation')
    """
    pieces = _elements(text)
    if depth > MAX_DEPTH or len(pieces) > MAX_ITEMS or "" in pieces:
        return Answer(OPAQUE, text)
    if len(pieces) > 1:
        return Answer(LIST, text, items=_named_alike(tuple(read(piece, depth + 1) for piece in pieces)))
    parts = split(text, _RELATIONS)
    if len(parts) > 1:
        return _read_relation(text, parts, [sign for _, sign in _signs(text, _RELATIONS)], depth)
    group = _read_group(text, depth)
    if group is not None:
        return group
    signs = _signs(text, (r"\pm", r"\mp"), all_depths=True)
    if len(signs) == 1 and signs[0][1] == r"\pm":
        return _read_both_signs(text, signs[0][0], depth)
    if any(mark in text for mark in (r"\cup", r"\cap", r"\begin", r"\mp", r"\pm")):
        return Answer(OPAQUE, text)
    value, unit = split_unit(text)
    percent = len(value) > 1 and value.endswith("%")
    return Answer(VALUE, value.rstrip("%") if percent else value, percent=percent, unit=unit)


def _named_alike(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """`x = 5, 7`: a name in front belongs to all."""
    if items[0].name and not any(item.name for item in items[1:]) and all(item.form == VALUE for item in items):
        return tuple(item._replace(name=items[0].name) for item in items)
    return items


def _read_relation(text: str, parts: list[str], signs: list[str], depth: int) -> Answer:
    if "" in parts[1:]:
        return Answer(OPAQUE, text)
    first, last = parts[0], parts[-1]
    if set(signs) == {r"\approx"} and not first:
        return read(last, depth + 1)
    if set(signs) == {"="} or (signs == [r"\in"] and is_variable(first)):
        if signs == ["="] and is_variable(last) and not _SINGLE_LETTERS.search(first):
            first, last = last, first
        if not first or is_name(first):
            value = read(last, depth + 1)
            return value._replace(name=value.name or first, from_relation=signs[0] == r"\in", whole=text)
        names = read(first, depth + 1)
        if names.form == "()" and all(is_variable(item.text) for item in names.items):
            return _bound(text, names, read(last, depth + 1))
        sides = (parts[-2], last) if len(parts) > 2 else (first, last)  # `f(1)+f(2) = 3+4 = 7` computes its last part
        bare = [re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", "", side) for side in sides]
        return Answer(RELATION, text) if any(map(_SINGLE_LETTERS.search, bare)) else read(last, depth + 1)
    return _read_inequality(text, parts, signs, depth) or Answer(RELATION, text)


def _bound(text: str, names: Answer, values: Answer) -> Answer:
    """`(x,y) = (3,4)` as x = 3, y = 4."""
    if len(values.items) != len(names.items):
        return Answer(RELATION, text)
    items = (value._replace(name=name.text) for name, value in zip(names.items, values.items, strict=True))
    return Answer(LIST, text, items=tuple(items))


def _read_inequality(text: str, parts: list[str], signs: list[str], depth: int) -> Answer | None:
    r"""`a < x \le b` as the interval (a,b] named x."""
    if any(sign in (">", r"\ge") for sign in signs):
        flipped = {">": "<", r"\ge": r"\le"}
        if not all(sign in flipped for sign in signs):
            return None
        parts, signs = parts[::-1], [flipped[sign] for sign in signs[::-1]]
    if any(sign not in ("<", r"\le") for sign in signs):
        return None
    if len(parts) == 2:
        if is_variable(parts[0]) == is_variable(parts[1]):
            return None
        parts = [r"-\infty", *parts] if is_variable(parts[0]) else [*parts, r"\infty"]
        signs = ["<", *signs] if parts[0] == r"-\infty" else [*signs, "<"]
    if len(parts) != 3 or not is_variable(parts[1]):
        return None
    brackets = ("[" if signs[0] == r"\le" else "(") + ("]" if signs[1] == r"\le" else ")")
    ends = (read(parts[0], depth + 1), read(parts[2], depth + 1))
    return Answer(brackets, text, parts[1].strip(), ends, from_relation=True)


def _read_group(text: str, depth: int) -> Answer | None:
    """A set, tuple or interval; what a pair of brackets holds where that is one value."""
    brackets = _outer_brackets(text)
    if brackets is None:
        return None
    opening, inner, closing = brackets
    pieces = _elements(inner)
    if len(pieces) > MAX_ITEMS or "" in pieces:
        return Answer(OPAQUE, text)
    if opening == r"\{" and closing == r"\}":
        if any(mark in inner for mark in (r"\mid", "|", ":", r"\le", r"\ge", "<", ">")):
            return Answer(OPAQUE, text)
        return Answer(SET, text, items=tuple(read(piece, depth + 1) for piece in pieces))
    form = opening.replace(r"\langle", "(") + closing.replace(r"\rangle", ")")
    if len(pieces) == 1:
        return read(inner, depth + 1) if form in ("()", "[]", "{}") else None
    if form not in INTERVALS:
        return Answer(OPAQUE, text)
    return Answer(form, text, items=tuple(read(piece, depth + 1) for piece in pieces))


def _read_both_signs(text: str, position: int, depth: int) -> Answer:
    before, after = text[:position], text[position + 3 :].lstrip()
    plus = before + ("+" if before and before[-1] not in "({=" else "") + after
    pieces = (read(plus, depth + 1), read(f"{before}-{after}", depth + 1))
    return Answer(LIST, text, items=pieces)


def _elements(text: str) -> list[str]:
    """The parts between semicolons, else between commas: `x=1,y=2; x=3,y=4` has two elements."""
    pieces = split(text, (";",))
    return pieces if len(pieces) > 1 else split(text, (",",))


def is_variable(text: str) -> bool:
    """Whether the text is a letter, perhaps with an index, primes or an argument: `x`, `x_{1}`, `f(x)`."""
    return _VARIABLE.fullmatch(text.strip()) is not None


def is_name(text: str) -> bool:
    r"""Whether the text names a value and computes nothing: `x`, `f(x)`, `AB`, `\angle ABC`, `Area`, `The sum`."""
    words = re.findall(r"[A-Za-z]+", text)
    is_words = re.fullmatch(r"[A-Za-z' .]+", text) is not None and any(len(word) > 2 for word in words)
    return is_variable(text) or _LABEL.fullmatch(text.strip()) is not None or is_words


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    """The stripped parts of the text between the separators that stand outside of all brackets."""
    parts, begin = [], 0
    for position, sign in _signs(text, separators):
        parts.append(text[begin:position].strip())
        begin = position + len(sign)
    return [*parts, text[begin:].strip()]


def _signs(text: str, signs: tuple[str, ...], all_depths: bool = False) -> list[tuple[int, str]]:
    """Where the signs stand outside of all brackets."""
    found, depth = [], 0
    for token in _TOKEN.finditer(text):
        symbol = token.group()
        depth += (symbol in _OPEN) - (symbol in _CLOSE)
        if symbol in signs and (depth == 0 or all_depths):
            found.append((token.start(), symbol))
    return found


def _outer_brackets(text: str) -> tuple[str, str, str] | None:
    """The bracket at the beginning, what it holds, and the one at the end, where these two belong together."""
    first = _TOKEN.match(text)
    if first is None or first.group() not in _OPEN or first.group() == r"\begin":
        return None
    depth = 0
    for token in _TOKEN.finditer(text):
        symbol = token.group()
        depth += (symbol in _OPEN) - (symbol in _CLOSE)
        if depth == 0:
            is_last = token.end() == len(text) and symbol != r"\end"
            return (first.group(), text[first.end() : token.start()], symbol) if is_last else None
    return None
