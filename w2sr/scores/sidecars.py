"""Scores on disk, beside the traces of a store and apart from its sealed parts.

    store/scores/<folder>/part-<hash>.parquet     problem_id, teacher, sample_index, inputs, and a column a score

The folder names the score, its version and, for a likelihood, the student; the same provenance stands in every part,
and a part of another one is refused. `inputs` is a hash of what the value was computed from: a row is believed only for
a trace that still has these inputs, so a changed text, or a problem with more traces, is scored again. A part is
written beside its place and renamed into a name that is the hash of its bytes: a kill leaves whole parts, two commands
at once do no harm, and a changed part is found out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from w2sr.traces import trace_key
from w2sr.traces.store import read_table, replace_durably
from w2sr.types import Trace

FOLDER = "scores"
METADATA = b"w2sr-scores"
KEY_FIELDS = [pa.field("problem_id", pa.string()), pa.field("teacher", pa.string())]
KEY_FIELDS += [pa.field("sample_index", pa.int64()), pa.field("inputs", pa.string())]

Values = Mapping[str, float]


@dataclass(frozen=True)
class Provenance:
    """Which score, which version of its rule, and for a likelihood which student (by hash) in which dtype."""

    score: str
    version: int
    student_hash: str = ""
    dtype: str = ""

    @property
    def folder(self) -> str:
        parts = [self.score, f"v{self.version}", self.student_hash, self.dtype]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Score:
    """A score that can be computed: what names it, its columns, what it reads, and the rule.

    Attributes:
        provenance: who computed it.
        columns: names of its values.
        inputs: what the value of a trace is computed from, as text.
        values: the values of some traces, each with every column.
        chunk: traces that are computed and written together.
    """

    provenance: Provenance
    columns: tuple[str, ...]
    inputs: Callable[[Trace], str]
    values: Callable[[Sequence[Trace]], Sequence[Values]]
    chunk: int = 4096


def inputs_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def stored_values(store: Path, score: Score, traces: Sequence[Trace]) -> dict[str, Values]:
    """trace_id → values, for those of the traces whose value is stored and still of their inputs.

    Raises:
        ValueError: a part is damaged, was changed or is of another provenance.
    """
    folder = store / FOLDER / score.provenance.folder
    if not folder.is_dir():
        return {}
    wanted = {(*trace_key(trace), inputs_hash(score.inputs(trace))): trace.trace_id for trace in traces}
    found: dict[str, Values] = {}
    for file in sorted(folder.glob("part-*.parquet")):
        for key, values in _rows(file, score):
            if key in wanted:
                found[wanted[key]] = values
    return found


def _rows(file: Path, score: Score) -> Iterator[tuple[tuple[str, str, int, str], Values]]:
    data = file.read_bytes()
    if file.name != _part_name(data):
        raise ValueError(f"{file} was changed or cut after it was written. Delete it and run `score` again.")
    table = read_table(data)
    said = json.loads((table.schema.metadata or {}).get(METADATA, b"null"))
    if said != asdict(score.provenance):
        raise ValueError(
            f"{file} holds scores of {said}, and its folder is that of {asdict(score.provenance)}. Delete it and run "
            "`score` again."
        )
    for row in table.to_pylist():
        key = row["problem_id"], row["teacher"], row["sample_index"], row["inputs"]
        yield key, {name: _number(row[name]) for name in score.columns}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _part_name(data: bytes) -> str:
    return f"part-{hashlib.sha256(data).hexdigest()[:16]}.parquet"


def compute_missing(store: Path, score: Score, traces: Sequence[Trace]) -> Iterator[tuple[int, int]]:
    """Computes and stores what is not stored yet, chunk by chunk. Yields (traces done, traces in all) after each part.

    A killed command goes on where its last whole part ended.
    """
    there = stored_values(store, score, traces)
    todo = sorted((trace for trace in traces if trace.trace_id not in there), key=trace_key)
    yield len(there), len(traces)
    for start in range(0, len(todo), score.chunk):
        part = todo[start : start + score.chunk]
        _write_part(store, score, part, score.values(part))
        yield len(there) + start + len(part), len(traces)


def _write_part(store: Path, score: Score, traces: Sequence[Trace], values: Sequence[Values]) -> None:
    folder = store / FOLDER / score.provenance.folder
    folder.mkdir(parents=True, exist_ok=True)
    fields = [*KEY_FIELDS, *(pa.field(name, pa.float64()) for name in score.columns)]
    schema = pa.schema(fields, metadata={METADATA: json.dumps(asdict(score.provenance))})
    rows = []
    for trace, one in zip(traces, values, strict=True):
        named = dict(zip(("problem_id", "teacher", "sample_index"), trace_key(trace), strict=True))
        rows.append({**named, "inputs": inputs_hash(score.inputs(trace)), **one})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    temporary = folder / f".{_part_name(data)}.{os.getpid()}.tmp"
    temporary.write_bytes(data)
    replace_durably(temporary, folder / _part_name(data))
