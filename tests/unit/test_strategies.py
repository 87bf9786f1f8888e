"""Strategies of selection beyond the verdict: bands, the best by a score, mixtures, equal counts, several teachers."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from w2sr.selection import GateRow, Gates, Portion, Selection, select
from w2sr.types import Trace, VerdictLabel


def trace(problem: int, teacher: str = "a", answer: str | None = "7", sample: int = 0, **changes: Any) -> Trace:
    """A trace of a problem whose right answer is 7."""
    verdict: VerdictLabel = "no_answer" if answer is None else "correct" if answer in ("7", "7.0") else "incorrect"
    values: dict[str, Any] = {
        "completion": f"{teacher} {sample} says {answer} to {problem}",
        "finish_reason": "stop",
        "num_tokens": 10,
        "verdict": verdict,
        **changes,
    }
    return Trace(
        f"p{problem:02}", "toy", f"problem {problem}", "7", teacher, sample_index=sample, answer=answer, **values
    )


def chosen(traces: list[Trace], **options: Any) -> Selection:
    return select(traces, **{"keep": "all", **options})


def names(selection: Selection) -> list[str]:
    """'p01a' for problem 1 of teacher a, with the sample where it is not the first."""
    return [t.problem_id + t.teacher + (str(t.sample_index) or "") * bool(t.sample_index) for t in selection.traces]


TEN = [trace(number) for number in range(10)]
TENTHS = {"quality": {t.trace_id: int(t.problem_id[1:]) / 10 for t in TEN}}
"""Problem k has quality k / 10."""


# --- scores


@pytest.mark.parametrize(
    ("band", "kept"), [([0.3, 0.6], "3456"), ([None, 0.2], "012"), ([0.8, None], "89"), ([0.5, 0.5], "5")]
)
def test_a_band_is_inclusive_and_may_be_open(band: list[float | None], kept: str) -> None:
    assert names(chosen(TEN, score={"quality": band}, scores=TENTHS)) == [f"p0{digit}a" for digit in kept]


def test_a_trace_without_a_value_is_in_no_band() -> None:
    scores = {"quality": {**TENTHS["quality"], TEN[4].trace_id: math.nan}}
    selection = chosen(TEN, score={"quality": [None, None]}, scores=scores)
    assert len(selection.traces) == 9
    assert selection.table[-2:] == [GateRow("score.quality in [null, null]", 10, 1, 9), GateRow("dedupe", 9, 0, 9)]


def test_the_best_of_all_and_the_best_of_each_problem() -> None:
    traces = [trace(problem, sample=sample) for problem in (1, 2) for sample in range(4)]
    # problem 1: .0 .1 .2 .3; problem 2: .4 .5 .6 .7
    scores = {"quality": {t.trace_id: index / 10 for index, t in enumerate(traces)}}
    assert names(chosen(traces, top_frac={"quality": 0.25}, scores=scores)) == ["p02a2", "p02a3"]
    within = chosen(traces, top_frac={"quality": 0.25}, top_within="problem", scores=scores)
    assert names(within) == ["p01a3", "p02a3"]
    # rounded up: 0.3 of 8 are 2.4, so 3; 0.3 of 4 are 1.2, so 2 of each
    assert len(chosen(traces, top_frac={"quality": 0.3}, scores=scores).traces) == 3
    assert len(chosen(traces, top_frac={"quality": 0.3}, top_within="problem", scores=scores).traces) == 4


def test_the_share_is_of_the_traces_that_have_a_value_and_is_the_decimal_that_was_written() -> None:
    many = [trace(number) for number in range(100)]
    scores = {"quality": {t.trace_id: float(index) for index, t in enumerate(many)}}
    assert 0.07 * 100 > 7  # what a float makes of it would be rounded up to 8
    assert len(chosen(many, top_frac={"quality": 0.07}, scores=scores).traces) == 7
    scores["quality"].update({t.trace_id: math.nan for t in many[40:]})
    assert names(chosen(many, top_frac={"quality": 0.05}, scores=scores)) == ["p38a", "p39a"]


def test_ties_are_broken_by_seed_and_not_by_name() -> None:
    scores = {"quality": {t.trace_id: 0.5 for t in TEN}}
    picks = Counter(names(chosen(TEN, top_frac={"quality": 0.1}, scores=scores, seed=seed))[0] for seed in range(60))
    assert len(picks) >= 7
    half, third = (set(names(chosen(TEN, top_frac={"quality": share}, scores=scores, seed=3))) for share in (0.5, 0.3))
    assert third < half


# --- mixtures and controls


def test_a_mixture_of_the_right_and_the_best_third_of_the_wrong() -> None:
    """4 right ones and 6 wrong ones of quality .4 to .9: the best third of these are 8 and 9."""
    traces = [trace(number, answer="7" if number < 4 else "8") for number in range(10)]
    mix: list[Any] = [{"keep": "P"}, Portion(keep="N", top_frac={"quality": 0.33})]
    scores = {"quality": {t.trace_id: int(t.problem_id[1:]) / 10 for t in traces}}
    selection = chosen(traces, mix=mix, scores=scores)
    assert names(selection) == ["p00a", "p01a", "p02a", "p03a", "p08a", "p09a"]
    assert selection.table == [
        GateRow("keep=all", 10, 0, 10),
        GateRow("finish=stop", 10, 0, 10),
        GateRow("not_looping", 10, 0, 10),
        GateRow("dedupe", 10, 0, 10),
        GateRow("mix 1: keep=P", 10, 6, 4),
        GateRow("mix 2: keep=N", 10, 4, 6),
        GateRow("mix 2: top_frac.quality=0.33 (within all)", 6, 4, 2),
        GateRow("mix of 2", 10, 4, 6),
    ]
    # what two parts choose is kept once
    assert len(chosen(traces, mix=[{"keep": "P"}, {"keep": "all", "num_traces": 10}]).traces) == 10


def test_a_part_of_a_mixture_has_bands_caps_and_counts_of_its_own() -> None:
    traces = [trace(1, sample=sample, num_tokens=10 + sample) for sample in range(5)]
    assert names(chosen(traces, mix=[{"min_tokens": 13}, {"max_tokens": 11, "num_traces": 1}]))[1:] == [
        "p01a3",
        "p01a4",
    ]
    assert names(chosen(traces, mix=[{"max_per_problem": 2, "choose": "longest"}])) == ["p01a3", "p01a4"]
    assert names(chosen(traces, mix=[{"max_per_problem": 2}], max_per_problem=1)) == ["p01a"]


def test_as_many_as_another_verdict_keeps() -> None:
    """7 right, 3 wrong of which 1 was cut off: the same gates keep 2 wrong ones, so 2 right ones are drawn."""
    traces = [trace(n, answer="7" if n < 7 else "8", finish_reason="length" if n == 9 else "stop") for n in range(10)]
    selection = chosen(traces, keep="P", match_count_of="N", seed=4)
    assert len(selection.traces) == 2 and {t.verdict for t in selection.traces} == {"correct"}
    assert selection.table[-1] == GateRow("num_traces=2 (match_count_of=N, seed 4)", 7, 5, 2)
    assert names(selection) == names(chosen(traces, keep="P", num_traces=2, seed=4))
    with pytest.raises(ValueError, match=r"num_traces=7 \(match_count_of=P, seed 0\): 2 traces are there"):
        chosen(traces, keep="N", match_count_of="P")
    with pytest.raises(ValueError, match="match_count_of=N: these gates keep no trace"):
        chosen(traces[:7], keep="P", match_count_of="N")


def test_verdicts_of_references_and_of_votes_are_told_apart() -> None:
    traces = [trace(n, grader="label-free:vote" if n < 3 else "exact") for n in range(10)]
    assert chosen(traces).num_label_free == 3
    assert names(chosen(traces, verdicts="label-free")) == ["p00a", "p01a", "p02a"]
    selection = chosen(traces, verdicts="reference")
    assert (len(selection.traces), selection.num_label_free) == (7, 0)
    assert selection.table[0] == GateRow("verdicts=reference", 10, 3, 7)


# --- several teachers


def test_no_teacher_comes_first_because_of_its_name() -> None:
    traces = [trace(number, teacher) for number in range(60) for teacher in "abc"]
    shares = Counter(t.teacher for t in chosen(traces, max_per_problem=1).traces)
    assert sum(shares.values()) == 60 and all(12 <= shares[teacher] <= 28 for teacher in "abc"), shares
    # the first sample of another teacher comes before the second one of the same
    twice = [trace(number, teacher, sample=sample) for number in range(30) for teacher in "ab" for sample in (0, 1)]
    assert {t.sample_index for t in chosen(twice, max_per_problem=2).traces} == {0}
    # and of equal texts another teacher's stays each time
    same = [trace(number, teacher, completion=f"text {number}") for number in range(60) for teacher in "ab"]
    assert 18 <= Counter(t.teacher for t in chosen(same).traces)["a"] <= 42


VOTES = [
    *(trace(1, teacher, answer) for teacher, answer in zip("abcde", ["7", "7.0", "8", "7", None], strict=True)),
    *(trace(2, teacher, answer) for teacher, answer in zip("abcde", ["8", "8", "7", "7", "9"], strict=True)),
    *(trace(3, teacher, answer) for teacher, answer in zip("abcde", ["8", "8", "8", "7", "7"], strict=True)),
    *(trace(4, teacher, answer) for teacher, answer in zip("abcde", ["7", "7", None, None, None], strict=True)),
]
"""Problem 1: 7 by 3 of 5, spelled in two ways. 2: a tie. 3: the wrong 8 by 3 of 5. 4: 7 by 2 of 5, others silent."""


def test_vote_drops_minorities_ties_and_what_has_too_small_a_share() -> None:
    selection = chosen(VOTES, ensemble="vote")
    assert names(selection) == ["p01a", "p01b", "p01d", "p03a", "p03b", "p03c"]
    assert selection.table[0] == GateRow("ensemble=vote (min_share 0.5)", 20, 14, 6)
    assert names(chosen(VOTES, ensemble="vote", min_share=0.4))[-2:] == ["p04a", "p04b"]
    assert names(chosen(VOTES, ensemble="vote", min_share=0.6)) == names(selection)
    # votes are counted before keep: the majority of all, and of it what is right
    assert names(chosen(VOTES, ensemble="vote", keep="P")) == ["p01a", "p01b", "p01d"]
    assert names(chosen(VOTES, ensemble="vote", keep="N")) == ["p03a", "p03b", "p03c"]


def test_agreement_gives_every_teacher_one_vote() -> None:
    """a says 8 five times; b and c say 7 once each. By traces 8 wins with 5 of 7, by teachers 7 with 2 of 3."""
    traces = [trace(1, "a", "8", sample=sample) for sample in range(5)] + [trace(1, "b"), trace(1, "c")]
    assert {t.answer for t in chosen(traces, ensemble="vote").traces} == {"8"}
    assert names(chosen(traces, ensemble="agreement")) == ["p01b", "p01c"]


def test_answers_are_compared_as_the_key_says() -> None:
    traces = [trace(1, "a", "1/2"), trace(1, "b", "0.5"), trace(1, "c", "x"), trace(1, "d", "1/2")]
    assert names(chosen(traces, ensemble="vote", min_share=0.7)) == ["p01a", "p01b", "p01d"]
    assert names(chosen(traces, ensemble="vote", answer_kind="exact")) == ["p01a", "p01d"]
    options = [trace(1, "a", "(B)"), trace(1, "b", "B"), trace(1, "c", "C")]
    assert names(chosen(options, ensemble="vote", answer_kind="choice")) == ["p01a", "p01b"]


def test_best_takes_the_teacher_with_the_highest_mean_score() -> None:
    """Of problem 1, a has .1 and .9 (mean .5), b has .6; of problem 2, a has .3 and b no value."""
    traces = [trace(1, "a"), trace(1, "a", sample=1), trace(1, "b"), trace(2, "a"), trace(2, "b")]
    values = dict(zip((t.trace_id for t in traces), (0.1, 0.9, 0.6, 0.3, math.nan), strict=True))
    options = {"ensemble": "best", "ensemble_score": "quality"}
    assert names(chosen(traces, scores={"quality": values}, **options)) == ["p01b", "p02a"]
    values[traces[2].trace_id] = 0.4
    assert names(chosen(traces, scores={"quality": values}, **options)) == ["p01a", "p01a1", "p02a"]


def test_round_robin_deals_problems_by_share() -> None:
    traces = [trace(number, teacher) for number in range(20) for teacher in "ab"]
    selection = chosen(traces, ensemble="round_robin", teacher_shares={"a": 0.7, "b": 0.3})
    assert Counter(t.teacher for t in selection.traces) == {"a": 14, "b": 6}
    assert len({t.problem_id for t in selection.traces}) == 20
    assert selection.table[-1] == GateRow("ensemble=round_robin (a 0.7, b 0.3)", 40, 20, 20)
    equal = chosen(traces, ensemble="round_robin", seed=1)
    assert Counter(t.teacher for t in equal.traces) == {"a": 10, "b": 10}
    assert names(equal) != names(chosen(traces, ensemble="round_robin", seed=2))
    # who has no trace of a problem leaves it to the others
    few = [t for t in traces if t.teacher == "a" or t.problem_id in ("p03", "p04")]
    dealt = chosen(few, ensemble="round_robin", teacher_shares={"b": 0.9, "a": 0.1})
    assert Counter(t.teacher for t in dealt.traces) == {"a": 18, "b": 2}
    with pytest.raises(ValueError, match=r"teacher_shares names c, of whom no trace is left here. There are .* a, b"):
        chosen(traces, ensemble="round_robin", teacher_shares={"a": 0.5, "c": 0.5})


STRATEGIES: list[dict[str, Any]] = [
    {"score": {"quality": [0.2, 0.8]}},
    {"top_frac": {"quality": 0.4}, "top_within": "problem"},
    {"mix": [{"keep": "P", "num_traces": 3}, {"keep": "N", "top_frac": {"quality": 0.5}}]},
    {"keep": "P", "match_count_of": "N"},
    *(
        {"ensemble": rule, "ensemble_score": "quality"}
        for rule in ("union", "vote", "agreement", "best", "round_robin")
    ),
]


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_every_strategy_is_a_function_of_the_set_of_traces(options: dict[str, Any]) -> None:
    rng = random.Random(5)
    traces = [trace(n, teacher, rng.choice("778")) for n in range(20) for teacher in "abc"]
    scores = {"quality": {t.trace_id: rng.choice([0.1, 0.5, 0.9, math.nan]) for t in traces}}
    expected = chosen(traces, **options, scores=scores, seed=6)
    assert 0 < len(expected.traces) <= 60
    for seed in range(3):
        shuffled = random.Random(seed).sample(traces, len(traces))
        again = chosen(shuffled, **options, scores=scores, seed=6)
        assert names(again) == names(expected) and again.table == expected.table


def test_what_cannot_be_asked_is_refused() -> None:
    for options, message in (
        ({"ensemble": "most"}, "ensemble='most' must be one of union, vote, agreement, best, round_robin"),
        ({"score": {"quality": [0.9, 0.1]}}, r"score.quality=\[0.9, 0.1\] must be \[least, greatest\]"),
        ({"score": {"quality": [0.9]}}, r"score.quality=\[0.9\] must be"),
        ({"top_frac": {"quality": 33}}, r"top_frac.quality=33 must be a share in \(0, 1\]"),
        ({"mix": [{"keep": "P"}, {"keep": "n"}]}, "mix 2: keep='n' must be one of"),
        ({"mix": [{"max_per_problem": 0}]}, "mix 1: max_per_problem=0 must be at least 1"),
        ({"top_frac": {"likelihood": 0.5}}, "asks for the score 'likelihood', which was not given. Given: quality"),
        ({"match_count_of": "N", "num_traces": 3}, "match_count_of and num_traces both say"),
        ({"teacher_shares": {"a": 1.0}}, "teacher_shares are for ensemble=round_robin; it is 'union'"),
        ({"ensemble": "round_robin", "teacher_shares": {"a": 0.0}}, "must all be above 0"),
        ({"ensemble": "vote", "min_share": 50}, r"min_share=50 must be a share in \[0, 1\]"),
        ({"mix": [{"keep": "N"}]}, "keeps no trace(.|\n)*mix 1: keep=N +10 +10 +0"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen(TEN, scores=TENTHS, **options)
    with pytest.raises(ValueError, match="'p09@a#0' has no score 'quality'"):
        chosen(TEN, scores={"quality": {t.trace_id: 0.5 for t in TEN[:9]}}, top_frac={"quality": 0.5})


def test_what_is_asked_for_cannot_be_changed_afterwards() -> None:
    """The same gates are asked in every process and written into the run's directory."""
    for asked in (Gates(), Portion("P")):
        with pytest.raises(FrozenInstanceError):
            asked.max_tokens = 3  # type: ignore[misc]


def test_gates_know_what_they_need() -> None:
    gates = Gates(score={"difficulty": (0.2, None)}, mix=(Portion(top_frac={"structure": 0.5}), Portion(min_tokens=3)))
    assert gates.need_scores == {"difficulty", "structure"} and gates.need_tokens
    assert Gates(ensemble="best", ensemble_score="likelihood").need_scores == {"likelihood"}
    assert not Gates().need_scores and not Gates(mix=(Portion(),)).need_tokens
    for choose, counts in {"first": False, "random": False, "shortest": True, "longest": True}.items():
        assert Gates(max_per_problem=2, choose=choose).need_tokens == counts  # type: ignore[arg-type]
        assert not Gates(choose=choose).need_tokens, "without a cap nothing is chosen"  # type: ignore[arg-type]
