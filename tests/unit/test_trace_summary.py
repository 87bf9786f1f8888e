"""Counts of traces against counts by hand, and samples whose size and choice can be checked by eye."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from w2sr.selection import GateRow
from w2sr.trace_summary import length_bins, stratified_sample, summarize
from w2sr.types import Trace

RIGHT = Trace("a/1", "a", "1 + 1?", "2", "weak", r"\boxed{2}", "stop", num_tokens=30, answer="2", answer_rule="boxed")
RIGHT = replace(RIGHT, verdict="correct", grader="exact")


def many(**counts: int) -> list[Trace]:
    """So many traces of each verdict, mixed."""
    names = [name for name, count in counts.items() for _ in range(count)]
    random.Random(3).shuffle(names)
    return [
        replace(RIGHT, problem_id=f"a/{at}", verdict="" if name == "unverified" else name)
        for at, name in enumerate(names)
    ]


def test_everything_is_counted() -> None:
    traces = [
        RIGHT,
        replace(RIGHT, sample_index=1, completion=r"again \boxed{2}", num_tokens=31),
        replace(RIGHT, problem_id="a/2", verdict="incorrect", finish_reason="unknown", num_tokens=34),
        replace(RIGHT, problem_id="b/3", source="b", teacher="other", verdict="no_answer", answer=None, answer_rule=""),
        replace(RIGHT, problem_id="b/4", source="b", verdict="", completion="so it goes on. " * 60, num_tokens=900),
        replace(RIGHT, problem_id="b/5", source="b", finish_reason="length", grader="label-free:majority"),
    ]
    summary = summarize(traces)
    assert (summary.num_traces, summary.num_problems, summary.num_unverified) == (6, 5, 1)
    assert summary.by_verdict == {"correct": 3, "incorrect": 1, "no_answer": 1, "unverified": 1}
    assert summary.verdicts_by_teacher == {
        "weak": {"correct": 3, "incorrect": 1, "unverified": 1},
        "other": {"no_answer": 1},
    }
    assert list(summary.verdicts_by_teacher) == ["weak", "other"]  # the larger first
    assert summary.verdicts_by_source["b"] == {"no_answer": 1, "unverified": 1, "correct": 1}
    assert summary.by_finish == {"stop": 4, "length": 1, "unknown": 1}
    assert summary.cut_off_frac == 1 / 5  # of the five whose end is known
    assert summary.num_looping == 1
    assert summary.by_rule == {"boxed": 5}
    assert summary.by_label_free_grader == {"label-free:majority": {"correct": 1}}
    # lengths 30 30 30 31 34 900: the lower median is the third, and one of six is a tail of its own
    assert (summary.lengths.unit, summary.lengths.median, summary.lengths.longest) == ("tokens", 30, 900)
    assert summary.lengths.bins == ((30, 31), (31, 32), (32, 33), (33, 34), (34, 35), (35, None))
    assert summary.lengths.counts == (3, 1, 0, 0, 1, 1)


def test_gates_are_those_of_select_on_the_verified_traces() -> None:
    traces = [*many(correct=4, incorrect=2), replace(RIGHT, problem_id="cut", finish_reason="length")]
    gates = summarize([*traces, replace(RIGHT, problem_id="bare", verdict="")]).gates
    assert gates["P"][:2] == [GateRow("keep=P", 7, 2, 5), GateRow("finish=stop", 5, 1, 4)]
    assert gates["N"][0] == GateRow("keep=N", 7, 5, 2)
    only_right = summarize(many(correct=4)).gates["N"]
    assert isinstance(only_right, str) and only_right.startswith("The selection keeps no trace")
    assert summarize(many(unverified=3)).gates == {}


def test_unknown_lengths_are_counted_in_characters_and_unknown_ends_are_nan() -> None:
    traces = [replace(RIGHT, finish_reason="unknown"), replace(RIGHT, sample_index=1, num_tokens=-1, completion="ab")]
    summary = summarize([replace(trace, finish_reason="unknown") for trace in traces])
    assert (summary.lengths.unit, summary.lengths.median, summary.lengths.longest) == ("characters", 2, 9)
    assert math.isnan(summary.cut_off_frac)


@pytest.mark.parametrize("lengths", [[0], [7, 7, 7], list(range(0, 5_000, 7)), [3] * 99 + [10**6], [0, 10**9]])
def test_every_length_lies_in_one_bin(lengths: list[int]) -> None:
    bins = length_bins(lengths)
    assert 1 <= len(bins) <= 13
    assert all(high == low for (_, high), (low, _) in pairwise(bins))
    widths = {high - low for low, high in bins if high is not None}
    assert len(widths) == 1 and str(widths.pop()).rstrip("0") in ("1", "2", "5")
    for length in lengths:
        assert sum(low <= length and (high is None or length < high) for low, high in bins) == 1
    assert bins[0][0] <= lengths[0] < bins[0][1]


def test_a_sample_has_the_share_of_each_verdict_in_the_order_given() -> None:
    traces = many(correct=700, incorrect=250, no_answer=49, timeout=1)
    sample = stratified_sample(traces, 100)
    # one each, then 96 by shares of 996: 699/996·96 = 67.4, 249/996·96 = 24.0, 48/996·96 = 4.6, 0
    assert Counter(trace.verdict for trace in sample) == {"correct": 68, "incorrect": 25, "no_answer": 6, "timeout": 1}
    places = [traces.index(trace) for trace in sample]
    assert places == sorted(places) and places != list(range(100))
    reversed_sample = stratified_sample(traces[::-1], 100)
    assert {trace.trace_id for trace in reversed_sample} == {trace.trace_id for trace in sample}


@pytest.mark.parametrize("num_wanted", [1, 2, 3, 4, 5, 17, 60, 99, 100, 5_000])
def test_a_sample_has_the_size_asked_for(num_wanted: int) -> None:
    traces = many(correct=60, incorrect=37, unverified=3)
    sample = stratified_sample(traces, num_wanted)
    assert len(sample) == len({trace.trace_id for trace in sample}) == min(num_wanted, 100)
    assert len({trace.verdict for trace in sample}) == min(num_wanted, 3)


def test_an_impossible_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="--limit 0 asks for no trace"):
        stratified_sample(many(correct=3), 0)
    with pytest.raises(ValueError, match="no trace to summarize"):
        summarize([])
