"""Rows of files that others wrote: JSON, JSON lines, CSV and Parquet, with columns named by the user and never guessed.

A *spec* says where a field comes from: the name of a column, or `=text` for a literal that holds for every row.
A cell that is absent or null says nothing: the field keeps its default, or the row is bad where the field is required.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

OnBadRow = Literal["error", "skip"]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")

_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One row and where it stands ('train.jsonl:17'); `cells` holds the columns that were asked for."""

    where: str
    cells: dict[str, object]


class BadRow(NamedTuple):
    """A row that could not be parsed, and why."""

    where: str
    reason: str


@dataclass
class BadRows:
    """What becomes of rows that cannot be used, and how many were skipped so far."""

    policy: OnBadRow
    num_skipped: int = 0
    first: str = ""

    def meet(self, where: str, reason: object) -> None:
        """Raises under policy `error`; counts under policy `skip`."""
        message = f"{where}: {reason}"
        if self.policy == "error":
            raise ValueError(f"{message}. Mend the row, or set on_bad_row=skip to leave such rows out.")
        self.first = self.first or message
        self.num_skipped += 1

    def report(self, name: str, num_kept: int) -> None:
        """Warns of what was skipped; raises where nothing is left."""
        if self.num_skipped:
            _log.warning("%s: skipped %d bad rows; the first: %s", name, self.num_skipped, self.first)
        if not num_kept:
            raise ValueError(f"{name} holds no usable row: {self.num_skipped:,} were skipped, the first: {self.first}.")


def problem_hash(problem: str) -> str:
    """Names a problem by its text: sha256 (hex) after NFKC, case folding and collapsing white space.

    Two problems that differ only in case, width or spacing count as one, which is the safe side for disjoint splits.

    >>> problem_hash("What is  2 + 2?") == problem_hash("what is 2 + 2? ")
    True
    """
    normal = " ".join(unicodedata.normalize("NFKC", problem).casefold().split())
    return hashlib.sha256(normal.encode()).hexdigest()


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


def as_text(value: object) -> str:
    """Text of a cell; whole and decimal numbers become their shortest text. Raises ValueError for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"is {_shown(value)}, not text")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("contains half of a surrogate pair, which no UTF-8 file can hold")
    return value


def as_int(value: object) -> int:
    """Whole number of a cell: 3, 3.0 or '3'. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    raise ValueError(f"is {_shown(value)}, not a whole number")


def as_float(value: object) -> float:
    """Number of a cell: 0.5, 3 or '0.5'. Raises ValueError for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
        return float(value)
    raise ValueError(f"is {_shown(value)}, not a number")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def data_name(data: str | Path | Sequence[Mapping[str, object]]) -> str:
    """How messages call the data: the path, or 'the given rows'."""
    return str(data) if isinstance(data, (str, Path)) else "the given rows"


def read_rows(
    data: str | Path | Sequence[Mapping[str, object]],
    required: Iterable[str],
    bad: BadRows,
    *,
    optional: Iterable[str] = (),
) -> list[Row]:
    """Reads the named columns of a .jsonl, .jsonl.gz, .json, .csv or .parquet file, or of rows already in memory.

    Every `required` column must occur in some row, else a ValueError lists the columns that do. An `optional` one may
    be absent. Rows that cannot be parsed go to `bad`. Blank lines are not rows.

    Raises:
        ValueError: no rows, a missing column, a bad row (policy `error`), a file that is damaged as a whole.
    """
    required = list(required)
    kept = {*required, *optional}
    seen: dict[str, None] = {}
    rows: list[Row] = []
    for item in _items(data):
        if isinstance(item, BadRow):
            bad.meet(*item)
            continue
        seen.update(dict.fromkeys(item.cells))
        rows.append(Row(item.where, {name: value for name, value in item.cells.items() if name in kept}))
    if not rows and not bad.num_skipped:
        raise ValueError(f"{data_name(data)} is empty: it holds no rows. Check the path and how the file was made.")
    for column in required if rows else []:
        if column not in seen:
            raise ValueError(
                f"{data_name(data)} has no column {column!r}.{nearest(column, seen)} Its columns: {', '.join(seen)}. "
                "Name the right one in columns, or '=text' for a constant."
            )
    return rows


def _items(data: str | Path | Sequence[Mapping[str, object]]) -> Iterator[Row | BadRow]:
    if not isinstance(data, (str, Path)):
        return (Row(f"row {number}", dict(cells)) for number, cells in enumerate(data, 1))
    path = Path(data)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file.")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _json_items(path)
    if path.suffix == ".json":
        return _json_list_items(path)
    if path.suffix == ".csv":
        return _csv_items(path)
    if path.suffix == ".parquet":
        return _parquet_items(path)
    raise ValueError(f"{path}: what it holds is told by its suffix, which must be one of {', '.join(SUFFIXES)}.")


def _json_items(path: Path) -> Iterator[Row | BadRow]:
    number = 0
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as stream:
            # Binary lines end at \n only; text lines would also be cut at U+2028 and its kin inside of strings.
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _json_row(f"{path}:{number}", line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut off after line {number}: {error}. Fetch it again.") from error


def _json_row(where: str, line: bytes) -> Row | BadRow:
    try:
        cells = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return BadRow(where, f"not a JSON line ({error})")
    return _object_row(where, cells)


def _object_row(where: str, cells: object) -> Row | BadRow:
    if not isinstance(cells, dict):
        return BadRow(where, f"holds {_shown(cells)}, not a JSON object")
    return Row(where, cells)


def _json_list_items(path: Path) -> Iterator[Row | BadRow]:
    try:
        items = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not one JSON document: {error}. Fetch it again; JSON lines end in .jsonl."
        ) from error
    if not isinstance(items, list):
        raise ValueError(f"{path} holds {_shown(items)}, not a list of objects, one a row.")
    return (_object_row(f"{path}:item {number}", item) for number, item in enumerate(items, 1))


def _csv_items(path: Path) -> Iterator[Row | BadRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if None in cells or None in cells.values():
                    yield BadRow(where, f"has more or fewer cells than the {len(reader.fieldnames or ())} columns")
                else:
                    yield Row(where, dict(cells))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.") from error


def _parquet_items(path: Path) -> Iterator[Row | BadRow]:
    import pyarrow as pa  # a second to import, and most files are JSON
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:row {number}", cells)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error}. Fetch or make it again.") from error
