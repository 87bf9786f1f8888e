"""The trace store on disk: sealed Parquet parts, open journals, and the manifest, which is the truth.

    store/
      manifest.json                     which parts are whole: counts, sizes, sha256
      part-<writer>-<generation>.parquet
      journal-<writer>-<generation>.jsonl   one checksummed line a trace, appended as traces are made
      lock-<writer>                     held while that writer is open

Sealing turns the journal of a generation into the part of the same name: the part is written beside and renamed, then
named in the manifest, then the journal goes. A part that the manifest does not name is not there yet, and a journal
whose generation the manifest names is there already: a kill between any two steps neither loses nor doubles a trace.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from w2sr.types import Trace

SCHEMA_VERSION = 1
FORMAT = "w2sr-traces"
MANIFEST = "manifest.json"
WRITER_NAME = re.compile(r"[A-Za-z0-9_]+")

TraceKey = tuple[str, str, int]
"""What names a trace in a store: (problem_id, teacher, sample_index)."""

_ARROW_TYPES = {"int": pa.int64(), "float": pa.float64()}
SCHEMA = pa.schema([pa.field(f.name, _ARROW_TYPES.get(str(f.type), pa.string())) for f in fields(Trace)])

_LINE = re.compile(rb'\{"crc":"([0-9a-f]{8})","trace":(.*)\}\n', re.DOTALL)


def trace_key(trace: Trace) -> TraceKey:
    """What names a trace in a store."""
    return trace.problem_id, trace.teacher, trace.sample_index


def trace_row(trace: Trace) -> dict[str, object]:
    """The trace as one row: field name to value."""
    return {f.name: getattr(trace, f.name) for f in fields(Trace)}


@dataclass(frozen=True, slots=True)
class Part:
    """A sealed Parquet file: who wrote it, what it must contain, and how its traces are distributed."""

    writer: str
    generation: int
    num_traces: int
    num_bytes: int
    sha256: str
    by_verdict: dict[str, int]
    by_source: dict[str, int]
    by_teacher: dict[str, int]

    @property
    def file(self) -> str:
        return part_name(self.writer, self.generation)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parts that are whole. The counts of the store are the sums over its parts."""

    parts: tuple[Part, ...] = ()

    @property
    def num_traces(self) -> int:
        return sum(part.num_traces for part in self.parts)

    @property
    def by_verdict(self) -> dict[str, int]:
        return _summed(part.by_verdict for part in self.parts)

    @property
    def by_source(self) -> dict[str, int]:
        return _summed(part.by_source for part in self.parts)

    @property
    def by_teacher(self) -> dict[str, int]:
        return _summed(part.by_teacher for part in self.parts)

    def to_json(self) -> str:
        """The text of manifest.json, totals first."""
        totals = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "num_traces": self.num_traces,
            "by_verdict": self.by_verdict,
            "by_source": self.by_source,
            "by_teacher": self.by_teacher,
        }
        parts = [{"file": part.file, **asdict(part)} for part in self.parts]
        return json.dumps({**totals, "parts": parts}, indent=2, ensure_ascii=False) + "\n"


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def part_name(writer: str, generation: int) -> str:
    return f"part-{writer}-{generation:06d}.parquet"


def journal_name(writer: str, generation: int) -> str:
    return f"journal-{writer}-{generation:06d}.jsonl"


def preceding_journal(name: str) -> str | None:
    """The journal that its writer sealed before it began this one; None for a writer's first, and for foreign names.

    >>> preceding_journal("journal-main-000002.jsonl"), preceding_journal("journal-main-000000.jsonl")
    ('journal-main-000001.jsonl', None)
    """
    found = re.fullmatch(r"journal-(\w+)-(\d+)\.jsonl", name, re.ASCII)
    return journal_name(found[1], int(found[2]) - 1) if found and int(found[2]) else None


def is_store(path: str | Path) -> bool:
    """Whether the directory holds a manifest or a journal."""
    path = Path(path)
    return (path / MANIFEST).is_file() or any(path.glob("journal-*-*.jsonl"))


def read_manifest(path: str | Path) -> Manifest:
    """Reads what is sealed in a store.

    Raises:
        ValueError: there is no manifest (nothing was sealed yet), it is damaged, or another version wrote it.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise ValueError(f"{file} does not exist: nothing was sealed there. Seal the store, or check the path.")
    try:
        content = json.loads(file.read_bytes())
        version = content["format"], content["schema_version"]
        entries = [{name: value for name, value in entry.items() if name != "file"} for entry in content["parts"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged or no manifest of traces ({error!r}). Restore it from a copy.") from error
    if version != (FORMAT, SCHEMA_VERSION):
        raise ValueError(
            f"{file} is of {version}; this program reads {(FORMAT, SCHEMA_VERSION)}. Use the other version."
        )
    return Manifest(tuple(_part(entry, file) for entry in entries))


def _part(entry: dict[str, Any], file: Path) -> Part:
    try:
        part = Part(**entry)
    except TypeError as error:
        raise ValueError(f"{file} names a part in a way that is unknown: {error}. Restore it from a copy.") from error
    counts = (part.by_verdict, part.by_source, part.by_teacher)
    sizes = (part.generation, part.num_traces, part.num_bytes)
    if not (
        isinstance(part.writer, str)
        and isinstance(part.sha256, str)
        and all(type(size) is int and size >= 0 for size in sizes)
        and all(isinstance(count, dict) for count in counts)
    ):
        raise ValueError(f"{file} says of a part what cannot be: {entry!r:.300}. Restore it from a copy.")
    if not WRITER_NAME.fullmatch(part.writer):
        raise ValueError(f"{file} names writer {part.writer!r}; only letters, digits and underscores are allowed.")
    return part


def journal_line(trace: Trace) -> bytes:
    """One line of the journal: a JSON object of the trace and the CRC-32 of the trace's text."""
    text = json.dumps(trace_row(trace), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return b'{"crc":"%08x","trace":%b}\n' % (zlib.crc32(text), text)


def iter_journal(path: Path) -> Iterator[tuple[Trace, int]]:
    """Yields each whole trace of a journal with the byte offset at which its line ends.

    What follows the last line feed is the row that was in flight when the writer was killed: it is left out.

    Raises:
        ValueError: a line that ends in a line feed fails its checksum, so the file was changed after it was written.
    """
    end = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            match = _LINE.fullmatch(line)
            if match is None or int(match[1], 16) != zlib.crc32(match[2]):
                raise ValueError(
                    f"{path}:{number}: the line does not match its checksum: the file was changed after it was "
                    "written. Delete that line; its trace will be made again."
                )
            end += len(line)
            yield _trace(json.loads(match[2]), f"{path}:{number}"), end


def read_part(path: Path, part: Part, columns: list[str] | None = None) -> list[dict[str, object]]:
    """Rows of a sealed part after its size and hash were compared with the manifest's."""
    file = path / part.file
    if not file.is_file():
        raise ValueError(f"{file} is missing, and the manifest names it with {part.num_traces:,} traces. Restore it.")
    data = file.read_bytes()
    if len(data) != part.num_bytes:
        raise ValueError(
            f"{file} has {len(data):,} bytes; the manifest says {part.num_bytes:,}: it was cut or changed. Restore it."
        )
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise ValueError(f"{file} does not match the sha256 in the manifest: it was changed. Restore it.")
    rows: list[dict[str, object]] = read_table(data, columns).to_pylist()
    return rows


def read_table(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table of a whole Parquet file, read by the calling thread alone.

    Arrow's threads would hold the bytes a moment longer than the call; one that lets go of them while Python ends ends
    the process with SIGABRT (apache/arrow#34314).
    """
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
        return file.read(columns, use_threads=False)


def read_store(path: str | Path) -> list[Trace]:
    """Reads every trace of a store: the sealed parts, verified against the manifest, then the open journals.

    Safe while a writer is at work: it sees every trace appended before the call.

    Raises:
        ValueError: not a store, no traces, a file that is missing, cut off or changed, or a trace that is there twice.
    """
    path = Path(path)
    traces = list(iter_store(path))
    if not traces:
        raise ValueError(f"{path} holds no traces. Check the path, or let a teacher write some first.")
    twice = [key for key, count in Counter(map(trace_key, traces)).items() if count > 1]
    if twice:
        raise ValueError(
            f"{path} holds {len(twice):,} traces twice, the first {twice[0]} (problem_id, teacher, sample_index). "
            "Were two writers given the same problems?"
        )
    return traces


def iter_store(path: Path) -> Iterator[Trace]:
    """Yields every trace of a store as of now, a part at a time: the sealed parts, then the open journals.

    Raises:
        ValueError: as `read_store`, but nothing for an empty store or a trace that is there twice.
    """
    parts, journals = snapshot(path)
    for part in parts:
        yield from (_trace(row, str(path / part.file)) for row in read_part(path, part))
    for journal in journals:
        yield from journal


def snapshot(path: Path) -> tuple[tuple[Part, ...], list[list[Trace]]]:
    """The sealed parts and the traces of the journals that are not sealed, as of one moment.

    The order of the three looks matters: what leaves the journals is in the manifest already, so the manifest is read
    last, and a writer that seals meanwhile hides nothing.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory. A trace store is one.")
    part_files = {file.name for file in path.glob("part-*.parquet")}
    journals = {file.name: _read_journal(file) for file in sorted(path.glob("journal-*-*.jsonl"))}
    parts = read_manifest(path).parts if (path / MANIFEST).exists() else ()
    sealed = {journal_name(part.writer, part.generation) for part in parts}
    for name in sorted(part_files - {part.file for part in parts}):
        if name.replace("part-", "journal-", 1).replace(".parquet", ".jsonl") not in journals:
            raise ValueError(
                f"{path / name} is not named in {MANIFEST}, and its journal is gone: {MANIFEST} was removed or is an "
                "older copy. Restore it."
            )
    for name in sorted(set(journals) - sealed):
        before = preceding_journal(name)
        if before is not None and before not in sealed:
            raise ValueError(
                f"{path / name} goes on where a sealed part ends that {MANIFEST} does not name: {MANIFEST} was removed "
                "or is an older copy. Restore it, with its parts."
            )
    return parts, [traces for name, traces in journals.items() if name not in sealed]


def _read_journal(file: Path) -> list[Trace]:
    try:
        return [trace for trace, _ in iter_journal(file)]
    except FileNotFoundError:
        # Its writer sealed it after the directory was listed; the manifest, read after this, names it.
        return []


def _trace(row: dict[str, object], where: str) -> Trace:
    try:
        return Trace(**row)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{where} holds a row that is not a trace of this version: {error}.") from error


def write_part(path: Path, writer: str, generation: int, traces: Iterable[Trace]) -> Part:
    """Writes the Parquet file of a generation by atomic rename and says what the manifest must say of it."""
    file = path / part_name(writer, generation)
    counts: dict[str, Counter[str]] = {"by_verdict": Counter(), "by_source": Counter(), "by_teacher": Counter()}

    def rows() -> Iterator[dict[str, object]]:
        for trace in traces:
            counts["by_verdict"][trace.verdict or "unverified"] += 1
            counts["by_source"][trace.source] += 1
            counts["by_teacher"][trace.teacher] += 1
            yield trace_row(trace)

    temporary = file.with_name(f".{file.name}.tmp")
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as parquet:
        for batch in _batches(rows(), 1024):
            parquet.write_batch(pa.RecordBatch.from_pylist(batch, SCHEMA))
    with temporary.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    num_bytes = temporary.stat().st_size
    replace_durably(temporary, file)
    return Part(
        writer=writer,
        generation=generation,
        num_traces=sum(counts["by_verdict"].values()),
        num_bytes=num_bytes,
        sha256=digest,
        **{name: dict(sorted(count.items())) for name, count in counts.items()},
    )


def _batches(rows: Iterable[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    batch: list[dict[str, object]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes manifest.json by atomic rename."""
    temporary = path / f".{MANIFEST}.tmp"
    temporary.write_text(manifest.to_json(), encoding="utf-8")
    replace_durably(temporary, path / MANIFEST)


def replace_durably(temporary: Path, file: Path) -> None:
    """Renames a written file over its name; both the bytes and the name survive a power failure."""
    sync(temporary)
    temporary.replace(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
