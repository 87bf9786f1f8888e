"""A JSON document with a list of rows, cut into the texts of its items without reading it whole."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_NO_SPACE = re.compile(rb"[^ \t\r\n]")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_INSIDE = re.compile(_STRING + rb'|["\[\]{}]', re.DOTALL)
_OUTSIDE = re.compile(_STRING + rb'|["\[\]{},:]', re.DOTALL)


def document_items(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Yields the text of each item of the document's list, or of the list under the key `data` of its object.

    Raises:
        ValueError: the document is neither, is cut off, or something follows it.
    """
    document = _Document(stream)
    num_items = 0
    try:
        first = document.peek()
        if not first:
            return
        if first not in b"[{":
            raise ValueError(f"it begins with {first.decode(errors='replace')!r}")
        keys: list[str] = []
        for item in document.items() if first == b"[" else document.data_items(keys):
            num_items += 1
            yield item
        if document.peek():
            raise ValueError("something follows its end")
    except ValueError as error:
        raise ValueError(
            f"{path} is not one JSON document with a list of objects: {error} (after {num_items:,} items). Fetch it "
            "again; JSON lines end in .jsonl."
        ) from error
    if first == b"{" and "data" not in keys:
        raise ValueError(
            f"{path} holds one object with the keys {', '.join(keys)}, not a list of objects, one a row, nor one under "
            "the key data."
        )


class _Document:
    """The text of a document from `at` on; more of it is read when it is needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._text = stream.read(max(CHUNK_BYTES, len(_BOM))).removeprefix(_BOM)
        self._at = 0

    def items(self) -> Iterator[bytes]:
        """The items of the list that begins here."""
        self._take(b"[")
        if self.peek() == b"]":
            self._take(b"]")
            return
        while True:
            yield self.value()
            if self.peek() == b"]":
                self._take(b"]")
                return
            self._take(b",")

    def data_items(self, keys: list[str]) -> Iterator[bytes]:
        """The items of the list under `data` in the object that begins here; `keys` takes the names of its keys."""
        self._take(b"{")
        while self.peek() != b"}":
            key = json.loads(self.value())
            if not isinstance(key, str):
                raise ValueError(f"{key!r:.60} is no key")
            self._take(b":")
            if key == "data":
                if "data" in keys or self.peek() != b"[":
                    raise ValueError("its key data is there twice, or is no list")
                yield from self.items()
            else:
                self.value()
            keys.append(key)
            if self.peek() != b"}":
                self._take(b",")
        self._take(b"}")

    def peek(self) -> bytes:
        """The next byte that is no white space, or b"" at the end."""
        while (found := _NO_SPACE.search(self._text, self._at)) is None:
            self._at = len(self._text)
            if not self._more():
                return b""
        self._at = found.start()
        return found.group()

    def value(self) -> bytes:
        """Cuts out the text up to the comma, colon or bracket that ends the value that begins here."""
        depth, start = 0, 0
        while True:
            found = (_INSIDE if depth else _OUTSIDE).search(self._text, self._at + start)
            if found is None or found.group() == b'"':
                start = (found.start() if found else len(self._text)) - self._at
                if not self._more():
                    raise ValueError("it ends inside of a value")
                continue
            start = found.end() - self._at
            mark = self._text[found.start() : found.start() + 1]
            if mark in b"[{":
                depth += 1
            elif mark != b'"' and depth == 0:
                text = self._text[self._at : found.start()]
                self._at = found.start()
                return text
            elif mark in b"]}":
                depth -= 1

    def _take(self, mark: bytes) -> None:
        found = self.peek()
        if found != mark:
            raise ValueError(f"{mark.decode()!r} should stand where {found.decode(errors='replace')!r} is")
        self._at += 1

    def _more(self) -> bool:
        """Reads on, as much as is held already, so that a long value is copied a few times only."""
        chunk = self._stream.read(max(CHUNK_BYTES, len(self._text) - self._at))
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)


def parse_json(text: bytes) -> object:
    """Parses one JSON value. Numbers that Python's float or int cannot hold stay what they are: Decimal, or text.

    Raises:
        ValueError: the text is not JSON in UTF-8, or an object has a key twice.
        RecursionError: it nests too deeply.
    """
    return _DECODER.decode(text.decode("utf-8-sig"))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return cells


def _real(text: str) -> float | Decimal:
    """A float where that is the number that is written, else a Decimal: 0.1 is a float, 1e400 is none."""
    value = float(text)
    if len(text) <= 15 and "e" not in text.lower():
        return value
    exact = Decimal(text)
    return value if Decimal(repr(value)) == exact else exact


def _whole(text: str) -> int | str:
    """An int, or the text of one that has more digits than Python converts."""
    return int(text) if len(text) <= sys.int_info.default_max_str_digits else text


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_real, parse_int=_whole)
