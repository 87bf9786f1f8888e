"""Cells of rows: which column a field comes from, and the text or the number that a cell holds.

A *spec* says where a field comes from: the name of a column, or `=text` for a literal that holds for every row.
A cell that is absent, null or NaN says nothing: the field keeps its default, or the row is bad where the field is
required.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import NamedTuple, TypeGuard

from w2sr.normal_text import fold

MEDIA = ("image", "images", "image_1", "video", "videos", "audio", "audios")
"""Columns of what a problem shows or plays. Problems are texts here, so a row in which one is filled is bad."""

HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: not a character, and what Python makes of a byte that is not UTF-8."""

_MISSING_TEXTS = ("nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT")
"""How programs write a missing value into a column of texts."""


class Row(NamedTuple):
    """One row and where it stands ('train.jsonl:17'); `cells` holds the columns that were asked for."""

    where: str
    cells: dict[str, object]


def problem_hash(problem: str) -> str:
    """Names a problem by its text: sha256 (hex) after `w2sr.normal_text.fold`, case folding and collapsing white space.

    Two problems that differ only in case, width or spacing count as one, which is the safe side for disjoint splits.
    An exponent is no digit: `x²` is `x^2`, not `x2`.

    >>> problem_hash("What is  2 + 2?") == problem_hash("what is 2 + 2? ")
    True
    """
    return hashlib.sha256(" ".join(fold(problem).casefold().split()).encode()).hexdigest()


def derived_id(source: str, problem: str) -> str:
    """The id of a problem whose file gives none: its source and the first 16 hex digits of `problem_hash`."""
    return f"{source or 'problem'}/{problem_hash(problem)[:16]}"


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean ...?' with the most similar name, or '' where none is similar.

    >>> nearest("respones", ["response", "gold"])
    " Did you mean 'response'?"
    """
    by_lower = {known.lower(): known for known in names}
    close = get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def check_fields(columns: Mapping[str, object], known: Sequence[str]) -> None:
    """Raises where `columns` maps something that is not a field."""
    for field in columns:
        if field not in known:
            raise ValueError(f"columns.{field} is not a field.{nearest(field, known)} Fields: {', '.join(known)}.")


def column_names(specs: Iterable[str]) -> list[str]:
    """The file's columns among `specs`: the literals left out."""
    return [spec for spec in specs if not spec.startswith("=")]


def cell(row: Row, spec: str) -> object:
    """The value for a spec: the literal, the row's cell, or None where the row says nothing."""
    return spec[1:] if spec.startswith("=") else row.cells.get(spec)


def printable(text: str) -> str:
    r"""A text from a file, without the control characters that could drive a terminal or break a line.

    >>> printable("a\x1b[31m")
    'a?[31m'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def is_missing(value: object) -> bool:
    """Whether a cell says nothing: null, NaN, or pandas' NA and NaT.

    >>> is_missing(float("nan")), is_missing(0)
    (True, False)
    """
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def is_filled(value: object) -> bool:
    """Whether a cell holds anything: not null, and no empty text, list or object, nor one of nothing else."""
    if isinstance(value, Mapping):
        return any(map(is_filled, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_filled, value))
    return not is_missing(value) and not (isinstance(value, (str, bytes)) and not value.strip())


def is_number(value: object) -> TypeGuard[int | float | Decimal]:
    """Whether a cell is a finite number; booleans are none."""
    if isinstance(value, Decimal):
        return value.is_finite()
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    )


def refuse_media(row: Row, used: Collection[str] = ()) -> None:
    """Raises ValueError where a column of MEDIA is filled that no field uses."""
    for name in MEDIA:
        if name not in used and is_filled(row.cells.get(name)):
            raise ValueError(
                f"column {name!r} is filled, and a problem is text alone here. Leave the row out, or remove the column "
                "if the text says everything"
            )


def as_text(value: object) -> str:
    """Text of a cell. A number becomes its shortest text: 18.0 is `18`, 1e16 is `10000000000000000`.

    Numbers from 1e-7 to 1e21 are written without an exponent, as ECMAScript's `Number.prototype.toString` does.

    Raises:
        ValueError: the cell is anything else, also an infinite number, or no UTF-8 file can hold it.
    """
    if is_number(value):
        return str(value) if isinstance(value, int) else _shortest(value)
    if not isinstance(value, str):
        raise ValueError(f"is {shown(value)}, not text")
    if not value.isascii() and HALF_PAIR.search(value):
        raise ValueError("contains half of a surrogate pair, which no UTF-8 file can hold")
    return value


def _shortest(value: float | Decimal) -> str:
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if number and not Decimal("1e-7") <= abs(number) < Decimal("1e21"):
        return str(value)
    text = format(number or Decimal(0), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def as_prose(value: object) -> str:
    """Text of a problem or a completion: `as_text`, but the text of a missing value, such as `nan`, is refused."""
    text = as_text(value)
    if text.strip() in _MISSING_TEXTS:
        raise ValueError(f"is the text {text.strip()!r}, as which a missing value is written")
    return text


def as_answer(value: object) -> str:
    """Text of a reference answer: `as_text`, a boolean as `true` or `false`, and the one text of a list of equal ones.

    >>> as_answer([["18"], 18.0]), as_answer(True)
    ('18', 'true')

    Raises:
        ValueError: as `as_text`, and for a list that is empty or holds different answers.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (list, tuple)):
        return as_text(value).strip()
    answers = set(map(as_answer, value))
    if len(answers) != 1:
        raise ValueError(f"is {shown(value)}, {len(answers)} different answers; one is required")
    return answers.pop()


def as_int(value: object) -> int:
    """Whole number of a cell, of at most 64 bits: 3, 3.0 or '3'. Raises ValueError for anything else."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    if is_number(value) and -(2**63) <= value < 2**63 and value == int(value):
        return int(value)
    raise ValueError(f"is {shown(value)}, not a whole number")


def as_float(value: object) -> float:
    """Number of a cell: 0.5, 3 or '0.5'. Raises ValueError for anything else."""
    if is_number(value) and -1e300 < value < 1e300:
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
        return float(value)
    raise ValueError(f"is {shown(value)}, not a number")


def parse_spans(text: str, num_chars: int) -> tuple[tuple[int, int], ...]:
    """The spans [start, end) of `Trace.no_loss_spans`, within a completion of so many characters.

    Raises:
        ValueError: the text is not a JSON list of such pairs.
    """
    try:
        spans = json.loads(text or "[]")
        assert isinstance(spans, list)
        assert all(type(start) is type(end) is int and 0 <= start <= end <= num_chars for start, end in spans)
    except (ValueError, TypeError, AssertionError, RecursionError) as error:
        raise ValueError(
            f"no_loss_spans={text[:80]!r} must be JSON such as [[0, 12]], spans of the completion's {num_chars:,} "
            "characters. Correct it, or leave it empty"
        ) from error
    return tuple((start, end) for start, end in spans)


def shown(value: object) -> str:
    """The value as messages show it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
