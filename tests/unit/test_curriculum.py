"""Which problems are asked next: passes, the band of pass rates, and going on from a state."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from w2sr.curriculum import Curriculum, DynamicSampling, ProblemStream, is_dead, pass_rate_by_stratum
from w2sr.types import Problem

NUM = 23


def problems(num: int = NUM) -> list[Problem]:
    return [Problem(f"p/{index}", "p", "?", "1", f"level {index % 3}") for index in range(num)]


def stream(seed: int = 5, num: int = NUM, **band: float) -> ProblemStream:
    return ProblemStream(problems(num), seed, Curriculum(**band))


def test_every_pass_asks_each_problem_once_in_an_order_of_its_own() -> None:
    taken = stream().take(4 * NUM)
    passes = [taken[start : start + NUM] for start in range(0, 4 * NUM, NUM)]
    assert all(sorted(one) == list(range(NUM)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4 and passes[0] != list(range(NUM))


def test_how_many_are_taken_at_once_changes_nothing() -> None:
    whole, parts = stream().take(70), stream()
    assert [index for count in (1, 30, 0, 7, 32) for index in parts.take(count)] == whole


def test_the_order_is_one_of_ids_and_not_of_the_file() -> None:
    there = [problems()[index].problem_id for index in stream().take(2 * NUM)]
    reversed_file = problems()[::-1]
    other = ProblemStream(reversed_file, 5)
    assert [reversed_file[index].problem_id for index in other.take(2 * NUM)] == there
    assert stream(seed=6).take(NUM) != stream(seed=5).take(NUM)


def test_the_order_is_close_to_uniform() -> None:
    """Each of 4 problems comes first in about a quarter of 2,000 passes: 500, standard deviation 19.4."""
    taken = np.array(stream(num=4).take(4 * 2_000)).reshape(-1, 4)
    firsts = np.bincount(taken[:, 0], minlength=4)
    assert (np.abs(firsts - 500) < 5 * 19.4).all(), firsts
    # and it is independent of what came first in the pass before: 16 pairs, 125 each, standard deviation 10.8
    pairs = np.bincount(4 * taken[:-1, 0] + taken[1:, 0], minlength=16)
    assert (np.abs(pairs - 125) < 5 * 10.8).all(), pairs


def test_statistics_are_sums_and_a_decayed_rate() -> None:
    one = stream(decay=0.25)
    one.record("p/4", 3, 4, 7)
    assert one.pass_rate[4] == 0.75, "the first group is all that is known"
    one.record("p/4", 1, 8, 9)
    assert one.pass_rate[4] == 0.25 * 0.75 + 0.75 * 0.125
    assert (one.num_sampled[4], one.num_correct[4], one.last_round[4]) == (12, 4, 9)
    others = np.arange(NUM) != 4
    assert np.isnan(one.pass_rate[others]).all() and not one.num_sampled[others].any()
    assert (one.last_round[others] == -1).all()
    assert (stream(decay=0.0).record("p/1", 0, 2, 0), one.num_sampled[1]) == (None, 0), "streams share nothing"


def test_problems_outside_of_the_band_are_asked_with_the_chance_of_keep_frac() -> None:
    one = stream(num=40, low=0.2, high=0.8, keep_frac=0.25)
    rates = {0: 0, 1: 10, 2: 2, 3: 8, 4: 5}  # of 10: outside, outside, on the edges, inside
    for index, num_correct in rates.items():
        one.record(f"p/{index}", num_correct, 10, 0)
    assert one.num_wanted() == 38, "40 without the two outside"
    passes = 400
    counts = np.zeros(40, dtype=int)
    # 38 are asked in every pass, so the stream is in pass 400 after at most 400 · 40 problems
    while one.state_dict()["pass"] < passes:
        counts[one.take(1)] += 1
    assert (counts[2:] >= passes).all() and (counts[2:] <= passes + 1).all()
    # 400 · 0.25 = 100, standard deviation 8.7
    assert all(abs(counts[index] - 100) < 5 * 8.7 for index in (0, 1)), counts[:2]


def test_a_kept_problem_stands_anywhere_in_its_pass() -> None:
    """The chance to be kept is another than the one of the order: the mean place is the middle of the pass."""
    one = stream(num=21, high=0.5, keep_frac=0.25)
    one.record("p/0", 4, 4, 0)
    places = []
    while one.state_dict()["pass"] < 400:
        if one.take(1) == [0]:
            places.append((one.state_dict()["next"] - 1) / 20)
    # about 100 places, uniform in [0, 1]: mean 0.5, standard deviation 0.29 / 10
    assert len(places) > 60 and abs(sum(places) / len(places) - 0.5) < 5 * 0.029, places


def test_whether_a_problem_is_kept_depends_on_nothing_but_seed_pass_and_id() -> None:
    """Other problems in the band or out of it, other statistics: the same passes ask the problem."""

    def passes_that_ask(one: ProblemStream, index: int) -> list[int]:
        found = []
        while one.state_dict()["pass"] < 60:
            if one.take(1) == [index]:
                found.append(one.state_dict()["pass"])
        return [number for number in found if number < 60]

    alone, among = stream(high=0.5, keep_frac=0.3), stream(high=0.5, keep_frac=0.3)
    alone.record("p/3", 4, 4, 0)
    for index in (3, 8, 11):
        among.record(f"p/{index}", 7, 8, 2)
    asked = passes_that_ask(alone, 3)
    assert passes_that_ask(among, 3) == asked and 5 < len(asked) < 35
    other = stream(high=0.5, keep_frac=0.3)
    other.record("p/8", 4, 4, 0)
    assert passes_that_ask(other, 8) != asked


def test_a_stream_whose_problems_are_all_outside_still_goes_on() -> None:
    one = stream(low=0.5, keep_frac=0.001)
    for index in range(NUM):
        one.record(f"p/{index}", 0, 4, 0)
    assert len(one.take(10)) == 10
    assert one.state_dict()["pass"] > 100, "10 of about 10,000 questions are kept"


def test_the_default_asks_all_whatever_their_rates() -> None:
    one = stream()
    for index in range(NUM):
        one.record(f"p/{index}", 4 * (index % 2), 4, 0)
    assert one.take(2 * NUM) == stream().take(2 * NUM)


def drive(one: ProblemStream, rounds: range) -> list[list[int]]:
    """Rounds of 5 problems, whose rates follow from their index."""
    asked = []
    for number in rounds:
        asked.append(one.take(5))
        for index in asked[-1]:
            one.record(f"p/{index}", index % 5, 4 + index % 3, number)
    return asked


@pytest.mark.parametrize("stopped_at", [0, 1, 7, 23])
def test_a_loaded_stream_goes_on_bit_for_bit(stopped_at: int, tmp_path: Any) -> None:
    whole, first = stream(low=0.2, high=0.7), stream(low=0.2, high=0.7)
    asked = drive(whole, range(40))
    assert drive(first, range(stopped_at)) == asked[:stopped_at]
    torch.save(first.state_dict(), tmp_path / "state.ckpt")
    again = stream(low=0.2, high=0.7)
    again.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert drive(again, range(stopped_at, 40)) == asked[stopped_at:]
    # as JSON, because NaN does not equal itself
    assert json.dumps(again.state_dict()) == json.dumps(whole.state_dict())
    assert len({tuple(sorted(one)) for one in asked}) > 20, "the rounds differ"


def test_a_state_is_a_copy() -> None:
    one = stream()
    state = one.state_dict()
    drive(one, range(3))
    assert state["next"] == 0 and not any(state["num_sampled"])


@pytest.mark.parametrize("others", [problems(NUM - 1), problems()[::-1], [*problems()[:-1], problems(99)[-1]]])
def test_a_state_of_other_problems_is_refused(others: list[Problem]) -> None:
    with pytest.raises(ValueError, match=rf"a run on 23 problems.*data\.problems now gives {len(others)}"):
        ProblemStream(others, 5).load_state_dict(stream().state_dict())


def test_a_state_of_another_seed_is_refused_and_another_band_is_not() -> None:
    with pytest.raises(ValueError, match=r"data\.seed=5, and data\.seed is 6 now"):
        stream(seed=6).load_state_dict(stream(seed=5).state_dict())
    stream(low=0.4).load_state_dict(stream(low=0.1).state_dict())


@pytest.mark.parametrize(
    "band",
    [{"low": 0.6, "high": 0.5}, {"high": 1.1}, {"low": -0.1}, {"keep_frac": 0.0}, {"keep_frac": 2}, {"decay": 1.0}],
)
def test_wrong_bands_are_refused(band: dict[str, float]) -> None:
    key, value = next(iter(band.items()))
    with pytest.raises(ValueError, match=rf"data\.curriculum needs .*{key}={value}"):
        Curriculum(**band)


def test_no_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="no problem to ask"):
        ProblemStream([], 0)


def test_metrics_say_what_is_known() -> None:
    one = stream(num=4, low=0.5)
    assert one.metrics() == {"curriculum/pass": 0.0, "curriculum/known_frac": 0.0}
    one.take(5)
    one.record("p/0", 1, 1, 0)  # level 0
    one.record("p/3", 0, 4, 0)  # level 0
    one.record("p/1", 3, 4, 0)  # level 1
    assert one.metrics() == {
        "curriculum/pass": 1.0,
        "curriculum/known_frac": 0.75,
        "curriculum/in_band_frac": 2 / 3,
        "curriculum/pass_rate": (1 + 0 + 0.75) / 3,
        "curriculum/pass_rate/level 0": 0.5,
        "curriculum/pass_rate/level 1": 0.75,
    }


def test_a_stratum_of_unknown_problems_is_left_out() -> None:
    rates = np.array([np.nan, 0.25, np.nan, 0.75])
    assert pass_rate_by_stratum(["a", "b", "a", ""], rates) == {"": 0.5, "b": 0.25}
    assert pass_rate_by_stratum(["a"], np.array([np.nan])) == {}


def test_a_group_is_dead_where_all_rewards_are_equal() -> None:
    assert is_dead(np.full(8, 0.1)) and is_dead(np.array([-3.0]))
    assert not is_dead(np.array([0.1, 0.1, 0.1 + 1e-16, 0.2]))
    with pytest.raises(ValueError, match="max_batches=0"):
        DynamicSampling(max_batches=0)
