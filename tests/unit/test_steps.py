"""Steps as batches: what a step holds, where the sampler begins, and equal counts on every rank."""

from __future__ import annotations

import multiprocessing
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from w2sr.datamodules import steps
from w2sr.datamodules.sources import problem_loader
from w2sr.datamodules.steps import HeldOutSteps, StepDataset, StepLoader, StepSampler
from w2sr.types import IGNORE_INDEX, Problem, Segment, StepBatch


def segment(number: int, length: int, num_loss: int) -> Segment:
    input_ids = np.arange(length) + 100 * number
    labels = np.append(input_ids[1:], IGNORE_INDEX)
    labels[: length - 1 - num_loss] = IGNORE_INDEX
    return Segment(f"t{number}", input_ids, labels)


SEGMENTS = [segment(number, length, 1 + number % 3) for number, length in enumerate([9, 4, 7, 3, 8, 5, 6, 4, 9, 2, 7])]
"""11 traces: 4 steps of 3, the last with 2."""


def dataset(rank: int = 0, world_size: int = 1, kind: type[StepDataset] = StepDataset, **changes: Any) -> StepDataset:
    arguments = {"seed": 5, "max_tokens": 12, "step_sequences": 3, "step_tokens": None, "window": 1, **changes}
    return kind(SEGMENTS, rank=rank, world_size=world_size, **arguments)


def trainer_at(begun: int, num_training_batches: float = 4) -> Any:
    """As much of a trainer as the sampler reads."""
    loop = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=begun)))
    return SimpleNamespace(num_training_batches=num_training_batches, fit_loop=SimpleNamespace(epoch_loop=loop))


def test_an_epoch_holds_every_trace_once_in_another_order_each_time() -> None:
    steps = dataset()
    epochs = [[name for step in range(4) for name in steps[4 * epoch + step].trace_ids] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(segment.segment_id for segment in SEGMENTS)
    assert epochs[0] != epochs[1]


def test_a_step_says_what_it_holds() -> None:
    """The denominator, the lengths and the capacity follow from the step's traces and rows."""
    by_name = {segment.segment_id: segment for segment in SEGMENTS}
    steps = dataset()
    for index in range(8):
        step = steps[index]
        assert len(step.trace_ids) == (2 if index % 4 == 3 else 3)
        assert step.lengths == tuple(len(by_name[name]) for name in step.trace_ids)
        assert step.num_loss_tokens == sum(by_name[name].num_loss_tokens for name in step.trace_ids)
        assert step.capacity == 12 * len(step.rows)
        assert sum(int((row.labels != IGNORE_INDEX).sum()) for row in step.rows) == step.num_loss_tokens
        assert sum(len(row.input_ids) for row in step.rows) == sum(step.lengths)


def test_padded_rows_have_one_shape() -> None:
    rows = [row for index in range(4) for row in dataset(pad_rows=True)[index].rows]
    assert {len(row.input_ids) for row in rows} == {12}


def test_ranks_share_a_step_and_its_denominator() -> None:
    for index in range(4):
        whole = dataset()[index]
        for world_size in (2, 3):
            parts = [dataset(rank, world_size)[index] for rank in range(world_size)]
            assert sorted(name for part in parts for name in part.trace_ids) == sorted(whole.trace_ids)
            assert {part.num_loss_tokens for part in parts} == {whole.num_loss_tokens}
            assert len({len(part.rows) for part in parts}) == 1


def test_any_order_of_asking_gives_the_same_steps() -> None:
    """A resumed run asks for the middle first; a kept plan or window must not leak into another epoch's."""
    straight, jumping = dataset(window=2), dataset(window=2)
    expected = {index: straight[index].trace_ids for index in range(12)}
    for index in (9, 2, 3, 10, 0, 7, 1, 11):
        assert jumping[index].trace_ids == expected[index], index


def test_a_step_without_loss_tokens_cannot_pass() -> None:
    bare = Segment("bare", np.arange(4), np.full(4, IGNORE_INDEX))
    steps = StepDataset(
        [bare, bare], seed=0, max_tokens=9, step_sequences=2, step_tokens=None, window=1, rank=0, world_size=1
    )
    with pytest.raises(AssertionError, match="step 0 of epoch 0 has no loss token"):
        steps[0]


@pytest.mark.parametrize(
    ("begun", "expected"),
    [(0, [0, 1, 2, 3]), (1, [1, 2, 3]), (3, [3]), (4, [4, 5, 6, 7]), (6, [6, 7]), (11, [11])],
)
def test_the_sampler_goes_on_where_the_trainer_is(begun: int, expected: list[int]) -> None:
    sampler = StepSampler(dataset(), trainer_at(begun))
    assert list(sampler) == expected
    assert len(sampler) == 4


def test_the_sampler_keeps_to_the_first_steps_of_an_epoch_under_limit_train_batches() -> None:
    """3 of 4 steps an epoch: after 5 batches the second epoch's third step comes, item 4 + 2."""
    assert list(StepSampler(dataset(), trainer_at(5, num_training_batches=3))) == [6]
    assert list(StepSampler(dataset(), trainer_at(6, num_training_batches=3))) == [8, 9, 10]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_reads_the_progress_when_its_first_step_is_asked_for(num_workers: int) -> None:
    """Lightning makes the iterator before it knows the number of batches, and before it restores a checkpoint."""
    trainer = trainer_at(0, num_training_batches=float("inf"))
    loader = StepLoader(dataset(), trainer, num_workers)
    iterator = iter(loader)
    trainer.num_training_batches = 4
    trainer.fit_loop.epoch_loop.batch_progress.total.ready = 6
    expected = dataset()
    assert [step.trace_ids for step in iterator] == [expected[6].trace_ids, expected[7].trace_ids]
    assert len(loader) == 4


class Counts(StepDataset):
    """Writes down which items were made."""

    def __getitem__(self, index: int) -> StepBatch:
        MADE.append(index)
        return super().__getitem__(index)


MADE: list[int] = []


def test_workers_are_threads_that_stay_a_few_steps_ahead_and_end_with_the_loop() -> None:
    MADE.clear()
    trainer = trainer_at(0, num_training_batches=30)
    iterator = iter(StepLoader(dataset(kind=Counts, step_sequences=1, step_tokens=None), trainer, num_workers=2))
    assert MADE == []
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert 1 <= len(MADE) <= 1 + 2 * steps.STEPS_AHEAD
    assert not multiprocessing.active_children(), "a process beside torch's threads may hang"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("w2sr-loader")]


def test_fewer_workers_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.num_workers=-1 must be at least 0"):
        StepLoader(dataset(), trainer_at(0), num_workers=-1)


def test_what_a_worker_raises_is_raised_where_the_step_is_asked_for() -> None:
    class Fails(StepDataset):
        def __getitem__(self, index: int) -> StepBatch:
            raise OSError(f"step {index} cannot be read")

    with pytest.raises(OSError, match="step 0 cannot be read"):
        next(iter(StepLoader(dataset(kind=Fails), trainer_at(0), num_workers=1)))


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
def test_held_out_traces_are_each_scored_once_in_equally_many_batches(world_size: int) -> None:
    parts = [HeldOutSteps(SEGMENTS, 12, rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    batches: list[StepBatch] = [batch for part in parts for batch in part]
    assert sorted(name for batch in batches for name in batch.trace_ids) == sorted(s.segment_id for s in SEGMENTS)
    assert all(len(batch.rows) == 1 for batch in batches)
    num_loss = sum(int((row.labels != IGNORE_INDEX).sum()) for batch in batches for row in batch.rows)
    assert num_loss == sum(batch.num_loss_tokens for batch in batches) == sum(s.num_loss_tokens for s in SEGMENTS)


def test_more_ranks_than_held_out_rows() -> None:
    """The rank without traces gets a row of padding that weighs nothing."""
    part = HeldOutSteps(SEGMENTS[:1], 12, rank=1, world_size=2)
    assert len(part) == 1
    assert part[0].trace_ids == () and part[0].num_loss_tokens == 0
    assert (part[0].rows[0].labels == IGNORE_INDEX).all()
    with pytest.raises(IndexError):
        part[1]


PROBLEMS = [Problem(f"p{number}", "quiz", "?", "1") for number in range(7)]


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 3), (2, 3), (3, 2), (4, 5), (8, 2)])
def test_problems_are_each_asked_once_in_equally_many_batches(world_size: int, batch_size: int) -> None:
    loaders = [problem_loader(PROBLEMS, batch_size, rank, world_size) for rank in range(world_size)]
    shapes = [[len(batch.problems) for batch in loader] for loader in loaders]
    assert all(shape == shapes[0] for shape in shapes), "equally many batches of equal size"
    assert max(shapes[0]) <= batch_size
    asked = [pair for loader in loaders for batch in loader for pair in zip(*batch, strict=True)]
    assert sorted(problem.problem_id for problem, weight in asked if weight == 1.0) == [p.problem_id for p in PROBLEMS]
    assert {weight for _, weight in asked} <= {0.0, 1.0}
    assert len(asked) == -(-7 // world_size) * world_size
