"""Traces as tokens on disk: tokenised once, memory-mapped, shared by every rank and every loader worker.

    <folder>/<key>/
      input_ids.npy        [all tokens] int32: the segments one after another
      offsets.npy          [n + 1] int64: where each begins, and where the last ends
      loss.npy             [all tokens] bool: which of them carry loss
      header.json          sizes and checksums of the three, written last
    <folder>/<key>.lock    held by the process that looks or writes

The key is a hash of everything that decides the tokens: the tokenizer with its code's version, the chat template and
its options, the stop token, and each trace's name, problem, end, and what of its completion teaches. So a changed
template, trace or variant of supervision has another key and never meets an old cache. A cache is written beside its
place and renamed into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from w2sr.chat import Chat
from w2sr.supervision import Supervision, labels_of, target_of
from w2sr.types import IGNORE_INDEX, Segment, Trace

FORMAT = "w2sr-tokens-3"
HEADER = "header.json"
ARRAYS = {"input_ids": np.int32, "offsets": np.int64, "loss": np.bool_}
CHUNK = 4096
"""Traces that are tokenised together: bounds the memory of token ids as Python integers."""

_log = logging.getLogger(__name__)


class TokenCache:
    """The open arrays of one cache. Pickles as its path, so that a worker maps the same pages instead of copying them.

    Raises:
        ValueError: there is no whole cache in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _check_files(folder)
        # as plain arrays over the mapped pages: a memmap object is several times slower to index
        self.input_ids, self.offsets, self.loss = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in ARRAYS
        )

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path]]:
        return TokenCache, (self.folder,)

    def __len__(self) -> int:
        return len(self.offsets) - 1


class MappedSegment(Segment):
    """A segment whose arrays are read from a cache whenever they are asked for; in memory it is three references."""

    __slots__ = ("_at", "_cache")
    _cache: TokenCache
    _at: int

    def __init__(self, cache: TokenCache, at: int, segment_id: str) -> None:
        for name, value in (("_cache", cache), ("_at", at), ("segment_id", segment_id)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[type[MappedSegment], tuple[TokenCache, int, str]]:
        return MappedSegment, (self._cache, self._at, self.segment_id)

    def __len__(self) -> int:
        return int(self._cache.offsets[self._at + 1] - self._cache.offsets[self._at])

    @property
    def input_ids(self) -> np.ndarray:
        return self._cache.input_ids[self._tokens].astype(np.int64)

    @property
    def labels(self) -> np.ndarray:
        return labels_of(self.input_ids, self._cache.loss[self._tokens])

    @property
    def num_loss_tokens(self) -> int:
        return int(np.count_nonzero(self._cache.loss[self._tokens]))

    @property
    def _tokens(self) -> slice:
        return slice(*self._cache.offsets[self._at : self._at + 2])


def cached_segments(
    chat: Chat, traces: Sequence[Trace], folder: Path, *, supervision: Supervision = "full"
) -> list[Segment]:
    """What `chat.segments` gives, from the cache in `folder`, which is made where it is absent or damaged.

    Processes that ask at the same time wait for the first one, then read what it wrote. A damaged cache is made again,
    with one line in the log.

    Raises:
        ValueError: what `Chat.segments` raises.
        OSError: the folder cannot be written.
    """
    if not traces:
        return []
    key = cache_key(chat, traces, supervision)
    place = folder / key
    try:
        with _lock(folder, key):
            cache = _opened(place)
            if cache is None:
                _write(place, chat, traces, supervision)
                cache = TokenCache(place)
    except OSError as error:
        raise OSError(
            f"The token cache {place} cannot be used: {error}. Make room there, or set data.cache_dir to "
            "another folder."
        ) from error
    assert len(cache) == len(traces), f"{place} holds {len(cache)} segments for {len(traces)} traces"
    return [MappedSegment(cache, at, trace.trace_id) for at, trace in enumerate(traces)]


def cache_key(chat: Chat, traces: Sequence[Trace], supervision: Supervision = "full") -> str:
    """32 hex digits that change with anything that could change a token of these traces.

    The template's own text counts beside `Chat.template_hash`, which sees it at work on one problem only, and so do the
    merges of the tokenizer beside its vocabulary. The spans that teach count themselves, not the rules that find them.
    """
    # first: it tokenises, which resets the padding and truncation that the tokenizer's file may have set
    seen = chat.template_hash
    tokenizer: Any = chat.tokenizer
    asked = [chat.template, chat.system, chat.instruction, chat.stop_token, str(tokenizer.chat_template)]
    versions = [FORMAT, tokenizers.__version__, transformers.__version__]
    digest = hashlib.sha256()
    for text in (*versions, seen, *asked, tokenizer.backend_tokenizer.to_str()):
        _add(digest, text)
    for trace in traces:
        target = target_of(trace, supervision)
        teaches = f"{target.taught}, {target.silent}, {trace.finish_reason != 'length'}"
        for text in (trace.trace_id, trace.problem, target.text, teaches):
            _add(digest, text)
    return digest.hexdigest()[:32]


def _add(digest: Any, text: str) -> None:
    """With its length, so that no two lists of texts run into the same bytes."""
    data = text.encode(errors="surrogatepass")
    digest.update(len(data).to_bytes(8, "big"))
    digest.update(data)


@contextmanager
def _lock(folder: Path, key: str) -> Iterator[None]:
    """Holds the key for this process. The file stays: whoever removed it could remove one that another waits for."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(place: Path) -> TokenCache | None:
    """The cache that is there, or None where there is none or none that is whole."""
    if not place.exists():
        return None
    try:
        return TokenCache(place)
    except ValueError as error:
        _log.warning("%s The traces are tokenised again.", error)
        return None


def _check_files(folder: Path) -> None:
    """Raises a ValueError unless every array has the bytes that the header names."""
    try:
        header = json.loads((folder / HEADER).read_bytes())
        expected = {name: (int(header[name]["num_bytes"]), int(header[name]["crc32"])) for name in ARRAYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The token cache {folder} has no readable {HEADER} ({type(error).__name__}).") from error
    for name, sizes in expected.items():
        file = folder / f"{name}.npy"
        if not file.is_file() or sizes != _sizes(file):
            raise ValueError(f"The token cache {folder} is damaged: {file.name} is not as its {HEADER} says.")


def _sizes(file: Path) -> tuple[int, int]:
    """Bytes of a file, and their CRC-32."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return file.stat().st_size, crc


def _write(place: Path, chat: Chat, traces: Sequence[Trace], supervision: Supervision) -> None:
    """Tokenises into a folder beside `place` and renames that. What a killed process left there is removed."""
    aside = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for name, array in _arrays(chat, traces, supervision).items():
            np.save(aside / f"{name}.npy", array, allow_pickle=False)
        sizes = {name: _sizes(aside / f"{name}.npy") for name in ARRAYS}
        header = {name: {"num_bytes": num_bytes, "crc32": crc} for name, (num_bytes, crc) in sizes.items()}
        (aside / HEADER).write_text(json.dumps({"format": FORMAT, "num_traces": len(traces), **header}, indent=1))
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _arrays(chat: Chat, traces: Sequence[Trace], supervision: Supervision) -> dict[str, np.ndarray]:
    ids: list[np.ndarray] = [np.empty(0, dtype=np.int32)]
    loss: list[np.ndarray] = []
    for start in range(0, len(traces), CHUNK):
        for segment in chat.segments(traces[start : start + CHUNK], supervision=supervision):
            ids.append(segment.input_ids.astype(np.int32))
            loss.append(np.append(False, segment.labels[:-1] != IGNORE_INDEX))
            same = np.array_equal(labels_of(segment.input_ids, loss[-1]), segment.labels)
            assert same, f"{segment.segment_id}: labels are not the tokens that follow"
    arrays = {"input_ids": np.concatenate(ids), "offsets": np.cumsum([0, *map(len, ids[1:])]), "loss": np.hstack(loss)}
    return {name: array.astype(ARRAYS[name]) for name, array in arrays.items()}
