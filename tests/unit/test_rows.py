"""Rows of every format are read whole, one at a time, or refused for what they are."""

from __future__ import annotations

import csv
import decimal
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w2sr.rows import BadRows, OnBadRow, as_answer, as_text, json_document, read_rows

ROWS: list[dict[str, Any]] = [
    {"q": 'a "b" [c], {d}: \\frac{1}{2}\\', "a": "1", "log": None},
    {"q": "two\nlines, é, \u2028", "a": "2", "log": "x\ty"},
    {"q": "p", "a": "3", "log": "]}"},
]


def delimited(rows: list[dict[str, Any]], dialect: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "r.jsonl": json_lines,
    "r.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "data.json": lambda rows: json.dumps({"version": [1, {"data": 2}], "data": rows, "n": 3}).encode(),
    "r.csv": lambda rows: delimited(rows, "excel"),
    "r.tsv": lambda rows: delimited(rows, "excel-tab"),
    "r.parquet": parquet,
}


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def cells(path: Path, *required: str, policy: OnBadRow = "error") -> list[dict[str, object]]:
    return [row.cells for row in read_rows(path, required, BadRows(policy))]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", list(WRITERS))
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, gz: str) -> None:
    path = write(tmp_path, name + gz, WRITERS[name](ROWS))
    assert cells(path, "q", "a") == [{"q": row["q"], "a": row["a"]} for row in ROWS]
    with pytest.raises(ValueError, match=r"has no column 'aa'\. Did you mean 'a'\? Its columns: q, a, log\."):
        cells(path, "q", "aa")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_a_document_is_cut_alike_wherever_a_piece_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_document, "CHUNK_BYTES", chunk)
    for name in ("r.json", "data.json"):
        path = write(tmp_path, name, b"\xef\xbb\xbf \r\n" + WRITERS[name](ROWS) + b"\n ")
        assert cells(path, "q", "a") == [{"q": row["q"], "a": row["a"]} for row in ROWS]


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_large_cell_is_a_cell(tmp_path: Path, name: str) -> None:
    """131,072 characters are the default limit of Python's csv."""
    rows = [{"q": "é\n" * 200_000, "a": "1"}, {"q": "small", "a": "2"}]
    assert cells(write(tmp_path, name, WRITERS[name](rows)), "q") == [{"q": row["q"]} for row in rows]


ROW_BYTES, NUM_ROWS = 2**16, 400
MAX_PEAK_BYTES = 2**23
"""A piece of 1 MiB, what is copied of it, and a few rows; the files have 25 MiB."""


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "r.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"q": f"{number}", "log": "x" * ROW_BYTES} for number in range(NUM_ROWS)]
    path = write(tmp_path, name, WRITERS[name](rows))
    assert path.stat().st_size > 3 * MAX_PEAK_BYTES
    tracemalloc.start()
    read = cells(path, "q")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read) == NUM_ROWS
    assert peak < MAX_PEAK_BYTES


def test_memory_of_arrow_does_not_grow_with_a_parquet_file(tmp_path: Path) -> None:
    """One row group of 78 MB in pages of 1 MiB: a batch has BATCH_BYTES at most, and Arrow holds a copy of it."""
    table = pa.table({"q": [f"{n}" for n in range(NUM_ROWS)], "log": [f"{n}" * ROW_BYTES for n in range(NUM_ROWS)]})
    pq.write_table(table, tmp_path / "r.parquet", use_dictionary=False, compression="none", write_batch_size=4)
    size = table.nbytes
    del table
    before = pa.total_allocated_bytes()
    peaks = [pa.total_allocated_bytes() - before for _ in read_rows(tmp_path / "r.parquet", ["log"], BadRows("error"))]
    assert size > 60 * 2**20 and len(peaks) == NUM_ROWS
    assert 2**16 < max(peaks) < 40 * 2**20


def test_a_row_of_csv_that_cannot_be_read_is_one_bad_row(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbfq,a", b'"x"y,1', b"good,2", b"\xff,3", b"one cell", b'"two', b'lines",4', b"", b",5"]
    path = write(tmp_path, "r.csv", b"\r\n".join(lines))
    bad = BadRows("skip")
    rows = list(read_rows(path, ["q", "a"], bad))
    assert [(row.where.rpartition(":")[2], row.cells) for row in rows] == [
        ("3", {"q": "good", "a": "2"}),
        ("6", {"q": "two\r\nlines", "a": "4"}),
        ("9", {"a": "5"}),  # an empty cell is null
    ]
    assert bad.num_skipped == 3 and bad.first.startswith(f"{path}:2: not a row of CSV (")
    for line, reason in ((b"\xff,3", r":2: is not UTF-8"), (b"x", r":2: has 1 cells, more or fewer")):
        with pytest.raises(ValueError, match=reason):
            cells(write(tmp_path, "r.csv", b"q,a\n" + line), "q")
    with pytest.raises(ValueError, match=r"not a whole CSV file: unexpected end of data, in the row of line 3"):
        cells(write(tmp_path, "r.csv", b'q,a\n1,2\n"open,3\n4,5\n'), "q", policy="skip")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("r.csv", "q,a\n1,2\n".encode("utf-16"), "UTF-16, UTF-32 or no text"),
        ("r.jsonl", '{"q": "1"}'.encode("utf-16-le"), "UTF-16, UTF-32 or no text"),
        ("r.json", '[{"q": "1"}]'.encode("utf-32"), "UTF-16, UTF-32 or no text"),
        ("r.csv", gzip.compress(b"q,a"), r"compressed by gzip\. Let its name end in \.gz"),
        ("r.csv", b"PAR1 and more", r"a Parquet file\. Let its name end in \.parquet"),
        ("r.csv", b"q,q\n1,2\n", "has 2 columns 'q'"),
        ("r.csv", b"", "is empty"),
        ("r.csv", b"q,a\n", "is empty"),
        ("r.json", b"", "is empty"),
        ("r.json", b" [ ] ", "is empty"),
        ("r.json", b'{"data": []}', "is empty"),
        ("r.json", b'{"rows": [{"q": "1"}], "n": 1}', "one object with the keys rows, n, not a list"),
        ("r.json", b'{"data": {"q": "1"}}', "its key data is there twice, or is no list"),
        ("r.json", b'{"q": "1"}\n{"q": "2"}\n', "something follows its end.*JSON lines end in .jsonl"),
        ("r.json", b'[{"q": "1"}, {"q": "2"', r"ends inside of a value \(after 1 items\)"),
        ("r.json", b'[{"q": "1"} {"q": "2"}]', "not a JSON item .*Extra data"),
        ("r.json", b"5", "it begins with '5'"),
        ("r.json", b'[{"q": "1"}]]', "something follows its end"),
        ("r.jsonl.gz", b"not gzip", "damaged or cut off after its start"),
        ("r.parquet", b"PAR1", "is not a whole Parquet file"),
        ("r.txt", b"", "one of .jsonl, .json, .csv, .tsv, .parquet, or one of them and .gz"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        cells(tmp_path / name, "q")
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"q": "1", "q": "2"}', "it has the key 'q' twice"),
        ('{"q": "1",}', "not a JSON"),
        ('{"q": ' + "[" * 10_000 + "]" * 10_000 + "}", "not a JSON .*recursion"),
        ('["q"]', r'holds \["q"\], not a JSON object'),
        ('{"q": "\\uZZZZ"}', "not a JSON"),
    ],
)
def test_a_bad_item_is_one_bad_row(tmp_path: Path, line: str, reason: str) -> None:
    lines = ['{"q": "first"}', line, '{"q": "last"}']
    for name, text, where in (("r.jsonl", "\n".join(lines), ":2"), ("r.json", f"[{', '.join(lines)}]", ":item 2")):
        path = write(tmp_path, name, text.encode())
        with pytest.raises(ValueError, match=f"{name}{where}: .*{reason}"):
            cells(path, "q")
        assert cells(path, "q", policy="skip") == [{"q": "first"}, {"q": "last"}]


def test_a_trailing_comma_is_a_bad_item(tmp_path: Path) -> None:
    path = write(tmp_path, "r.json", b'[{"q": "1"},]')
    with pytest.raises(ValueError, match="item 2: not a JSON item"):
        cells(path, "q")
    assert cells(path, "q", policy="skip") == [{"q": "1"}]


NUMBERS = [
    ("18.0", "18"),
    ("-0.0", "0"),
    ("1e16", "10000000000000000"),
    ("1e21", "1e+21"),
    ("0.00001", "0.00001"),
    ("2.5e-10", "2.5e-10"),
    ("0.1", "0.1"),
    ("0.12345678901234567890123", "0.12345678901234567890123"),
    ("1e400", "1E+400"),
    ("9" * 400, "9" * 400),
    ("9" * 5_000, "9" * 5_000),
    ("12345678901234567890", "12345678901234567890"),
]


@pytest.mark.parametrize(("number", "text"), NUMBERS, ids=lambda value: value[:12])
def test_a_number_of_json_keeps_its_digits(tmp_path: Path, number: str, text: str) -> None:
    (row,) = cells(write(tmp_path, "r.jsonl", f'{{"q": {number}}}'.encode()), "q")
    assert as_answer(row["q"]) == text


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (True, "true"),
        ("False", "False"),
        (decimal.Decimal("18.00"), "18"),
        (decimal.Decimal("0.50"), "0.5"),
        (["5"], "5"),
        ([5, 5.0, "5 "], "5"),
        ([["5"], ["5"]], "5"),
        ("", ""),
    ],
)
def test_a_reference_answer_has_one_text(value: object, answer: str) -> None:
    assert as_answer(value) == answer


@pytest.mark.parametrize(
    "value", [None, [], ["5", "6"], [None], {"a": 1}, b"5", float("inf"), float("nan"), datetime(2020, 1, 2)]
)
def test_what_is_no_reference_answer_is_shown(value: object) -> None:
    with pytest.raises(ValueError, match=r"^is .*(not text|different answers; one is required)"):
        as_answer(value)


def test_missing_values_of_pandas_are_null() -> None:
    frame = pd.DataFrame(
        {"q": ["x", None, "y"], "n": [1.0, float("nan"), 2.0], "t": pd.to_datetime(["2020", None, "2021"])}
    )
    rows: list[dict[str, Any]] = [*frame.to_dict("records"), {"q": pd.NA, "n": np.int64(3), "t": np.array([1, 2])}]
    read = [row.cells for row in read_rows(rows, ["q"], BadRows("error"), optional=["n", "t"])]
    assert [sorted(row) for row in read] == [["n", "q", "t"], [], ["n", "q", "t"], ["n", "t"]]
    assert (as_text(read[3]["n"]), read[3]["t"]) == ("3", [1, 2])


def test_columns_of_parquet_have_python_values(tmp_path: Path) -> None:
    table = pa.table(
        {
            "coded": pa.array(["x", "y", None]).dictionary_encode(),
            "decimal": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2")], pa.decimal128(8, 2)),
            "nested": pa.array([[["1"]], None, [["2"], ["2"]]]),
            "struct": pa.array([{"gold": "1"}, None, {"gold": None}]),
            "nan": pa.array([float("nan"), 1.0, None]),
            "unread": pa.array([b"\xff", None, b""]),
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    read = cells(tmp_path / "r.parquet", "coded", "decimal", "nested", "struct", "nan")
    assert [row.get("coded") for row in read] == ["x", "y", None]
    assert [as_text(row["decimal"]) for row in read if "decimal" in row] == ["1.5", "2"]
    assert as_answer(read[2]["nested"]) == "2"
    assert ("nan" in read[0], read[1]["nan"], "nan" in read[2]) == (False, 1.0, False)


def test_a_cell_that_arrow_cannot_convert_is_one_bad_row(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff", b"last"]).view(pa.string())
    pq.write_table(pa.table({"q": texts}), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=r"r.parquet:row 2: cannot be read .*utf-8"):
        cells(tmp_path / "r.parquet", "q")
    assert cells(tmp_path / "r.parquet", "q", policy="skip") == [{"q": "good"}, {"q": "last"}]


def filtered(rows: list[dict[str, object]], **where: object) -> list[object]:
    return [row.cells["q"] for row in read_rows(rows, ["q"], BadRows("error"), where=where)]


def test_where_keeps_the_rows_with_a_value() -> None:
    rows: list[dict[str, object]] = [
        {"q": 0, "task": "dyck", "level": 3, "hard": True},
        {"q": 1, "task": "dates", "level": "3", "hard": "true"},
        {"q": 2, "task": "dyck", "level": 3.0},
        {"q": 3, "task": None, "level": 4, "hard": False},
    ]
    assert filtered(rows, task="dyck") == [0, 2]
    assert filtered(rows, task=["dyck", "dates"], level=3) == [0, 1, 2]
    assert filtered(rows, task=None) == [3]
    assert filtered(rows, hard=True) == [0, 1]
    with pytest.raises(
        ValueError, match=r"none of 4 rows passes where: task must be 'dick', and there are 'dyck', 'dates', None"
    ):
        filtered(rows, task="dick")
    with pytest.raises(ValueError, match=r"no column 'tsk'. Did you mean 'task'"):
        filtered(rows, tsk="dyck")
    with pytest.raises(ValueError, match=r"where\.task is an empty list"):
        filtered(rows, task=[])


def test_a_column_that_begins_late_is_no_missing_column() -> None:
    rows: Iterator[dict[str, object]] = iter([{"q": 1}, {"q": 2, "a": 3}, {"q": 4}])
    assert [row.cells for row in read_rows(rows, ["q", "a"], BadRows("error"))] == [
        {"q": 1},
        {"q": 2, "a": 3},
        {"q": 4},
    ]
