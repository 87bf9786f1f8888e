"""Cached tokens are the tokens that Chat gives, under a key that changes with whatever could change them."""

from __future__ import annotations

import json
import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tokenizers import normalizers

from w2sr import token_cache
from w2sr.chat import Chat
from w2sr.cli import main
from w2sr.miniature.tokenizer import build_tokenizer
from w2sr.packing import handle_overlong
from w2sr.supervision import Supervision
from w2sr.token_cache import cache_key, cached_segments
from w2sr.types import Segment, Trace

REPOSITORY = Path(__file__).resolve().parents[2]


def make_trace(number: int, **changes: Any) -> Trace:
    trace = Trace(
        problem_id=f"toy/{number // 2}",
        source="toy",
        problem=f"Today Mia has {number // 2} apples. How many apples does Mia have?",
        reference_answer="3",
        teacher="weak-7",
        completion="Mia has 3 apples. " * (number % 5) + "\\boxed{3}",
        finish_reason="length" if number % 3 == 0 else "stop",
        sample_index=number % 2,
    )
    return replace(trace, **changes)


TRACES = [make_trace(number) for number in range(11)]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(build_tokenizer())


def same(segments: list[Segment], others: list[Segment]) -> bool:
    return len(segments) == len(others) and all(
        a.segment_id == b.segment_id
        and len(a) == len(b)
        and a.num_loss_tokens == b.num_loss_tokens
        and a.input_ids.dtype == b.input_ids.dtype == a.labels.dtype == np.int64
        and np.array_equal(a.input_ids, b.input_ids)
        and np.array_equal(a.labels, b.labels)
        for a, b in zip(segments, others, strict=True)
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many traces each call of Chat.segments was given."""
    calls: list[int] = []
    real = Chat.segments

    def segments(self: Chat, traces: list[Trace], **options: Any) -> list[Segment]:
        calls.append(len(traces))
        return real(self, traces, **options)

    monkeypatch.setattr(Chat, "segments", segments)
    return calls


def test_the_segments_are_those_of_chat_and_are_made_once(
    tmp_path: Path, chat: Chat, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "CHUNK", 4)
    first = cached_segments(chat, TRACES, tmp_path)
    assert counted == [4, 4, 3]
    again = cached_segments(chat, TRACES, tmp_path)
    assert counted == [4, 4, 3], "the second time they are read"
    fresh = chat.segments(TRACES)
    assert same(first, fresh) and same(again, fresh)
    assert len({len(segment) for segment in fresh}) >= 5 and len({trace.finish_reason for trace in TRACES}) == 2
    assert cached_segments(chat, [], tmp_path) == []


def test_a_completion_without_any_loss_token_stays_without(tmp_path: Path, chat: Chat) -> None:
    traces = [make_trace(0, completion=""), make_trace(1, completion="")]
    assert [trace.finish_reason for trace in traces] == ["length", "stop"]
    cached = cached_segments(chat, traces, tmp_path)
    assert [segment.num_loss_tokens for segment in cached] == [0, 1]
    assert same(cached, chat.segments(traces))


@pytest.mark.parametrize("supervision", get_args(Supervision))
def test_every_variant_of_supervision_is_what_chat_gives(tmp_path: Path, chat: Chat, supervision: Supervision) -> None:
    traces = [replace(trace, answer_rule="boxed", no_loss_spans="[[0, 8]]") for trace in TRACES]
    cached = cached_segments(chat, traces, tmp_path, supervision=supervision)
    assert same(cached, chat.segments(traces, supervision=supervision))


def test_the_next_rooms_take_them_as_they_are(tmp_path: Path, chat: Chat) -> None:
    cached, fresh = cached_segments(chat, TRACES, tmp_path), chat.segments(TRACES)
    limit = int(np.median([len(segment) for segment in fresh]))
    for overlong in ("drop", "truncate"):
        kept, report = handle_overlong(cached, limit, overlong)  # type: ignore[arg-type]
        expected, expected_report = handle_overlong(fresh, limit, overlong)  # type: ignore[arg-type]
        assert same(kept, expected) and report == expected_report and report.num_overlong > 1


def test_tokens_stay_on_disk_also_in_a_worker(tmp_path: Path, chat: Chat) -> None:
    segments = cached_segments(chat, [make_trace(n, completion="Mia has 3 apples. " * 99) for n in range(9)], tmp_path)
    pickled = pickle.dumps(segments)
    assert len(pickled) < 1500 < 4 * sum(map(len, segments)) / 10
    copies = pickle.loads(pickled)
    assert same(copies, segments)
    base: Any = copies[0]._cache.input_ids
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    assert len({id(copy._cache) for copy in copies}) == 1, "one open cache for all of them"


CONDITIONAL = "{{% if 'prove' in messages[0]['content'] %}}{prefix}{{% endif %}}"


def conditional(prefix: str) -> Chat:
    """A template that treats problems that ask for a proof in another way: the probe of template_hash asks for none."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CONDITIONAL.format(prefix=prefix) + tokenizer.chat_template
    return Chat(tokenizer)


def replacing() -> Chat:
    """The same vocabulary, but one word is read as another."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("apples", "coins")
    return Chat(tokenizer)


CHANGED: dict[str, Callable[[], Chat]] = {
    "template": lambda: Chat(build_tokenizer(), template="simple"),
    "condition": lambda: conditional("Well"),
    "other condition": lambda: conditional("No"),
    "instruction": lambda: Chat(build_tokenizer(), instruction=" Mia"),
    "stop token": lambda: Chat(build_tokenizer(), stop_token="<|endoftext|>"),
    "way of tokenising": replacing,
}


def test_whatever_changes_the_tokens_changes_the_key(chat: Chat) -> None:
    key = cache_key(chat, TRACES)
    assert key == cache_key(Chat(build_tokenizer()), list(TRACES))
    keys = {name: cache_key(make(), TRACES) for name, make in CHANGED.items()}
    assert conditional("Well").template_hash == conditional("No").template_hash, "the hash alone does not see it"
    moved = {
        "completion": [make_trace(0, completion="\\boxed{4}"), *TRACES[1:]],
        "end": [make_trace(0, finish_reason="stop"), *TRACES[1:]],
        "problem": [make_trace(0, problem="How many apples?"), *TRACES[1:]],
        "name": [make_trace(0, sample_index=7), *TRACES[1:]],
        "silent span": [make_trace(0, no_loss_spans="[[0, 3]]"), *TRACES[1:]],
        "fewer": TRACES[:-1],
        "order": TRACES[::-1],
    }
    keys |= {name: cache_key(chat, traces) for name, traces in moved.items()}
    answered = [replace(trace, answer_rule="boxed") for trace in TRACES]
    keys |= {variant: cache_key(chat, answered, variant) for variant in get_args(Supervision) if variant != "full"}
    # a letter that moves from problem to completion
    head = make_trace(1, problem="Mia", completion="has")
    keys["seam"] = cache_key(chat, [head])
    keys["moved seam"] = cache_key(chat, [replace(head, problem="Mi", completion="ahas")])
    assert len({key, *keys.values()}) == 1 + len(keys)
    unread = [replace(trace, seconds=3.0, verdict="correct", num_tokens=9) for trace in TRACES]
    assert cache_key(chat, unread) == key, "what is no token changes nothing"


def test_the_key_is_the_same_in_every_process_and_after_use(chat: Chat) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/unit'); from test_token_cache import *; "
        "print(cache_key(Chat(build_tokenizer()), TRACES))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=120
    )
    chat.segments(TRACES)
    assert other.stdout.strip() == cache_key(chat, TRACES)


def test_changed_templates_never_meet_an_old_cache(tmp_path: Path, chat: Chat) -> None:
    cached_segments(chat, TRACES, tmp_path)
    for name, make in CHANGED.items():
        changed = make()
        assert same(cached_segments(changed, TRACES, tmp_path), changed.segments(TRACES)), name
    assert same(cached_segments(chat, TRACES, tmp_path), chat.segments(TRACES))


def damage(place: Path, how: str) -> None:
    tokens, header = place / "input_ids.npy", place / "header.json"
    data = tokens.read_bytes()
    if how == "cut":
        tokens.write_bytes(data[:-4])
    elif how == "flipped":
        tokens.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif how == "no header":
        header.unlink()
    elif how == "empty header":
        header.write_text("[1]")
    elif how == "no offsets":
        (place / "offsets.npy").unlink()


@pytest.mark.parametrize("how", ["cut", "flipped", "no header", "empty header", "no offsets"])
def test_a_damaged_cache_is_made_again_with_one_line(
    how: str, tmp_path: Path, chat: Chat, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    cached_segments(chat, TRACES, tmp_path)
    place = tmp_path / cache_key(chat, TRACES)
    damage(place, how)
    with caplog.at_level(logging.WARNING):
        again = cached_segments(chat, TRACES, tmp_path)
    (line,) = caplog.messages
    assert str(place) in line and "tokenised again" in line
    assert counted == [11, 11]
    assert same(again, chat.segments(TRACES))
    assert json.loads((place / "header.json").read_text())["num_traces"] == 11


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests/unit")
from test_token_cache import Chat, TRACES, build_tokenizer, cached_segments, same
folder = Path(sys.argv[1])
real = Chat.segments
def slow(self, traces, **options):
    with open(folder / "calls", "a") as file:
        file.write("x")
    time.sleep(0.5)
    return real(self, traces, **options)
chat = Chat(build_tokenizer())
Chat.segments = slow
(folder / f"ready{sys.argv[2]}").touch()
while not all((folder / f"ready{n}").exists() for n in "01"):
    time.sleep(0.01)
assert same(cached_segments(chat, TRACES, folder / "cache"), real(chat, TRACES))
"""


def test_two_processes_at_once_tokenise_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), number], cwd=REPOSITORY) for number in "01"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def die_after(num_saved: int) -> None:
    """Makes this process kill itself when it has saved so many arrays."""
    left, real = [num_saved], np.save

    def save(*arguments: Any, **options: Any) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        real(*arguments, **options)

    np.save = save  # type: ignore[assignment]
    if num_saved == 3:
        token_cache._sizes = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def test_a_kill_while_writing_leaves_nothing_that_is_read(tmp_path: Path, chat: Chat) -> None:
    place = tmp_path / cache_key(chat, TRACES)
    for num_saved in (0, 2, 3):  # before the first array, before the last, before the header
        child = os.fork()
        if child == 0:
            die_after(num_saved)
            cached_segments(chat, TRACES, tmp_path)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not place.exists() and (tmp_path / f".{place.name}.tmp").exists(), num_saved
    assert same(cached_segments(chat, TRACES, tmp_path), chat.segments(TRACES))
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.name, f"{place.name}.lock"]


def test_a_trace_that_cannot_be_tokenised_leaves_no_cache(tmp_path: Path, chat: Chat) -> None:
    traces = [*TRACES, make_trace(11, completion="\\boxed{3} <|im_end|> ҉")]
    with pytest.raises(ValueError, match="toy/5@weak-7#1"):
        cached_segments(chat, traces, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_second_run_reads_the_tokens_of_the_first(
    tmp_path: Path, fit_config: Callable[..., Path], counted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1}
    elsewhere = {"data__keep": "all", "data__cache_dir": str(tmp_path / "elsewhere")}
    for name, more in (("one", {}), ("two", {"data__held_out_frac": 0.3}), ("three", elsewhere)):
        main(["fit", "--config", str(fit_config(tmp_path / name, **changes, **more))])
    assert counted == [15, 20], "two runs on the 15 right traces, one on all 20"
    assert [len(list((tmp_path / name).glob("*/header.json"))) for name in (".tokens", "elsewhere")] == [1, 1]


def test_a_folder_that_cannot_be_written_is_one_message(
    tmp_path: Path, fit_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(fit_config(tmp_path / "run", data__cache_dir=str(tmp_path / "file" / "cache")))])
    assert end.value.code == 2
    assert "Make room there, or set data.cache_dir to another folder." in capsys.readouterr().err
