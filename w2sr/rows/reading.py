"""The rows of a file one after the other: the columns that are asked for, of the rows that a filter keeps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from w2sr.rows.cells import Row, as_answer, is_missing, is_number, nearest, shown
from w2sr.rows.files import BadRow, Columns, Data, read_items

OnBadRow = Literal["error", "skip"]
Where = Mapping[str, object]
"""A filter of rows: column → the value that its cell must equal, or a list of such values."""

MAX_SHOWN_VALUES = 8
"""A filter that no row passes names so many values of its column."""

_log = logging.getLogger(__name__)


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


def data_name(data: Data) -> str:
    """How messages call the data: the path, or 'the given rows'."""
    return str(data) if isinstance(data, (str, Path)) else "the given rows"


def read_rows(
    data: Data,
    required: Iterable[str],
    bad: BadRows,
    *,
    optional: Iterable[str] = (),
    where: Where | None = None,
) -> Iterator[Row]:
    """Yields the named columns of a file's rows, or of rows already in memory. One row is in memory at a time.

    Args:
        data: a path that ends in one of SUFFIXES, or in one of them and `.gz`; or rows as mappings.
        required: columns that must occur in some row. Rows are held back until each of them occurred.
        bad: takes the rows that cannot be parsed. Blank lines are not rows.
        optional: columns that may be absent.
        where: keeps the rows whose cells equal these values. Numbers, booleans and texts are compared by their text;
            None stands for a cell that is absent or null.

    Raises:
        ValueError: no rows, a missing column, a bad row (policy `error`), a file that is damaged as a whole, a filter
            that no row passes.
    """
    row_filter = _Filter(where or {})
    required = dict.fromkeys([*required, *row_filter.wanted])
    kept = {**required, **dict.fromkeys(optional)}
    absent, seen = dict(required), dict[str, None]()
    held: list[Row] = []
    num_rows = num_kept = 0
    for item in read_items(data, kept):
        if isinstance(item, BadRow):
            bad.meet(*item)
            continue
        if absent:
            names = item.names if isinstance(item, Columns) else item.cells
            seen.update(dict.fromkeys(names))
            absent = {name: None for name in absent if name not in seen}
        if isinstance(item, Columns):
            _check_columns(data, absent, seen)
            continue
        num_rows += 1
        cells = {name: value for name, value in item.cells.items() if name in kept and not is_missing(value)}
        if row_filter.passes(cells):
            num_kept += 1
            held.append(Row(item.where, cells))
        if not absent:
            yield from held
            held.clear()
    if not num_rows and not bad.num_skipped:
        raise ValueError(f"{data_name(data)} is empty: it holds no rows. Check the path and how the file was made.")
    if num_rows:
        _check_columns(data, absent, seen)
    if num_rows and not num_kept:
        raise ValueError(f"{data_name(data)}: none of {num_rows:,} rows passes where: {row_filter.report()}.")


def _check_columns(data: Data, absent: Iterable[str], seen: Iterable[str]) -> None:
    for column in absent:
        raise ValueError(
            f"{data_name(data)} has no column {column!r}.{nearest(column, seen)} Its columns: {', '.join(seen)}. "
            "Name the right one in columns, or '=text' for a constant."
        )


class _Filter:
    """The texts that each column of `where` may have; None for an absent cell. Notes which others there were."""

    def __init__(self, where: Where) -> None:
        lists = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in where.items()}
        self.wanted = {name: [_filter_text(value) for value in values] for name, values in lists.items()}
        for name, values in self.wanted.items():
            if not values:
                raise ValueError(f"where.{name} is an empty list: no row would be left. Name the values to keep.")
        self._others: dict[str, dict[str | None, None]] = {name: {} for name in self.wanted}

    def passes(self, cells: Mapping[str, object]) -> bool:
        """Whether every column has one of its values."""
        for name, wanted in self.wanted.items():
            value = _filter_text(cells.get(name))
            if value not in wanted:
                if len(self._others[name]) <= MAX_SHOWN_VALUES:
                    self._others[name][value] = None
                return False
        return True

    def report(self) -> str:
        parts = []
        for name, wanted in self.wanted.items():
            others = [shown(value) for value in self._others[name]]
            there = ", ".join(others[:MAX_SHOWN_VALUES]) + (", ..." if len(others) > MAX_SHOWN_VALUES else "")
            said = f"{name} must be {' or '.join(map(shown, wanted))}"
            parts.append(f"{said}, and there are {there}" if there else said)
        return "; ".join(parts)


def _filter_text(value: object) -> str | None:
    """The text that a value is compared by. Lists and objects are compared as Python writes them."""
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value
    return as_answer(value) if isinstance(value, bool) or is_number(value) else repr(value)
