"""The trace store survives kills, faults and damage: nothing is lost, doubled or mistaken for whole."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from w2sr.traces import TraceWriter, read_manifest, read_store, read_traces, store, trace_key, write_store
from w2sr.types import Trace


def make_trace(number: int, **changes: object) -> Trace:
    trace = Trace(
        problem_id=f"toy/{number}",
        source="toy",
        problem=f"What is {number} + 1?",
        reference_answer=str(number + 1),
        teacher="weak-7",
        completion=f"{number} + 1 = {number + 1}",
    )
    return replace(trace, **changes)  # type: ignore[arg-type]


FULL = Trace(
    problem_id="toy/é",
    source="toy",
    problem="line one\nline two\u2028still the same row",
    reference_answer="½",
    teacher='weak "7"',
    completion="nul \x00, tab\t, backslash \\, emoji 🙂, carriage return \r\n",
    finish_reason="length",
    sample_index=3,
    num_tokens=41,
    answer="",
    answer_rule="hash",
    verdict="timeout",
    verdict_reason="took 5 s",
    grader="math",
    grader_version="0.9",
    sampling='{"temperature": 0.6}',
    seed=2**62,
    template_hash="ab12",
    engine="vllm 0.32",
    seconds=0.1,
)


def test_a_trace_comes_back_exactly_from_the_journal_and_from_parquet(tmp_path: Path) -> None:
    traces = [FULL, make_trace(1), make_trace(2, answer=None), make_trace(3, answer="")]
    writer = TraceWriter(tmp_path / "store")
    for trace in traces:
        writer.append(trace)
    assert read_store(tmp_path / "store") == traces
    writer.seal()
    writer.close()
    assert read_store(tmp_path / "store") == traces
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == ["manifest.json", "part-main-000000.parquet"]


def test_the_manifest_counts_every_generation(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer:
        writer.append(make_trace(1, verdict="correct"))
        writer.append(make_trace(2, verdict="incorrect", source="other"))
        writer.seal()
        writer.append(make_trace(3, verdict="correct", teacher="weak-8"))
        writer.seal()
        writer.seal()
        writer.append(make_trace(4))
    manifest = read_manifest(tmp_path)
    assert [part.num_traces for part in manifest.parts] == [2, 1, 1]
    assert manifest.num_traces == 4
    assert manifest.by_verdict == {"correct": 2, "incorrect": 1, "unverified": 1}
    assert manifest.by_source == {"other": 1, "toy": 3}
    assert manifest.by_teacher == {"weak-7": 3, "weak-8": 1}
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["num_traces"] == 4
    assert written["schema_version"] == store.SCHEMA_VERSION


def test_resuming_knows_what_is_done_and_refuses_it(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer:
        writer.append(make_trace(1))
        writer.seal()
        writer.append(make_trace(1, sample_index=1))
        writer.close()
    with TraceWriter(tmp_path) as writer:
        assert writer.done() == {("toy/1", "weak-7", 0), ("toy/1", "weak-7", 1)}
        for again in (make_trace(1), make_trace(1, sample_index=1)):
            with pytest.raises(ValueError, match="already holds trace 'toy/1@weak-7#"):
                writer.append(again)
        writer.append(make_trace(1, teacher="weak-8"))
        with pytest.raises(ValueError, match="already holds"):
            writer.append(make_trace(1, teacher="weak-8"))
    assert len(read_store(tmp_path)) == 3


def test_an_exception_leaves_the_journal_and_a_clean_end_seals(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TraceWriter(tmp_path) as writer:
        writer.append(make_trace(1))
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["journal-main-000000.jsonl"]
    assert read_store(tmp_path) == [make_trace(1)]
    with pytest.raises(ValueError, match="closed"):
        writer.append(make_trace(2))
    with TraceWriter(tmp_path):
        pass
    assert read_manifest(tmp_path).num_traces == 1


def test_a_journal_cut_at_any_byte_loses_only_the_torn_trace(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "whole")
    ends = [0]
    for number in (1, 2):
        writer.append(make_trace(number))
        ends.append((tmp_path / "whole/journal-main-000000.jsonl").stat().st_size)
    writer.close()
    data = (tmp_path / "whole/journal-main-000000.jsonl").read_bytes()
    journal = tmp_path / "cut/journal-main-000000.jsonl"
    journal.parent.mkdir()
    for length in [1, 30, *range(ends[1] - 2, ends[1] + 30), *range(len(data) - 30, len(data) + 1)]:
        journal.write_bytes(data[:length])
        whole = sum(end <= length for end in ends[1:])
        expected = [make_trace(number) for number in range(1, whole + 1)]
        if expected:
            assert read_store(journal.parent) == expected, length
        writer = TraceWriter(journal.parent)
        assert len(writer.done()) == whole
        writer.append(make_trace(3))
        writer.close()
        assert read_store(journal.parent) == [*expected, make_trace(3)], length
    assert whole == 2


def test_a_changed_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path)
    for number in (1, 2, 3):
        writer.append(make_trace(number))
    writer.close()
    journal = tmp_path / "journal-main-000000.jsonl"
    data = journal.read_bytes()
    for old, new in ((b"2 + 1 = 3", b"2 + 1 = 4"), (b'{"crc":"', b'{"crc":"0'), (b'"toy/2"', b'"toy\n2"')):
        journal.write_bytes(data.replace(old, new))
        with pytest.raises(ValueError, match=r"journal-main-000000.jsonl:[12]: .*checksum"):
            read_store(tmp_path)
        with pytest.raises(ValueError, match="checksum"):
            TraceWriter(tmp_path)
    journal.write_bytes(data)
    assert len(read_store(tmp_path)) == 3


def test_damaged_parts_and_manifests_are_never_mistaken_for_whole(tmp_path: Path) -> None:
    write_store(tmp_path, [make_trace(number) for number in range(5)])
    part, manifest = tmp_path / "part-main-000000.parquet", tmp_path / "manifest.json"
    whole, text = part.read_bytes(), manifest.read_bytes()
    for length in (0, 1, 4, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        part.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"has {length:,} bytes; the manifest says {len(whole):,}"):
            read_store(tmp_path)
    part.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(ValueError, match="sha256"):
        read_store(tmp_path)
    part.unlink()
    with pytest.raises(ValueError, match="is missing, and the manifest names it with 5 traces"):
        read_store(tmp_path)
    part.write_bytes(whole)
    for length in [*range(0, len(text) - 9, 7), *range(len(text) - 9, len(text) - 1)]:
        manifest.write_bytes(text[:length])
        with pytest.raises(ValueError, match="is damaged or no manifest"):
            read_store(tmp_path)
    for old, new, message in (
        (b'"schema_version": 1', b'"schema_version": 2', "reads"),
        (b'"writer": "main"', b'"writer": "../x"', "letters"),
        (b'"writer"', b'"author"', "unknown"),
    ):
        manifest.write_bytes(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_store(tmp_path)
    manifest.unlink()
    with pytest.raises(ValueError, match=r"manifest.json was removed"):
        read_store(tmp_path)
    manifest.write_bytes(text)
    assert len(read_store(tmp_path)) == 5


class Crash(BaseException):
    """Stands for a kill: nothing of ours handles it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int, after: bool) -> Callable[[], int]:
    """Makes the given disk operation of this process crash before or after it is done; counts the operations."""
    count = 0

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == call and not after:
                raise Crash
            result = real(*arguments, **options)
            if count == call:
                raise Crash
            return result

        return wrapped

    for name in ("replace", "fsync", "unlink", "write"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return lambda: count


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_disk_operation_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    for call in range(1, 100):
        path = tmp_path / str(call)
        write_store(path, [make_trace(0)])
        writer = TraceWriter(path)
        appended = [make_trace(0)]
        with monkeypatch.context() as patch:
            num_calls = crash_at(patch, call, after)
            try:
                for number in (1, 2):
                    writer.append(make_trace(number))
                    appended.append(make_trace(number))
                writer.seal()
                writer.append(make_trace(3))
                appended.append(make_trace(3))
                writer.seal()
            except Crash:
                pass
        # A kill runs no handlers: the descriptors go, the lock files stay.
        writer.close()
        (path / "lock-main").touch()
        (path / ".manifest.lock").touch()
        assert read_store(path) == appended, call
        with TraceWriter(path) as resumed:
            assert resumed.done() == {trace_key(trace) for trace in appended}
            resumed.append(make_trace(9))
        assert read_store(path) == [*appended, make_trace(9)], call
        assert read_manifest(path).num_traces == len(appended) + 1
        assert not [file.name for file in path.iterdir() if file.name.startswith(("journal", "lock"))]
        if num_calls() < call:
            break
    assert call >= 15  # 3 writes and 2 seals of 4 syncs, 2 renames and 2 or 3 removals each


WRITER = """
import sys
from w2sr.traces import TraceWriter
from w2sr.types import Trace
with TraceWriter(sys.argv[1]) as writer:
    done = writer.done()
    print(len(done) - 1, flush=True)
    for number in range(100000):
        if (f"toy/{number}", "weak-7", 0) not in done:
            writer.append(Trace(f"toy/{number}", "toy", "?" * 3000, "1", "weak-7", "x" * (number % 977)))
            print(number, flush=True)
            if number % 3 == 0:
                writer.seal()
"""


def test_sigkill_at_random_moments_loses_at_most_the_trace_in_flight(tmp_path: Path) -> None:
    chance = random.Random(7)
    stored = 0
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            output = b"".join(process.stdout.readline() for _ in range(chance.randint(4, 25)))
            time.sleep(chance.uniform(0, 0.02))
            process.kill()
            output += process.stdout.read()
            acknowledged = int(output.split(b"\n")[-2]) + 1
            assert process.wait() == -signal.SIGKILL
        traces = read_store(tmp_path)
        assert sorted(int(trace.problem_id.removeprefix("toy/")) for trace in traces) == list(range(len(traces)))
        # One more than was acknowledged, where the kill came between the append and the print.
        assert len(traces) in (acknowledged, acknowledged + 1)
        assert len(traces) > stored
        stored = len(traces)
    assert len(read_manifest(tmp_path).parts) > 1


def test_a_full_disk_does_not_damage_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TraceWriter(tmp_path) as writer:
        writer.append(make_trace(1))
        real = os.write
        sizes = iter([10, 20])

        def full(descriptor: int, data: bytes) -> int:
            size = next(sizes, None)
            if size is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, bytes(data)[:size])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space"):
                writer.append(make_trace(2))
        assert read_store(tmp_path) == [make_trace(1)]
        writer.append(make_trace(2))
        writer.append(make_trace(3))
    assert read_store(tmp_path) == [make_trace(1), make_trace(2), make_trace(3)]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    with TraceWriter(tmp_path, fsync=True) as writer:
        writer.append(make_trace(1))
    assert read_store(tmp_path) == [make_trace(1)]


def test_a_row_that_parquet_cannot_hold_is_refused_before_it_is_journalled(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer:
        for bad in (make_trace(1, completion="half \ud83d"), make_trace(1, seed=2**70), make_trace(1, seconds="soon")):
            with pytest.raises((ValueError, OverflowError, TypeError)):
                writer.append(bad)
        writer.append(make_trace(1))
    assert read_store(tmp_path) == [make_trace(1)]


THREADS = """
import os, sys
from w2sr.traces import read_store

before = len(os.listdir("/proc/self/task"))
read_store(sys.argv[1])
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads of a process on Linux")
def test_reading_starts_no_thread_that_could_outlive_python(tmp_path: Path) -> None:
    """Arrow's would drop the bytes that they read, which are Python's: at the wrong moment the process aborts."""
    write_store(tmp_path / "store", [make_trace(number) for number in range(5)])
    command = [sys.executable, "-c", THREADS, str(tmp_path / "store")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "0\n"


def test_reading_while_a_writer_seals_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store._read_journal
    with TraceWriter(tmp_path) as writer:
        writer.append(make_trace(1))

        def sealed_meanwhile(file: Path) -> list[Trace]:
            if file.exists():
                writer.seal()
            return real(file)

        monkeypatch.setattr(store, "_read_journal", sealed_meanwhile)
        assert read_store(tmp_path) == [make_trace(1)]
        assert not list(tmp_path.glob("journal*"))


def test_nothing_there_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trace store"):
        read_traces(tmp_path)
    with pytest.raises(ValueError, match="holds no traces"):
        read_store(tmp_path)
    with pytest.raises(ValueError, match="nothing was sealed"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="is not a directory"):
        read_store(tmp_path / "absent")
    with TraceWriter(tmp_path):
        pass
    assert read_manifest(tmp_path).num_traces == 0
    with pytest.raises(ValueError, match="holds no traces"):
        read_traces(tmp_path)
