"""Whole optimizer steps as batches: a data set of steps, and a sampler that needs no state of its own."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from w2sr.packing import EpochPlan, num_loss_tokens, pack_row, plan_epoch, steps_per_epoch
from w2sr.runs import RefusedByAll
from w2sr.types import Segment, StepBatch

STEPS_AHEAD = 2
"""How many steps each worker may be ahead of the training."""


class StepDataset(Dataset[StepBatch]):
    """Item `epoch · num_steps + step` is that optimizer step's share of one rank.

    Args:
        segments: tokenised traces, none longer than a row.
        seed, max_tokens, step_sequences, step_tokens, window: see `plan_epoch`.
        rank, world_size: which rows of a step are this rank's.
        pad_rows: fill every row up to `max_tokens`, for compiled models that want one shape.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        *,
        seed: int,
        max_tokens: int,
        step_sequences: int | None,
        step_tokens: int | None,
        window: int,
        rank: int,
        world_size: int,
        pad_rows: bool = False,
    ) -> None:
        self.segments = segments
        self.lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
        self.loss_tokens = np.array([segment.num_loss_tokens for segment in segments], dtype=np.int64)
        self.rank, self.world_size = rank, world_size
        self.max_tokens, self.pad_rows = max_tokens, pad_rows
        self.num_steps = steps_per_epoch(self.lengths, step_sequences=step_sequences, step_tokens=step_tokens)
        self._arguments: dict[str, Any] = {
            "seed": seed,
            "max_tokens": max_tokens,
            "step_sequences": step_sequences,
            "step_tokens": step_tokens,
            "window": window,
        }
        self._plan: tuple[int, EpochPlan] | None = None
        self._planning = threading.Lock()

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch. The last one asked for is kept."""
        with self._planning:  # workers come to a new epoch together
            if self._plan is None or self._plan[0] != epoch:
                self._plan = (epoch, plan_epoch(self.lengths, epoch=epoch, **self._arguments))
            return self._plan[1]

    def identity(self) -> dict[str, Any]:
        """What decides which traces an optimizer step trains on, in plain types; equal for any number of ranks.

        `max_tokens` counts only where steps are made of rows: with `step_tokens`, or with a window of several steps.
        """
        digest = hashlib.blake2b(digest_size=8)
        for segment, length, num_loss in zip(self.segments, self.lengths, self.loss_tokens, strict=True):
            digest.update(f"{segment.segment_id}|{length}|{num_loss}\n".encode())
        settings = dict(self._arguments)
        if self._arguments["step_tokens"] is None and self._arguments["window"] == 1:
            del settings["max_tokens"]
        return {**settings, "num_traces": len(self.segments), "traces_hash": digest.hexdigest()}

    def __getitem__(self, index: int) -> StepBatch:
        epoch, step = divmod(index, self.num_steps)
        plan = self.plan(epoch)
        rows = plan.rank_rows(step, self.rank, self.world_size)
        pad_to = self.max_tokens if self.pad_rows else None
        members = [int(member) for row in rows for member in row]
        num_tokens = num_loss_tokens(plan.step_rows(step), self.loss_tokens)
        assert num_tokens > 0, f"step {step} of epoch {epoch} has no loss token, but every segment has some"
        return StepBatch(
            rows=[pack_row([self.segments[member] for member in row], pad_to=pad_to) for row in rows],
            num_loss_tokens=num_tokens,
            lengths=tuple(self.lengths[members].tolist()),
            trace_ids=tuple(self.segments[member].segment_id for member in members),
            capacity=len(rows) * self.max_tokens,
        )


def check_same_steps(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises a ValueError where the steps of a checkpoint's run (`StepDataset.identity`) are not the steps of this one.

    The checkpoint says how many steps of the epoch are done. With other traces or another order, the rest of the epoch
    would repeat some traces and leave out others.
    """
    names = [name for name in ours if name in saved and saved[name] != ours[name]]
    if not names:
        return
    was, now = (", ".join(f"{name}={facts[name]}" for name in names) for facts in (saved, ours))
    raise RefusedByAll(
        f"The checkpoint is of a run with other optimizer steps: {was} there, {now} here. The place in the epoch "
        "belongs to the traces and the order of that run. Restore the data configuration of the checkpoint "
        "(config.yaml in its run directory), or start a new run from its exported student."
    )


class StepSampler(Sampler[int]):
    """The steps that remain of the trainer's present epoch: position follows from the number of batches begun.

    A loader with this sampler resumes exactly, mid-epoch and at epoch ends, with any number of workers.
    """

    def __init__(self, dataset: StepDataset, trainer: L.Trainer) -> None:
        self.dataset, self.trainer = dataset, trainer

    def __len__(self) -> int:
        return self.dataset.num_steps

    def __iter__(self) -> Iterator[int]:
        num_epoch_steps = min(self.dataset.num_steps, int(self.trainer.num_training_batches))
        begun = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        epoch, start = divmod(begun, num_epoch_steps)
        yield from (epoch * self.dataset.num_steps + step for step in range(start, num_epoch_steps))


class StepLoader(DataLoader[StepBatch]):
    """The loader of a StepDataset. It begins when its first step is asked for, not when its iterator is made.

    The Trainer makes the iterator while it counts steps for the schedule, before it restores a checkpoint: workers that
    began then would read the progress too early, and pack steps that a resumed run has behind it.

    Workers are threads. Packing is copying, which threads do well, and a process that is forked beside the threads of
    torch and gloo may inherit a lock that nobody opens any more: then it never packs, and all ranks wait for it.

    Raises:
        ValueError: fewer than 0 workers.
    """

    def __init__(self, dataset: StepDataset, trainer: L.Trainer, num_workers: int) -> None:
        if num_workers < 0:
            raise ValueError(f"data.num_workers={num_workers} must be at least 0, which packs between two steps.")
        sampler = StepSampler(dataset, trainer)
        super().__init__(dataset, batch_size=None, sampler=sampler, collate_fn=_unchanged)
        self.num_threads = num_workers

    def __iter__(self) -> Iterator[StepBatch]:  # type: ignore[override]
        if self.num_threads == 0:
            yield from super().__iter__()
            return
        pool, ahead = ThreadPoolExecutor(self.num_threads, "w2sr-loader"), deque[Future[StepBatch]]()
        try:
            for index in self.sampler:
                ahead.append(pool.submit(self.dataset.__getitem__, index))
                if len(ahead) > STEPS_AHEAD * self.num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _unchanged(step: Any) -> Any:
    """The step itself: torch's own conversion makes lists of its tuples."""
    return step


class HeldOutSteps(Dataset[StepBatch]):
    """Held-out traces in their own order, for the teacher-forced validation loss. Every rank has equally many items."""

    def __init__(self, segments: Sequence[Segment], max_tokens: int, rank: int, world_size: int) -> None:
        lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
        plan = plan_epoch(lengths, seed=0, epoch=0, max_tokens=max_tokens, step_sequences=len(segments))
        self.rows = plan.rank_rows(0, rank, world_size)
        self.segments, self.max_tokens = segments, max_tokens

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> StepBatch:
        if index >= len(self.rows):
            raise IndexError(index)
        members = [self.segments[member] for member in self.rows[index]]
        row = pack_row(members)
        loss_tokens = sum(segment.num_loss_tokens for segment in members)
        names = tuple(segment.segment_id for segment in members)
        return StepBatch([row], loss_tokens, tuple(map(len, members)), names, self.max_tokens)
