"""Which traces share a row, and which rows share an optimizer step; segments to one packed row.

A plan is a pure function of (seed, epoch, lengths): every rank computes the same one without talking, and the rows of
any step follow from its number alone, so resuming needs no loader state. One batch of the loader is one whole optimizer
step: a list of rows, whose number may differ from step to step.

Left out: splitting a trace over two rows. A packed trace sees the context that it would see alone.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from w2sr import chance
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment

Overlong = Literal["error", "drop", "truncate"]
"""What happens to a trace that is longer than a row."""

PADDING_ID = 0
"""Input id of padding tokens. Any id serves: a padding segment attends only to itself and carries no loss."""

ATTENTION_TOKENS = 16_384
"""Length at which causal attention costs as much as the matrix products: 12 x the hidden width (here about 1,400).

Orders rows by cost when they are dealt to ranks; a value that is wrong for a model costs some idle time."""


class EpochPlan:
    """The rows of every optimizer step of one epoch, packed on demand. Made by `plan_epoch`.

    Rows of a step depend on (seed, epoch, lengths, max_tokens, step size, window) and never on the world size.
    Only the window last asked for is kept, so reading steps in order packs each window once.
    """

    def __init__(
        self, lengths: np.ndarray, order: np.ndarray, step_offsets: np.ndarray, *, max_tokens: int, window: int
    ) -> None:
        self.lengths = lengths
        self.order = order
        self.step_offsets = step_offsets
        self.max_tokens = max_tokens
        self.window = window
        self.num_steps = len(step_offsets) - 1
        self._window_rows: tuple[int, list[list[np.ndarray]]] = (-1, [])

    def step_rows(self, step: int) -> list[np.ndarray]:
        """The rows of optimizer step `step` of this epoch, each the int64 indices of its traces."""
        assert 0 <= step < self.num_steps, f"step {step} of {self.num_steps}"
        number = step // self.window
        if self._window_rows[0] != number:
            self._window_rows = (number, self._pack_window(number))
        return list(self._window_rows[1][step - number * self.window])

    def rank_rows(self, step: int, rank: int, world_size: int) -> list[np.ndarray]:
        """The rows of a step that `rank` computes: equally many on every rank, empty rows filling up the last.

        Rows are dealt by cost, back and forth: rows that run at the same time on different ranks cost about the same,
        and so do the ranks' sums. The costliest come first, so that what does not fit in memory fails at once.
        """
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        rows = self.step_rows(step)
        rows.sort(key=self._row_cost, reverse=True)
        rows.extend(np.empty(0, dtype=np.int64) for _ in range(-len(rows) % world_size))
        turns = range(len(rows) // world_size)
        return [rows[turn * world_size + (rank if turn % 2 == 0 else world_size - 1 - rank)] for turn in turns]

    def fill(self, steps: Iterable[int] | None = None) -> float:
        """Share of the row capacity that holds trace tokens, in [0, 1], over `steps` (all by default)."""
        num_rows = num_tokens = 0
        for step in range(self.num_steps) if steps is None else steps:
            rows = self.step_rows(step)
            num_rows += len(rows)
            num_tokens += int(self.lengths[np.concatenate(rows)].sum())
        return num_tokens / (num_rows * self.max_tokens)

    def _row_cost(self, row: np.ndarray) -> int:
        lengths = self.lengths[row]
        return int((lengths * (lengths + ATTENTION_TOKENS)).sum())

    def _pack_window(self, number: int) -> list[list[np.ndarray]]:
        offsets = self.step_offsets[number * self.window : (number + 1) * self.window + 1].tolist()
        num_steps = len(offsets) - 1
        rows, num_tokens = self._pack(offsets[0], offsets[-1])
        if num_steps == 1:
            return [rows]
        if len(rows) < num_steps:  # so few tokens that some step would be left with nothing to learn from
            return [self._pack(start, stop)[0] for start, stop in pairwise(offsets)]
        return _deal_rows(rows, num_tokens, num_steps)

    def _pack(self, start: int, stop: int) -> tuple[list[np.ndarray], list[int]]:
        members = self.order[start:stop]
        lengths = self.lengths[members]
        longest_first = np.argsort(-lengths, kind="stable")
        row_of_item, num_rows = best_fit_decreasing(lengths[longest_first].tolist(), self.max_tokens)
        items = np.asarray(row_of_item)
        by_row = longest_first[np.argsort(items, kind="stable")]
        starts = np.append(0, np.cumsum(np.bincount(items, minlength=num_rows))).tolist()
        num_tokens = np.add.reduceat(lengths[by_row], starts[:-1])
        return [members[by_row[first:last]] for first, last in pairwise(starts)], num_tokens.tolist()


def plan_epoch(
    lengths: np.ndarray,
    *,
    seed: int,
    epoch: int,
    max_tokens: int,
    step_sequences: int | None = None,
    step_tokens: int | None = None,
    window: int = 1,
) -> EpochPlan:
    """Shuffles the traces for one epoch, cuts them into optimizer steps and packs each step's traces into rows.

    With `step_sequences` every step has that many traces, the last one the rest (the paper's 128). With `step_tokens`
    the epoch is cut at equal shares of its tokens, into `ceil(total / step_tokens)` steps in every epoch.
    With `window` > 1 the traces of that many consecutive steps are packed together, which fills rows better; whole rows
    are then dealt to the window's steps with equal tokens, so *which* step of the window a trace belongs to follows the
    packing and no longer the shuffle, and `step_sequences` holds on average over the window.

    `lengths` [n] are in tokens, as is the row capacity `max_tokens`; step sizes count over all ranks, epochs from 0.

    Raises:
        ValueError: There are no traces; a trace is longer than a row or empty; not exactly one step size is given.

    Example:
        >>> plan = plan_epoch(np.array([5, 3, 4]), seed=7, epoch=0, max_tokens=8, step_sequences=3)
        >>> [sorted(row.tolist()) for row in plan.step_rows(0)]
        [[0, 1], [2]]
    """
    num_steps = steps_per_epoch(lengths, step_sequences=step_sequences, step_tokens=step_tokens)
    lengths = np.asarray(lengths, dtype=np.int64)
    _check_lengths(lengths, max_tokens)
    if min(seed, epoch) < 0 or window < 1:
        raise ValueError(f"seed={seed} and epoch={epoch} must be at least 0, and window={window} at least 1.")
    order = _shuffle(len(lengths), seed, epoch)
    if step_sequences is not None:
        step_offsets = np.minimum(np.arange(num_steps + 1) * step_sequences, len(lengths))
    else:
        step_offsets = _cut_by_tokens(lengths[order], num_steps)
    return EpochPlan(lengths, order, step_offsets, max_tokens=max_tokens, window=window)


def steps_per_epoch(lengths: np.ndarray, *, step_sequences: int | None = None, step_tokens: int | None = None) -> int:
    """Optimizer steps of every epoch, known without a plan.

    `ceil(n / step_sequences)`, or `ceil(total tokens / step_tokens)` but at most one step a trace.

    Raises:
        ValueError: There are no traces, or not exactly one step size of at least 1 is given.

    Example:
        >>> steps_per_epoch(np.array([5, 3, 4]), step_tokens=5)
        3
    """
    if (step_sequences is None) == (step_tokens is None):
        raise ValueError(
            f"step_sequences={step_sequences} and step_tokens={step_tokens}: exactly one of them sets the size of an "
            "optimizer step. Set one of data.step_sequences and data.step_tokens, and the other to null."
        )
    size = step_sequences if step_sequences is not None else step_tokens
    assert size is not None
    if size < 1:
        raise ValueError(
            f"An optimizer step of size {size} is empty. Set data.step_sequences or data.step_tokens to 1 or more."
        )
    if len(lengths) == 0:
        raise ValueError("There are no traces to plan. Look at the table of what selection removed.")
    if step_sequences is not None:
        return -(-len(lengths) // step_sequences)
    return min(-(-int(np.sum(lengths, dtype=np.int64)) // size), len(lengths))


def best_fit_decreasing(lengths: Sequence[int], max_tokens: int) -> tuple[list[int], int]:
    """Rows for items that come longest first: (row number of each item, number of rows).

    Each item goes to the fullest row that still holds it, among equally full rows to the one that changed last. Items
    of one length are placed together, row by row: a row that takes one of them is the best fit for the next as long as
    it has room. So the work follows the distinct lengths and the distinct room left in rows, rather than the items.

    Example:
        >>> best_fit_decreasing([5, 4, 3, 3], max_tokens=8)
        ([0, 1, 0, 1], 2)
    """
    row_of_item: list[int] = []
    num_rows = 0
    rooms: list[int] = []  # distinct room left in open rows, ascending
    rows_with: dict[int, list[int]] = {}  # room -> its rows, last changed last

    def file_rows(room: int, rows: list[int]) -> None:
        if room in rows_with:
            rows_with[room].extend(rows)
        elif room:
            rooms.insert(bisect_left(rooms, room), room)
            rows_with[room] = rows

    for length, count in Counter(lengths).items():
        while count:
            at = bisect_left(rooms, length)
            if at == len(rooms):
                num_new = -(-count // (max_tokens // length))
                file_rows(max_tokens, list(range(num_rows + num_new - 1, num_rows - 1, -1)))
                num_rows += num_new
            room = rooms[at]
            rows = rows_with[room]
            per_row = room // length
            num_full = min(count // per_row, len(rows))
            rest = count % per_row if num_full < len(rows) else 0
            full = [rows.pop() for _ in range(num_full)]
            partial = [rows.pop()] if rest else []
            if not rows:
                del rooms[at], rows_with[room]
            count -= num_full * per_row + rest
            row_of_item.extend(full if per_row == 1 else [row for row in full for _ in range(per_row)])
            if full:
                file_rows(room - per_row * length, full)
            if partial:
                row_of_item.extend(partial * rest)
                file_rows(room - rest * length, partial)
    return row_of_item, num_rows


def num_loss_tokens(rows: Iterable[np.ndarray], trace_loss_tokens: np.ndarray) -> int:
    """Loss tokens of a step: the one denominator, known on every rank before the first backward.

    `rows` are all rows of the step, not only this rank's; `trace_loss_tokens` [n] holds the count of each trace.
    """
    return sum(int(trace_loss_tokens[row].sum()) for row in rows)


@dataclass(frozen=True, slots=True)
class OverlongReport:
    """What traces longer than a row cost, in traces and tokens. `num_overlong` = `num_dropped` + `num_truncated`.

    `num_without_loss` of the dropped traces would have kept no loss token after truncation. A truncated trace loses its
    stop token, and mostly its answer: `num_answers_lost` counts those whose last token carried loss. `num_tokens_lost`
    counts the tokens of dropped traces and the cut tails.
    """

    overlong: Overlong
    max_tokens: int
    num_traces: int
    num_tokens: int
    num_overlong: int
    num_dropped: int
    num_without_loss: int
    num_truncated: int
    num_answers_lost: int
    num_tokens_lost: int

    def __str__(self) -> str:
        return (
            f"{self.num_overlong:,} of {self.num_traces:,} traces are longer than a row (max_tokens={self.max_tokens}, "
            f"overlong={self.overlong}): {self.num_dropped:,} dropped ({self.num_without_loss:,} of them because "
            f"truncation left no loss token), {self.num_truncated:,} truncated, {self.num_answers_lost:,} answers and "
            f"stop tokens lost, {self.num_tokens_lost:,} of {self.num_tokens:,} tokens lost."
        )


def handle_overlong(
    segments: Sequence[Segment], max_tokens: int, overlong: Overlong
) -> tuple[list[Segment], OverlongReport]:
    """Refuses, drops or truncates the segments that no row holds, and counts what that costs.

    Truncation cuts the tail. The label of the last token kept becomes IGNORE_INDEX, since the token after it is gone; a
    segment that keeps no loss token is dropped.

    Raises:
        ValueError: `overlong` is "error" and a segment is longer than `max_tokens`, or `overlong` is unknown.
    """
    if overlong not in ("error", "drop", "truncate"):
        raise ValueError(f"overlong={overlong!r} is unknown. Set data.overlong to error, drop or truncate.")
    too_long = [segment for segment in segments if len(segment) > max_tokens]
    if too_long and overlong == "error":
        more = f" ({len(too_long) - 1:,} more of {len(segments):,} traces are too long.)" if len(too_long) > 1 else ""
        raise ValueError(
            f"Trace {too_long[0].segment_id!r} has {len(too_long[0]):,} tokens; a row holds max_tokens={max_tokens}. "
            f"Raise data.max_tokens or set data.overlong=drop or data.overlong=truncate.{more}"
        )
    fits = [_fit(segment, max_tokens, overlong) for segment in segments]
    kept = [fit for fit in fits if fit is not None]
    truncated = [segment for segment, fit in zip(segments, fits, strict=True) if fit is not None and fit is not segment]
    num_dropped = len(too_long) - len(truncated)
    num_tokens = sum(map(len, segments))
    return kept, OverlongReport(
        overlong=overlong,
        max_tokens=max_tokens,
        num_traces=len(segments),
        num_tokens=num_tokens,
        num_overlong=len(too_long),
        num_dropped=num_dropped,
        num_without_loss=num_dropped if overlong == "truncate" else 0,
        num_truncated=len(truncated),
        num_answers_lost=sum(int(segment.labels[-2]) != IGNORE_INDEX for segment in truncated),
        num_tokens_lost=num_tokens - sum(map(len, kept)),
    )


def pack_row(segments: Sequence[Segment], *, pad_to: int | None = None) -> PackedBatch:
    """One packed row: segments one after another, then padding up to `pad_to` tokens as a segment of its own.

    A row without segments is one padding segment of `pad_to` tokens (1 by default): it runs and weighs nothing.

    Raises:
        ValueError: The segments have more than `pad_to` tokens.
    """
    num_tokens = sum(map(len, segments))
    if pad_to is not None and num_tokens > pad_to:
        raise ValueError(f"{len(segments)} segments have {num_tokens:,} tokens; the row is padded to pad_to={pad_to}.")
    for segment in segments:
        assert len(segment.labels) == len(segment) > 0, (
            f"{segment.segment_id}: input_ids and labels differ or are empty"
        )
        assert segment.labels[-1] == IGNORE_INDEX, (
            f"{segment.segment_id}: its last label belongs to no token of its own"
        )
    num_padding = max(0 if segments else 1, (pad_to or 0) - num_tokens)
    lengths = [len(segment) for segment in segments] + [num_padding] * (num_padding > 0)
    padding = np.full(num_padding, PADDING_ID, dtype=np.int64)
    input_ids = np.concatenate([*(segment.input_ids for segment in segments), padding])
    labels = np.concatenate([*(segment.labels for segment in segments), np.full_like(padding, IGNORE_INDEX)])
    cu_seqlens = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    position_ids, max_seqlen = boundaries(cu_seqlens, len(input_ids))
    return PackedBatch(torch.from_numpy(input_ids), torch.from_numpy(labels), position_ids, cu_seqlens, max_seqlen)


def boundaries(cu_seqlens: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, int]:
    """What follows from the boundaries of a row: (`position_ids` [T] int64, `max_seqlen`).

    Args:
        cu_seqlens: [S + 1] int32, from 0 to `num_tokens`, padding segment included.
        num_tokens: T, the tokens of the row.

    Example:
        >>> boundaries(torch.tensor([0, 2, 5], dtype=torch.int32), 5)
        (tensor([0, 1, 0, 1, 2]), 3)
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    assert int(cu_seqlens[0]) == 0 and int(cu_seqlens[-1]) == num_tokens, f"{cu_seqlens} does not span {num_tokens}"
    tokens = torch.arange(num_tokens, device=cu_seqlens.device)
    return tokens - starts.repeat_interleave(lengths, output_size=num_tokens), int(lengths.max())


def _check_lengths(lengths: np.ndarray, max_tokens: int) -> None:
    longest, shortest = int(lengths.argmax()), int(lengths.argmin())
    if lengths[longest] > max_tokens:
        raise ValueError(
            f"Trace number {longest} has {lengths[longest]:,} tokens; a row holds max_tokens={max_tokens}. "
            "Raise data.max_tokens or set data.overlong=drop or data.overlong=truncate."
        )
    if lengths[shortest] < 1:
        raise ValueError(
            f"Trace number {shortest} has {lengths[shortest]} tokens; a trace needs at least 1. Remove it."
        )


def _shuffle(num_traces: int, seed: int, epoch: int) -> np.ndarray:
    return chance.permutation("packing", num_traces, seed, epoch)


def _cut_by_tokens(lengths: np.ndarray, num_steps: int) -> np.ndarray:
    """Offsets [num_steps + 1] that cut the traces at equal shares of their tokens, at least one trace a step."""
    middles = np.cumsum(lengths) - lengths / 2
    steps = np.arange(num_steps + 1)
    offsets = np.searchsorted(middles, steps * (lengths.sum() / num_steps))
    offsets[0], offsets[-1] = 0, len(lengths)
    offsets = np.maximum.accumulate(offsets - steps) + steps
    return np.asarray(np.minimum(offsets, len(lengths) - num_steps + steps))


def _deal_rows(rows: list[np.ndarray], num_tokens: list[int], num_steps: int) -> list[list[np.ndarray]]:
    """Rows for each step: the fullest first, each to the step that has the fewest tokens so far."""
    dealt: list[list[np.ndarray]] = [[] for _ in range(num_steps)]
    loads = [(0, step) for step in range(num_steps)]
    for row in sorted(range(len(rows)), key=num_tokens.__getitem__, reverse=True):
        load, step = heapq.heappop(loads)
        dealt[step].append(rows[row])
        heapq.heappush(loads, (load + num_tokens[row], step))
    return dealt


def _fit(segment: Segment, max_tokens: int, overlong: Overlong) -> Segment | None:
    if len(segment) <= max_tokens:
        return segment
    labels = segment.labels[:max_tokens].copy()
    labels[-1] = IGNORE_INDEX
    if overlong == "drop" or (labels == IGNORE_INDEX).all():
        return None
    return Segment(segment.segment_id, segment.input_ids[:max_tokens], labels)
