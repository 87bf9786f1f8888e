"""Whatever happens to the files of a trace store, what is read was written, or a ValueError names the file."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2sr.traces import TraceWriter, read_store
from w2sr.types import Trace

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SEALED, OPEN = 3, 4
"""Traces of each sealed part, and of the journal behind them."""


def make_trace(number: int) -> Trace:
    return Trace(
        problem_id=f"toy/{number}",
        source="toy",
        problem=f"What is {number} + 1?",
        reference_answer=str(number + 1),
        teacher="weak-7",
        completion=f"line\n{number} + 1 = {number + 1} ½ \\boxed{{{number + 1}}}",
        seconds=number / 7,
    )


WRITTEN = [make_trace(number) for number in range(2 * SEALED + OPEN)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two sealed parts and a journal."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    writer = TraceWriter(folder)
    for number, trace in enumerate(WRITTEN, 1):
        writer.append(trace)
        if number in (SEALED, 2 * SEALED):
            writer.seal()
    writer.close()
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "journal-main-000002.jsonl",
        "manifest.json",
        "part-main-000000.parquet",
        "part-main-000001.parquet",
    ]
    assert read_store(folder) == WRITTEN
    return folder


class Damage:
    """One thing that happens to one file of a store, drawn by hypothesis."""

    def __init__(self, file: str, how: str, place: float, amount: int) -> None:
        self.file, self.how, self.place, self.amount = file, how, place, amount

    def __repr__(self) -> str:
        return f"Damage({self.file!r}, {self.how!r}, {self.place!r}, {self.amount!r})"

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        if self.how == "remove" or not path.exists():
            path.unlink(missing_ok=True)
            return
        data = path.read_bytes()
        at = min(int(self.place * len(data)), max(0, len(data) - 1))
        end = at + self.amount
        changed = {
            "cut": data[:at],
            "cut the end": data[: max(0, len(data) - self.amount)],
            "flip": data[:at] + bytes(byte ^ self.amount for byte in data[at : at + 1]) + data[at + 1 :],
            "delete": data[:at] + data[end:],
            "repeat": data[:end] + data[at:end] + data[end:],
            "zeros": data[:at] + bytes(len(data[at:end])) + data[end:],
            "append": data + bytes([self.amount]) * self.amount,
        }
        path.write_bytes(changed[self.how])


FILES = ("journal-main-000002.jsonl", "manifest.json", "part-main-000000.parquet", "part-main-000001.parquet")
HOW = ("remove", "cut", "cut the end", "flip", "delete", "repeat", "zeros", "append")
damages = st.builds(
    Damage,
    st.sampled_from(FILES),
    st.sampled_from(HOW),
    st.floats(0, 1, allow_nan=False),
    st.integers(1, 255),
)


def outcome(whole: Path, done: list[Damage]) -> list[Trace] | str:
    """What is read of a copy of the store after the damage, or the message of the ValueError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        shutil.copytree(whole, folder)
        for damage in done:
            damage.apply(folder)
        try:
            return read_store(folder)
        except ValueError as error:
            assert str(folder) in str(error), error
            return str(error)


@example([Damage(file, "remove", 0.0, 1) for file in FILES[1:]])  # what is left looks like a writer's first journal
@settings(max_examples=300, deadline=None)
@given(st.lists(damages, min_size=1, max_size=3))
def test_a_damaged_store_gives_what_was_written_or_names_a_file(whole: Path, done: list[Damage]) -> None:
    read = outcome(whole, done)
    if isinstance(read, str):
        touched = {damage.file for damage in done}
        # a part is also named where the manifest that should name it is gone
        assert any(name in read for name in touched | {file for file in FILES if file.startswith("part")}), read
        return
    sealed, journal = WRITTEN[: 2 * SEALED], WRITTEN[2 * SEALED :]
    assert read[: len(sealed)] == sealed, "sealed traces are all there or the store is refused"
    tail = read[len(sealed) :]
    assert tail == journal[: len(tail)], "of a journal a beginning is there"
    if FILES[0] not in {damage.file for damage in done}:
        assert tail == journal


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1), bit=st.integers(0, 7), file=st.sampled_from(FILES[2:]))
def test_no_bit_of_a_sealed_part_can_change(whole: Path, place: float, bit: int, file: str) -> None:
    read = outcome(whole, [Damage(file, "flip", place, 1 << bit)])
    assert isinstance(read, str) and file in read and "sha256" in read


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_no_bit_of_a_journal_can_change_a_trace(whole: Path, place: float, bit: int) -> None:
    """A flip is found by the checksum, unless it is the last line feed: then that trace counts as torn."""
    read = outcome(whole, [Damage(FILES[0], "flip", place, 1 << bit)])
    if isinstance(read, str):
        assert FILES[0] in read and "checksum" in read
    else:
        assert read == WRITTEN[:-1]


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_no_bit_of_a_manifest_changes_what_is_read(whole: Path, place: float, bit: int) -> None:
    read = outcome(whole, [Damage(FILES[1], "flip", place, 1 << bit)])
    assert read == WRITTEN or isinstance(read, str)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6),
    kept=st.floats(0, 1),
)
def test_a_journal_cut_anywhere_is_continued(texts: list[tuple[str, str]], kept: float) -> None:
    traces = [
        Trace(str(number), "s", problem, "1", "t", completion) for number, (problem, completion) in enumerate(texts)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = TraceWriter(folder)
        for trace in traces:
            writer.append(trace)
        writer.close()
        (journal,) = folder.glob("journal-*")
        data = journal.read_bytes()
        length = int(kept * len(data))
        journal.write_bytes(data[:length])
        num_whole = data[:length].count(b"\n")
        with TraceWriter(folder) as writer:
            assert len(writer.done()) == num_whole
            for trace in traces[num_whole:]:
                writer.append(trace)
        assert read_store(folder) == traces


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(FILES), data=st.binary(max_size=200))
def test_a_file_of_anything_is_no_store(whole: Path, name: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(folder)):
            read_store(folder)


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT | st.lists(st.none(), max_size=2)
KEYS = ("writer", "generation", "num_traces", "num_bytes", "sha256", "by_verdict", "by_teacher")


@settings(max_examples=200, deadline=None)
@given(part=st.integers(0, 1), key=st.sampled_from(KEYS), value=LEAVES)
def test_a_manifest_with_another_value_is_refused_or_makes_no_difference(
    whole: Path, part: int, key: str, value: object
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        shutil.copytree(whole, folder)
        manifest = json.loads((folder / FILES[1]).read_text())
        manifest["parts"][part][key] = value
        (folder / FILES[1]).write_text(json.dumps(manifest))
        try:
            assert read_store(folder) == WRITTEN
        except ValueError as error:
            assert str(folder) in str(error), error
