"""Writing a trace store: append, seal, resume, one writer at a time."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from w2sr.traces.locks import acquire, release
from w2sr.traces.store import (
    MANIFEST,
    SCHEMA,
    WRITER_NAME,
    Manifest,
    TraceKey,
    iter_journal,
    journal_line,
    journal_name,
    read_manifest,
    read_part,
    snapshot,
    sync,
    trace_key,
    trace_row,
    write_manifest,
    write_part,
)
from w2sr.types import Trace

MANIFEST_LOCK = ".manifest.lock"

_log = logging.getLogger(__name__)


class TraceWriter:
    """Appends traces to a store; a kill at any moment loses at most the trace in flight.

    Each `append` is one write of one checksummed line to a journal; `seal` turns the journal into Parquet. As a
    context manager it seals on the way out, and after an exception it leaves the journal, which `read_store` reads and
    the next writer continues. Processes that write at the same time (one a rank) need different `writer` names.

    Args:
        path: directory of the store; made where it is absent.
        writer: names the journal and the parts of this process: letters, digits and `_`.
        fsync: waits for the disk after every trace. Needed to survive a power failure, not to survive a kill.

    Raises:
        ValueError: the name is in use by another process, or the store is damaged.
    """

    def __init__(self, path: str | Path, *, writer: str = "main", fsync: bool = False) -> None:
        if not WRITER_NAME.fullmatch(writer):
            raise ValueError(f"writer={writer!r} must consist of letters, digits and underscores.")
        self.path = Path(path)
        self.writer = writer
        self._fsync = fsync
        self._journal: int | None = None
        self._size = 0
        absent = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in absent:
            sync(folder.parent)
        self._lock: int | None = acquire(self.path / f"lock-{writer}", blocking=False)
        _open_writers.add(self)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._lock is not None:
                self.seal()
        finally:
            self.close()

    def append(self, trace: Trace) -> None:
        """Stores one trace; when this returns, a kill of the process no longer loses it.

        Raises:
            ValueError: the store holds a trace of that (problem_id, teacher, sample_index), or the writer is closed.
        """
        self._require_open()
        key = trace_key(trace)
        if key in self._done:
            raise ValueError(
                f"{self.path} already holds trace {trace.trace_id!r}. Leave out what is in done(), or give the new "
                "sample another sample_index."
            )
        # A row that Parquet cannot hold (half a surrogate pair, an integer over 64 bits) would block every later seal.
        pa.RecordBatch.from_pylist([trace_row(trace)], SCHEMA)
        line = journal_line(trace)
        journal = self._open_journal()
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(journal, view) :]
            if self._fsync:
                os.fsync(journal)
        except BaseException as error:
            # A full disk leaves half a line; the next one would make of it a damaged line in the middle.
            os.ftruncate(journal, self._size)
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        self._size += len(line)
        self._done.add(key)

    def done(self) -> frozenset[TraceKey]:
        """The (problem_id, teacher, sample_index) of every trace that the store held at opening or was given since."""
        return frozenset(self._done)

    def seal(self) -> Manifest:
        """Moves the journal into a Parquet part and returns the manifest; without new traces it only reads it."""
        self._require_open()
        try:
            return self._seal()
        except BaseException as error:
            # Which step failed decides what is on disk; the next writer finds out from the manifest.
            self.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def close(self) -> None:
        """Gives the store back without sealing. Closing twice does nothing."""
        self._close_journal()
        if self._lock is not None:
            lock, self._lock = self._lock, None
            release(self.path / f"lock-{self.writer}", lock)

    def _seal(self) -> Manifest:
        journal = self.path / journal_name(self.writer, self._generation)
        self._close_journal()
        lock = acquire(self.path / MANIFEST_LOCK, blocking=True)
        try:
            manifest = read_manifest(self.path) if (self.path / MANIFEST).exists() else Manifest()
            if journal.exists():
                traces = (trace for trace, _ in iter_journal(journal))
                part = write_part(self.path, self.writer, self._generation, traces)
                manifest = Manifest((*manifest.parts, part))
            write_manifest(self.path, manifest)
        finally:
            release(self.path / MANIFEST_LOCK, lock)
        if journal.exists():
            journal.unlink()
            self._generation += 1
        return manifest

    def _unwritable(self, error: OSError) -> OSError:
        """What a full disk means for the traces."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        return OSError(
            f"The trace store {self.path} cannot be written: {reason}. The {len(self._done):,} traces that it holds "
            "are kept. Make room and run the same command again: it goes on from there."
        )

    def _recover(self) -> None:
        """Clears what a killed writer left and finds out what is there."""
        parts, journals = snapshot(self.path)
        mine = [part.generation for part in parts if part.writer == self.writer]
        self._generation = max(mine, default=-1) + 1
        for generation in mine:
            (self.path / journal_name(self.writer, generation)).unlink(missing_ok=True)
        (self.path / f".part-{self.writer}-{self._generation:06d}.parquet.tmp").unlink(missing_ok=True)
        self._drop_torn_row(self.path / journal_name(self.writer, self._generation))
        names = ["problem_id", "teacher", "sample_index"]
        self._done: set[TraceKey] = {trace_key(trace) for traces in journals for trace in traces}
        for part in parts:
            self._done.update(tuple(row[name] for name in names) for row in read_part(self.path, part, names))  # type: ignore[misc]

    def _drop_torn_row(self, journal: Path) -> None:
        if not journal.exists():
            return
        whole = 0
        for _, end in iter_journal(journal):
            whole = end
        torn = journal.stat().st_size - whole
        if torn:
            _log.warning("%s: dropped %d bytes of a trace that was in flight when its writer was killed", journal, torn)
            os.truncate(journal, whole)
        if not whole:
            journal.unlink()

    def _open_journal(self) -> int:
        if self._journal is None:
            path = self.path / journal_name(self.writer, self._generation)
            self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = os.fstat(self._journal).st_size
            if self._fsync:
                sync(self.path)  # fsync of a file keeps its bytes; its name is in the folder
        return self._journal

    def _close_journal(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _require_open(self) -> None:
        if self._lock is None:
            raise ValueError(f"The writer of {self.path} is closed. Open a new TraceWriter.")

    def _forget(self) -> None:
        """Lets go in a forked child: its copy of the lock would outlive the writer and block the next one."""
        for descriptor in (self._journal, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._journal = self._lock = None


_open_writers: weakref.WeakSet[TraceWriter] = weakref.WeakSet()


def _forget_all() -> None:
    for writer in list(_open_writers):
        writer._forget()


os.register_at_fork(after_in_child=_forget_all)


def write_store(path: str | Path, traces: Iterable[Trace]) -> Manifest:
    """Writes traces as a new sealed store, or adds them to one that is there."""
    with TraceWriter(path) as writer:
        for trace in traces:
            writer.append(trace)
        return writer.seal()
