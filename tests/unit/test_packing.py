"""Packing: every trace once, rows never overfull, one plan everywhere; boundaries; the report of what is lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr.packing import (
    EpochPlan,
    best_fit_decreasing,
    boundaries,
    handle_overlong,
    num_loss_tokens,
    pack_row,
    plan_epoch,
    steps_per_epoch,
)
from w2sr.types import IGNORE_INDEX, Segment

SEED = 23
MAX_TOKENS = 50

lengths_lists = st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=90)


def all_rows(plan: EpochPlan) -> list[list[list[int]]]:
    return [[row.tolist() for row in plan.step_rows(step)] for step in range(plan.num_steps)]


def long_tailed_lengths(num_traces: int) -> np.ndarray:
    return np.clip(np.random.default_rng(4).lognormal(2.5, 0.8, num_traces), 1, MAX_TOKENS).astype(np.int64)


def make_segment(name: str, num_tokens: int, num_prompt: int) -> Segment:
    """Ids count up from 100; the labels of the completion are the ids that follow."""
    input_ids = np.arange(100, 100 + num_tokens)
    labels = np.append(input_ids[1:], IGNORE_INDEX)
    labels[: num_prompt - 1] = IGNORE_INDEX
    return Segment(name, input_ids, labels)


# ---- the plan


@settings(max_examples=150, deadline=None)
@given(
    lengths=lengths_lists,
    size=st.integers(1, 40),
    by_tokens=st.booleans(),
    window=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_every_trace_once_no_row_overfull_no_step_empty(
    lengths: list[int], size: int, by_tokens: bool, window: int, epoch: int
) -> None:
    step_size = {"step_tokens": size * 7} if by_tokens else {"step_sequences": size}
    traces = np.array(lengths)
    plan = plan_epoch(traces, seed=SEED, epoch=epoch, max_tokens=MAX_TOKENS, window=window, **step_size)
    steps = all_rows(plan)
    assert sorted(trace for rows in steps for row in rows for trace in row) == list(range(len(lengths)))
    assert all(traces[row].sum() <= MAX_TOKENS for rows in steps for row in rows)
    assert all(rows and all(rows) for rows in steps)
    assert len(steps) == plan.num_steps == steps_per_epoch(traces, **step_size)


def test_steps_hold_step_sequences_traces_and_the_last_one_the_rest() -> None:
    plan = plan_epoch(long_tailed_lengths(31), seed=SEED, epoch=1, max_tokens=MAX_TOKENS, step_sequences=9)
    assert [sum(map(len, rows)) for rows in all_rows(plan)] == [9, 9, 9, 4]


def test_step_tokens_cuts_at_equal_shares_in_the_same_number_of_steps_every_epoch() -> None:
    lengths = long_tailed_lengths(700)
    num_steps = -(-int(lengths.sum()) // 450)
    assert num_steps > 10  # the interesting case: many steps
    share = lengths.sum() / num_steps
    for epoch in range(6):
        plan = plan_epoch(lengths, seed=SEED, epoch=epoch, max_tokens=MAX_TOKENS, step_tokens=450)
        step_tokens = [sum(int(lengths[row].sum()) for row in rows) for rows in all_rows(plan)]
        assert len(step_tokens) == num_steps
        # Each of the two cuts of a step is off by at most half a trace.
        assert max(abs(tokens - share) for tokens in step_tokens) <= lengths.max()


def test_step_tokens_smaller_than_a_trace_gives_one_trace_a_step() -> None:
    plan = plan_epoch(np.array([9, 9, 9]), seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_tokens=4)
    assert [len(rows) for rows in all_rows(plan)] == [1, 1, 1]


def test_step_tokens_leaves_no_step_empty_beside_a_long_trace() -> None:
    # 41 tokens in 5 steps of 8.2: the trace of 30 covers more than three of those shares.
    lengths = np.array([30, 3, 3, 3, 2])
    for seed in range(8):
        plan = plan_epoch(lengths, seed=seed, epoch=0, max_tokens=MAX_TOKENS, step_tokens=9)
        assert [sum(map(len, rows)) for rows in all_rows(plan)] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("window", [1, 3])
def test_the_same_plan_for_world_sizes_1_2_4(window: int) -> None:
    lengths = long_tailed_lengths(150)
    plan = plan_epoch(lengths, seed=SEED, epoch=2, max_tokens=MAX_TOKENS, step_sequences=17, window=window)
    padded = 0
    for step in range(plan.num_steps):
        rows = sorted(row.tolist() for row in plan.step_rows(step))
        for world_size in (1, 2, 4):
            ranks = [plan.rank_rows(step, rank, world_size) for rank in range(world_size)]
            assert {len(rank) for rank in ranks} == {-(-len(rows) // world_size)}
            dealt = [row.tolist() for rank in ranks for row in rank]
            assert sorted(row for row in dealt if row) == rows
            assert dealt.count([]) == -len(rows) % world_size
            padded += dealt.count([])
    assert padded > 0  # some step did not divide by its ranks


def test_ranks_get_like_rows_at_the_same_time() -> None:
    # One trace a row, costs in the order of the lengths: 48 47 | 46 45 | 44 43, dealt back and forth.
    lengths = np.array([43, 48, 45, 46, 47, 44])
    plan = plan_epoch(lengths, seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_sequences=6)
    ranks = [[int(lengths[row].sum()) for row in plan.rank_rows(0, rank, 2)] for rank in (0, 1)]
    assert ranks == [[48, 45, 44], [47, 46, 43]]


def test_rows_are_dealt_by_cost_and_not_in_packing_order() -> None:
    # Packed as 30 (nothing fits beside it) and 26 + 24.
    plan = plan_epoch(np.array([30, 26, 24]), seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_sequences=3)
    assert [sorted(row.tolist()) for row in plan.rank_rows(0, 0, 1)] == [[1, 2], [0]]


def test_of_rows_with_equal_tokens_the_one_with_more_attention_is_dealt_first() -> None:
    # Packed as 30 + 10 + 10 (squares: 1,100) and 27 + 23 (1,258).
    plan = plan_epoch(np.array([30, 10, 10, 27, 23]), seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_sequences=5)
    assert [sorted(row.tolist()) for row in plan.rank_rows(0, 0, 1)] == [[3, 4], [0, 1, 2]]


def test_a_window_deals_the_fullest_row_to_the_step_with_fewest_tokens() -> None:
    # One trace a row: 50 | 49, 48 joins 49, 30 and 28 join 50 (108 > 97), 26 joins 97.
    lengths = np.array([26, 50, 28, 49, 30, 48])
    plan = plan_epoch(lengths, seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_sequences=3, window=2)
    assert [[int(lengths[row].sum()) for row in plan.step_rows(step)] for step in (0, 1)] == [
        [50, 30, 28],
        [49, 48, 26],
    ]


@pytest.mark.parametrize("window", [1, 4])
def test_the_rows_of_a_step_follow_from_its_number_alone(window: int) -> None:
    lengths = long_tailed_lengths(200)

    def plan() -> EpochPlan:
        return plan_epoch(lengths, seed=SEED, epoch=5, max_tokens=MAX_TOKENS, step_sequences=13, window=window)

    in_order = all_rows(plan())
    for step in (11, 2, 15, 3):
        assert [row.tolist() for row in plan().step_rows(step)] == in_order[step]
    backwards = plan()
    assert [[row.tolist() for row in backwards.step_rows(step)] for step in reversed(range(16))] == in_order[::-1]


def test_a_caller_cannot_change_the_plan() -> None:
    plan = plan_epoch(long_tailed_lengths(20), seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_sequences=20)
    rows = plan.step_rows(0)
    num_rows = len(rows)
    rows.clear()
    assert len(plan.step_rows(0)) == num_rows


def test_epochs_and_seeds_shuffle_differently() -> None:
    lengths = np.full(40, 3)
    orders = {
        tuple(plan_epoch(lengths, seed=seed, epoch=epoch, max_tokens=9, step_sequences=40).order.tolist())
        for seed in (5, 6)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6


def test_the_shuffle_is_fixed_for_ever() -> None:
    """A checkpoint written today must find the same plan after an upgrade of any library."""
    plan = plan_epoch(np.full(8, 3), seed=11, epoch=3, max_tokens=9, step_sequences=8)
    assert plan.order.tolist() == [2, 3, 5, 0, 7, 6, 4, 1]


def test_a_window_fills_rows_better_and_keeps_its_steps_even() -> None:
    lengths = long_tailed_lengths(960)

    def plan(window: int) -> EpochPlan:
        return plan_epoch(lengths, seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_sequences=24, window=window)

    assert plan(8).fill() > plan(1).fill() + 0.02
    loads = [sum(int(lengths[row].sum()) for row in rows) for rows in all_rows(plan(8))[:8]]
    assert max(loads) - min(loads) <= MAX_TOKENS


def test_a_window_with_fewer_rows_than_steps_is_packed_step_by_step() -> None:
    plan = plan_epoch(np.full(6, 4), seed=SEED, epoch=0, max_tokens=MAX_TOKENS, step_sequences=2, window=3)
    assert [[len(row) for row in rows] for rows in all_rows(plan)] == [[2], [2], [2]]


def test_fill_counts_trace_tokens_over_capacity() -> None:
    # 6 + 4 fill one row of 10, 5 stands alone: 15 of 20.
    plan = plan_epoch(np.array([5, 4, 6]), seed=SEED, epoch=0, max_tokens=10, step_sequences=3)
    assert plan.fill() == 0.75


def test_num_loss_tokens_sums_over_all_rows() -> None:
    rows = [np.array([2, 0]), np.array([], dtype=np.int64), np.array([3])]
    assert num_loss_tokens(rows, np.array([1, 10, 100, 1000])) == 1101


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_tokens": 100}, "step_sequences=3 and step_tokens=100: exactly one"),
        ({"step_sequences": None}, "step_sequences=None and step_tokens=None: exactly one"),
        ({"step_sequences": 0}, "size 0 is empty"),
        ({"lengths": np.array([], dtype=np.int64)}, "no traces to plan"),
        ({"lengths": np.array([8, 61, 9])}, "Trace number 1 has 61 tokens; a row holds max_tokens=50. Raise"),
        ({"lengths": np.array([8, 9, 0])}, "Trace number 2 has 0 tokens"),
        ({"seed": -1}, "seed=-1"),
        ({"window": 0}, "window=0"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(change: dict, message: str) -> None:
    arguments = {"lengths": np.array([8, 9]), "seed": 1, "epoch": 0, "max_tokens": MAX_TOKENS, "step_sequences": 3}
    arguments |= change
    with pytest.raises(ValueError, match=message):
        plan_epoch(arguments.pop("lengths"), **arguments)


# ---- best fit


def naive_best_fit_decreasing(lengths: list[int], max_tokens: int) -> list[int]:
    """One item at a time: of the rows that hold it, the one with least room, among equals the one that changed last."""
    room: list[int] = []
    changed: list[int] = []
    row_of_item = []
    for time, length in enumerate(lengths):
        candidates = [row for row in range(len(room)) if room[row] >= length]
        if not candidates:
            room.append(max_tokens)
            changed.append(time)
            candidates = [len(room) - 1]
        row = min(candidates, key=lambda row: (room[row], -changed[row]))
        room[row] -= length
        changed[row] = time
        row_of_item.append(row)
    return row_of_item


@settings(max_examples=400, deadline=None)
@given(lengths=lengths_lists, spread=st.integers(1, MAX_TOKENS))
def test_best_fit_equals_one_item_at_a_time(lengths: list[int], spread: int) -> None:
    items = sorted(((length - 1) % spread + 1 for length in lengths), reverse=True)  # a small spread repeats lengths
    row_of_item, num_rows = best_fit_decreasing(items, MAX_TOKENS)
    expected = naive_best_fit_decreasing(items, MAX_TOKENS)
    assert row_of_item == expected
    assert num_rows == max(expected) + 1


def test_best_fit_prefers_the_fuller_row() -> None:
    # Rows 6 (room 4) and 7 (room 3): the 3 goes to the second, the 4 to the first.
    assert best_fit_decreasing([7, 6, 4, 3], 10) == ([0, 1, 1, 0], 2)


def test_fill_on_real_lengths_is_near_the_lower_bound(shared_data: Path) -> None:
    with gzip.open(shared_data / "traces" / "zeroeval_gsm8k_weak_to_strong.jsonl.gz", "rt", encoding="utf-8") as lines:
        lengths = np.array([json.loads(line)["n_tokens_qwen"] for line in lines])
    assert len(lengths) == 9233
    plan = plan_epoch(lengths, seed=SEED, epoch=0, max_tokens=4096, step_sequences=len(lengths))
    assert len(plan.step_rows(0)) <= 1.01 * lengths.sum() / 4096 + 1
    assert plan_epoch(lengths, seed=SEED, epoch=0, max_tokens=4096, step_sequences=128, window=8).fill() > 0.95


# ---- overlong


def test_overlong_error_names_the_trace_and_the_ways_out() -> None:
    segments = [make_segment("a", 6, 2), make_segment("gsm8k/412@t#3", 9218, 40), make_segment("c", 12, 2)]
    with pytest.raises(ValueError) as caught:
        handle_overlong(segments, 8, "error")
    assert str(caught.value) == (
        "Trace 'gsm8k/412@t#3' has 9,218 tokens; a row holds max_tokens=8. Raise data.max_tokens or set "
        "data.overlong=drop or data.overlong=truncate. (1 more of 3 traces are too long.)"
    )


def test_overlong_error_passes_segments_that_fit_exactly() -> None:
    segments = [make_segment("a", 8, 2)]
    kept, report = handle_overlong(segments, 8, "error")
    assert kept == segments
    assert (report.num_overlong, report.num_tokens_lost, report.num_tokens) == (0, 0, 8)


def test_overlong_drop_counts_traces_and_tokens() -> None:
    segments = [make_segment("a", 6, 2), make_segment("b", 9, 2), make_segment("c", 8, 2), make_segment("d", 20, 2)]
    kept, report = handle_overlong(segments, 8, "drop")
    assert [segment.segment_id for segment in kept] == ["a", "c"]
    assert (report.num_traces, report.num_overlong, report.num_dropped, report.num_truncated) == (4, 2, 2, 0)
    assert (report.num_tokens_lost, report.num_tokens, report.num_answers_lost) == (29, 43, 0)
    assert report.num_without_loss == 0, "what is dropped whole was not emptied by truncation"


def test_overlong_truncate_cuts_the_tail_and_counts_what_is_lost() -> None:
    #          fits                    keeps 8 of 11           a prompt of 8 leaves no completion
    segments = [make_segment("a", 6, 2), make_segment("b", 11, 3), make_segment("c", 9, 8)]
    kept, report = handle_overlong(segments, 8, "truncate")
    assert kept[0] is segments[0]
    assert kept[1].input_ids.tolist() == [100, 101, 102, 103, 104, 105, 106, 107]
    # Two prompt positions before the last one carry no label; neither does the last token kept: its follower is gone.
    assert kept[1].labels.tolist() == [-100, -100, 103, 104, 105, 106, 107, -100]
    assert len(kept) == 2
    assert (report.num_overlong, report.num_truncated, report.num_dropped, report.num_without_loss) == (2, 1, 1, 1)
    assert (report.num_answers_lost, report.num_tokens_lost) == (1, 12)
    assert segments[1].labels[7] == 108  # the caller's segment is untouched
    assert str(report) == (
        "2 of 3 traces are longer than a row (max_tokens=8, overlong=truncate): 1 dropped (1 of them because "
        "truncation left no loss token), 1 truncated, 1 answers and stop tokens lost, 12 of 26 tokens lost."
    )


def test_an_unknown_way_with_overlong_traces_is_refused() -> None:
    with pytest.raises(ValueError, match="overlong='cut' is unknown"):
        handle_overlong([], 8, "cut")  # type: ignore[arg-type]


# ---- rows


def test_pack_row_concatenates_and_pads_with_a_segment_of_its_own() -> None:
    batch = pack_row([make_segment("a", 4, 2), make_segment("b", 3, 1)], pad_to=9)
    assert batch.input_ids.tolist() == [100, 101, 102, 103, 100, 101, 102, 0, 0]
    assert batch.labels.tolist() == [-100, 102, 103, -100, 101, 102, -100, -100, -100]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 9]
    assert batch.max_seqlen == 4
    assert (batch.input_ids.dtype, batch.labels.dtype, batch.position_ids.dtype) == (torch.int64,) * 3
    assert batch.cu_seqlens.dtype == torch.int32


def test_padding_may_be_the_longest_segment() -> None:
    assert pack_row([make_segment("a", 4, 2)], pad_to=40).max_seqlen == 36


@pytest.mark.parametrize(("pad_to", "num_tokens"), [(None, 1), (7, 7)])
def test_an_empty_row_is_one_padding_segment_without_loss(pad_to: int | None, num_tokens: int) -> None:
    batch = pack_row([], pad_to=pad_to)
    assert batch.cu_seqlens.tolist() == [0, num_tokens]
    assert batch.labels.tolist() == [IGNORE_INDEX] * num_tokens
    assert batch.position_ids.tolist() == list(range(num_tokens))


def test_a_full_row_gets_no_padding_segment() -> None:
    assert pack_row([make_segment("a", 4, 2)], pad_to=4).cu_seqlens.tolist() == [0, 4]


def test_a_row_longer_than_pad_to_is_refused() -> None:
    with pytest.raises(ValueError, match="1 segments have 5 tokens; the row is padded to pad_to=4"):
        pack_row([make_segment("a", 5, 2)], pad_to=4)


def test_a_segment_whose_last_label_crosses_its_end_is_ours_to_fix() -> None:
    segment = make_segment("a", 4, 2)
    segment.labels[-1] = 5
    with pytest.raises(AssertionError, match="a: its last label"):
        pack_row([segment])


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=8), padding=st.integers(0, 9))
def test_packing_conserves_tokens_and_labels(lengths: list[int], padding: int) -> None:
    segments = [make_segment(str(at), length, 1) for at, length in enumerate(lengths)]
    batch = pack_row(segments, pad_to=sum(lengths) + padding)
    assert int((batch.labels != IGNORE_INDEX).sum()) == sum(segment.num_loss_tokens for segment in segments)
    for segment, start, end in zip(segments, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=False):
        assert batch.input_ids[start:end].tolist() == segment.input_ids.tolist()
        assert batch.labels[start:end].tolist() == segment.labels.tolist()
        assert batch.labels[end - 1] == IGNORE_INDEX


def test_boundaries_must_span_the_row() -> None:
    with pytest.raises(AssertionError, match="does not span 6"):
        boundaries(torch.tensor([0, 2, 5], dtype=torch.int32), 6)
