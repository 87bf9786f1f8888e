"""The trace store on a disk that loses what was not synced: every moment of a writer is replayed.

System calls of the writer are recorded. After each one the disk can be found in several states: a name that was
created, renamed or removed is durable only when its folder was synced, and bytes are durable only when their file was.
What was not synced is there, is lost, or is there in part. Names are lost in order, as journalling file systems do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest

from w2sr.traces import TraceWriter, read_store, trace_key
from w2sr.types import Trace

CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "truncate", "ftruncate")
LONG = 9000
"""Characters of a trace: more than two blocks of 4,096 bytes."""


def make_trace(number: int) -> Trace:
    return Trace(f"toy/{number}", "toy", "?", "1", "weak-7", f"{number}: " + "x" * LONG)


@dataclass(eq=False)
class File:
    """What a file holds, and what of it is durable."""

    now: bytes
    synced: bytes = b""

    def after_a_crash(self) -> set[bytes]:
        """All of it, what was synced, a part more than that, or allocated blocks that were never written: zeros."""
        if self.now == self.synced:
            return {self.now}
        kept = len(self.synced) if self.now.startswith(self.synced) else 0
        cut = (kept + len(self.now)) // 2
        return {self.now, self.synced, self.now[:cut], self.now[:kept] + bytes(cut - kept)}


@dataclass
class Disk:
    """Watches a folder, one system call at a time.

    Attributes:
        folder: what is watched.
        durable: names that are on the disk, whatever happens.
        pending: changes of names since the folder was synced; None is a removal.
        counts: number of calls by name.
    """

    folder: Path
    durable: dict[str, File] = field(default_factory=dict)
    pending: list[dict[str, File | None]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    _of_inode: dict[int, File] = field(default_factory=dict)
    _names: dict[str, File] = field(default_factory=dict)

    def look(self) -> None:
        """Takes in what the last call changed."""
        found = {entry.name: entry for entry in os.scandir(self.folder) if not entry.name.lstrip(".").startswith(LOCKS)}
        self._of_inode = {entry.inode(): self._file(entry) for entry in found.values()}
        names = {name: self._of_inode[entry.inode()] for name, entry in found.items()}
        change: dict[str, File | None] = {n: file for n, file in names.items() if self._names.get(n) is not file}
        change |= dict.fromkeys(set(self._names) - set(names))
        if change:
            self.pending.append(change)
        self._names = names

    def _file(self, entry: os.DirEntry[str]) -> File:
        file = self._of_inode.get(entry.inode()) or File(b"")
        file.now = Path(entry).read_bytes()
        return file

    def sync(self, descriptor: int) -> None:
        if (inode := os.fstat(descriptor).st_ino) == self.folder.stat().st_ino:
            self.durable, self.pending = dict(self._names), []
        elif inode in self._of_inode:
            self._of_inode[inode].synced = self._of_inode[inode].now

    def after_a_crash(self) -> Iterator[dict[str, bytes]]:
        """What a crash at this moment can leave: name → bytes."""
        names = dict(self.durable)
        for change in [{}, *self.pending]:
            names = {name: file for name, file in {**names, **change}.items() if file is not None}
            contents = [sorted(file.after_a_crash()) for file in names.values()]
            for chosen in product(*contents):
                yield dict(zip(names, chosen, strict=True))


LOCKS = ("lock", "manifest.lock")


@dataclass
class Story:
    """A writer's work, with every state that a crash can leave and what had been acknowledged by then."""

    disk: Disk
    acknowledged: list[Trace] = field(default_factory=list)
    states: dict[tuple[tuple[str, bytes], ...], list[Trace]] = field(default_factory=dict)

    def remember(self) -> None:
        self.disk.look()
        for state in self.disk.after_a_crash():
            # a state that can be found later too must hold what was acknowledged by then
            self.states[tuple(sorted(state.items()))] = list(self.acknowledged)


def watched(monkeypatch: pytest.MonkeyPatch, story: Story) -> None:
    def wrap(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            story.remember()  # also what others than these calls wrote, such as Arrow
            result = real(*arguments, **options)
            story.disk.look()
            story.disk.counts[name] = story.disk.counts.get(name, 0) + 1
            if name == "fsync":
                story.disk.sync(arguments[0])  # type: ignore[arg-type]
            story.remember()
            return result

        return wrapped

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))


def told(folder: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool) -> Story:
    """Two traces, a seal, two more, a seal, one more. Without `fsync` a trace is acknowledged when it is sealed."""
    folder.mkdir()
    story, waiting = Story(Disk(folder)), []
    with monkeypatch.context() as patch:
        watched(patch, story)
        writer = TraceWriter(folder, fsync=fsync)
        for number in range(5):
            writer.append(make_trace(number))
            waiting.append(make_trace(number))
            if fsync:
                story.acknowledged, waiting = [*story.acknowledged, *waiting], []
            story.remember()
            if number in (1, 3):
                writer.seal()
                story.acknowledged, waiting = [*story.acknowledged, *waiting], []
                story.remember()
    writer.close()
    return story


@pytest.mark.parametrize("fsync", [True, False])
def test_no_acknowledged_trace_is_lost_when_the_power_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    story = told(tmp_path / "store", monkeypatch, fsync)
    assert len(story.states) > 30, "guard: many different states"
    assert {len(acknowledged) for acknowledged in story.states.values()} >= ({0, 1, 2, 3, 4, 5} if fsync else {0, 2, 4})
    for number, (state, acknowledged) in enumerate(story.states.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in state:
            (folder / name).write_bytes(content)
        described = f"{[(name, len(content)) for name, content in state]}, {len(acknowledged)} acknowledged"
        if not fsync and any(b"\0" in content for name, content in state if name.startswith("journal")):
            continue  # blocks of zeros are refused by their checksum, and nothing promises them without fsync
        with TraceWriter(folder) as writer:
            done = writer.done()
            assert {trace_key(trace) for trace in acknowledged} <= done, described
            writer.append(make_trace(99))
        read = read_store(folder)
        assert read == [*(make_trace(number) for number in range(len(read) - 1)), make_trace(99)], described


def test_an_append_is_one_write_and_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has more than two blocks, and is written at once: a kill leaves it or leaves it out."""
    (tmp_path / "store").mkdir()
    story = Story(Disk(tmp_path / "store"))
    with TraceWriter(tmp_path / "store", fsync=True) as writer:
        writer.append(make_trace(0))
        with monkeypatch.context() as patch:
            watched(patch, story)
            writer.append(make_trace(1))
    assert story.disk.counts == {"write": 1, "fsync": 1}


def test_the_folders_of_a_new_store_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), real(descriptor)))
    TraceWriter(tmp_path / "runs" / "one" / "store").close()
    above = [tmp_path, tmp_path / "runs", tmp_path / "runs" / "one"]
    assert sorted(synced) == sorted(folder.stat().st_ino for folder in above)
    TraceWriter(tmp_path / "runs" / "one" / "store").close()
    assert len(synced) == 3, "nothing was made, nothing is waited for"
