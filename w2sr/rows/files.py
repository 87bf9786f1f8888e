"""The formats of files: each is read a piece at a time, so that memory does not grow with the file.

No limit of a parser stands between a file and its rows: cells of CSV may have 2 GiB, whole numbers of JSON any number
of digits, and the footer of a Parquet file any size. A cell is bounded by what Python and Arrow can hold (2 GiB). What
is in memory at once is a row, or of Parquet a few pages of the columns that are read.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from w2sr.rows.cells import HALF_PAIR, Row
from w2sr.rows.json_document import document_items, parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Data = str | Path | Iterable[Mapping[str, object]]
"""A path, or rows as mappings."""

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""What the name of a file ends with, by its format; `.gz` may follow."""

MAX_CELL_BYTES = 2**31 - 1
BATCH_ROWS = 64
BATCH_BYTES = 2**24
"""Rows of Parquet that are decoded at a time: so many rows, or fewer if they have more bytes."""

_WIDE = "UTF-16, UTF-32 or no text. Texts are read as UTF-8; convert it first: iconv -f UTF-16 -t UTF-8"
_OTHERS = {
    b"\x1f\x8b": "compressed by gzip. Let its name end in .gz",
    b"PAR1": "a Parquet file. Let its name end in .parquet",
    b"\xff\xfe": _WIDE,
    b"\xfe\xff": _WIDE,
    b"\0": _WIDE,
}
"""How files begin whose names promise text, and what they are; a NUL anywhere in the first bytes is no text."""


class BadRow(NamedTuple):
    """A row that could not be parsed, and why."""

    where: str
    reason: str


class Columns(NamedTuple):
    """The names of a file's columns, from formats that say them before their rows."""

    names: list[str]


Item = Row | BadRow | Columns
Reader = Callable[[Path, BinaryIO, Collection[str]], Iterator[Item]]


def read_items(data: Data, kept: Collection[str]) -> Iterator[Item]:
    """Yields the rows of a file or of `data` itself. Their cells hold the columns `kept`, and may hold others.

    Raises:
        ValueError: there is no such file, its format is unknown, or it is damaged as a whole.
    """
    if not isinstance(data, (str, Path)):
        for number, cells in enumerate(data, 1):
            yield Row(f"row {number}", {name: _plain(cells[name]) if name in kept else None for name in cells})
        return
    path = Path(data)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file.")
    reader = _READERS.get(Path(path.name.removesuffix(".gz")).suffix)
    if reader is None:
        raise ValueError(
            f"{path}: what it holds is told by its suffix, which must be one of {', '.join(SUFFIXES)}, or one of them "
            "and .gz."
        )
    last = "its start"
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as stream:
            for item in reader(path, stream, kept):
                if not isinstance(item, Columns):
                    last = item.where
                yield item
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut off after {last}: {error}. Fetch it again.") from error


def _plain(value: object) -> object:
    """numpy's scalars and arrays, which rows of pandas hold, as Python's numbers and lists."""
    convert = getattr(value, "tolist", None)
    return value if convert is None else convert()


def _json_line_items(path: Path, stream: BinaryIO, kept: Collection[str]) -> Iterator[Item]:
    _check_utf8(path, stream)
    # Binary lines end at \n only; text lines would also be cut at U+2028 and its kin inside of strings.
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield _object_item(f"{path}:{number}", line, "line")


def _json_items(path: Path, stream: BinaryIO, kept: Collection[str]) -> Iterator[Item]:
    _check_utf8(path, stream)
    for number, text in enumerate(document_items(path, stream), 1):
        yield _object_item(f"{path}:item {number}", text, "item")


def _object_item(where: str, text: bytes, what: str) -> Item:
    try:
        cells = parse_json(text)
    except (ValueError, RecursionError) as error:
        return BadRow(where, f"not a JSON {what} ({error})")
    if not isinstance(cells, dict):
        return BadRow(where, f"holds {text.decode().strip():.60}, not a JSON object")
    return Row(where, cells)


def _check_utf8(path: Path, stream: BinaryIO) -> None:
    head = cast(io.BufferedReader, stream).peek(4)[:4]
    for beginning, what in _OTHERS.items():
        if head.startswith(beginning) or (beginning == b"\0" and b"\0" in head):
            raise ValueError(f"{path} begins with the bytes {head.hex(' ')}: it is {what}.")


def _delimited_items(path: Path, stream: BinaryIO, kept: Collection[str], delimiter: str) -> Iterator[Item]:
    """Rows of CSV or TSV. An empty cell is null, because CSV has no other way to say so."""
    _check_utf8(path, stream)
    csv.field_size_limit(MAX_CELL_BYTES)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        where = f"{path}:{line}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if names is None or "unexpected end" in str(error):
                raise ValueError(f"{path} is not a whole CSV file: {error}, in the row of line {line}.") from error
            yield BadRow(where, f"not a row of CSV ({error})")
            continue
        if not cells:
            continue  # a blank line
        if names is None:
            names = cells
            _check_single(path, names, kept)
            yield Columns(names)
        elif len(cells) != len(names):
            yield BadRow(where, f"has {len(cells)} cells, more or fewer cells than the {len(names)} columns")
        elif any(HALF_PAIR.search(value) for value in cells if not value.isascii()):
            yield BadRow(where, "is not UTF-8")
        else:
            yield Row(where, {name: value or None for name, value in zip(names, cells, strict=True)})


def _check_single(path: Path, names: list[str], kept: Collection[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1 and name in kept:
            raise ValueError(f"{path} has {count} columns {name!r}. Rename all but the one to be read.")


def _parquet_items(path: Path, stream: BinaryIO, kept: Collection[str]) -> Iterator[Item]:
    import pyarrow as pa  # a second to import, and most files are JSON
    import pyarrow.parquet as pq

    with tempfile.NamedTemporaryFile(suffix=".parquet") as unpacked:
        if path.suffix == ".gz":  # the footer is read first, and gzip is read from its start
            shutil.copyfileobj(stream, unpacked)
            unpacked.flush()
        try:
            with pq.ParquetFile(
                unpacked.name if path.suffix == ".gz" else path,
                pre_buffer=False,  # or whole column chunks of a row group are held
                buffer_size=2**20,
                thrift_string_size_limit=2**31 - 1,
                thrift_container_size_limit=2**31 - 1,
            ) as file:
                yield from _parquet_rows(path, file, kept)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is not a whole Parquet file: {error}. Fetch or make it again.") from error


def _parquet_rows(path: Path, file: pq.ParquetFile, kept: Collection[str]) -> Iterator[Item]:
    names = file.schema_arrow.names
    _check_single(path, names, kept)
    yield Columns(names)
    number = 0
    columns = [name for name in names if name in kept]
    for batch in file.iter_batches(_batch_rows(file), columns=columns, use_threads=False):
        for cells in _parquet_cells(batch):
            number += 1
            where = f"{path}:row {number}"
            yield BadRow(where, f"cannot be read ({cells})") if isinstance(cells, Exception) else Row(where, cells)


def _batch_rows(file: pq.ParquetFile) -> int:
    metadata = file.metadata
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * max(1, metadata.num_rows) // max(1, num_bytes)))


def _parquet_cells(batch: pa.RecordBatch) -> Iterator[dict[str, object] | Exception]:
    """The rows of a batch, or why one cannot be read: bytes that are not UTF-8, a time that Python does not know."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, ArithmeticError):
        pass  # one row is to blame, and the others are read below
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except (ValueError, ArithmeticError) as error:
            yield error


_READERS: dict[str, Reader] = {
    ".jsonl": _json_line_items,
    ".json": _json_items,
    ".csv": partial(_delimited_items, delimiter=","),
    ".tsv": partial(_delimited_items, delimiter="\t"),
    ".parquet": _parquet_items,
}
