"""Rules of Pass@k, of the bootstrap and of the recovered gap, on numbers that the eye can check."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from w2sr.metrics import (
    PassAtK,
    ReasoningGapRecovered,
    poisson_weights,
    records_to_result,
    rgr_from_results,
    wilson_interval,
)
from w2sr.metrics.bootstrap import percentile_interval
from w2sr.results import Estimate, ProblemCount, RunResult, write_result
from w2sr.types import EvalRecord, Problem


def record(problem_id: str, sample_index: int = 0, *, correct: bool = True, num_tokens: int = 30) -> EvalRecord:
    verdict = "correct" if correct else "incorrect"
    return EvalRecord(problem_id, "gsm8k", "", sample_index, "…", "stop", num_tokens, "7", "7", verdict, correct)


def problem(problem_id: str, source: str = "gsm8k", stratum: str = "") -> Problem:
    return Problem(problem_id, source, "?", "7", stratum)


def result_of(name: str, pass_rates: dict[str, tuple[int, int]]) -> RunResult:
    base = records_to_result(
        [], [problem("a")], name=name, model="m", num_samples=1, seconds=1.0, command="c", sampling={}, num_bootstrap=5
    )
    counts = {
        i: ProblemCount(right, drawn, "aime24" if i == "z" else "gsm8k") for i, (right, drawn) in pass_rates.items()
    }
    return replace(base, per_problem=counts)


def ids(number: int) -> list[str]:
    return [f"p{i}" for i in range(number)]


# --- intervals ---------------------------------------------------------------------------------------------------


def test_wilson_matches_published_values() -> None:
    # 8 of 10: (0.8 + 0.19207 ± 1.96·sqrt(0.016 + 0.0096)) / 1.38415, the textbook's [0.490, 0.943].
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    # Newcombe 1998, table I: 81 of 263 → [0.2553, 0.3662]; 0 of 20 → [0, 0.1611].
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert wilson_interval(0, 3)[0] == 0.0 and wilson_interval(3, 3)[1] == 1.0


def test_percentiles_leave_undefined_replicates_out() -> None:
    assert percentile_interval(np.array([math.nan, *range(41)], dtype=np.float64)) == pytest.approx((1, 39))
    assert all(map(math.isnan, percentile_interval(np.array([math.nan]))))


def test_bootstrap_weights_are_poisson_of_mean_one() -> None:
    weights = np.concatenate([poisson_weights(i, 500, seed=3) for i in ids(200)])  # 100,000 draws
    for count in range(6):
        expected = math.exp(-1) / math.factorial(count)
        standard_error = math.sqrt(expected * (1 - expected) / len(weights))
        assert abs((weights == count).mean() - expected) < 5 * standard_error


def test_bootstrap_weights_are_a_function_of_seed_and_problem() -> None:
    pinned = [3, 1, 0, 0, 0, 1, 1, 0, 2, 1, 1, 1]
    assert poisson_weights("gsm8k/412", 12, seed=7).tolist() == pinned, "published intervals would change"
    poisson_weights.cache_clear()
    assert poisson_weights("gsm8k/412", 30, seed=7)[:12].tolist() == pinned
    assert poisson_weights("gsm8k/412", 12, seed=8).tolist() != pinned
    assert poisson_weights("gsm8k/413", 12, seed=7).tolist() != pinned
    first, second = poisson_weights("a", 4000, 7).astype(float), poisson_weights("b", 4000, 7).astype(float)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(4000)
    with pytest.raises(ValueError, match="read-only"):
        poisson_weights("a", 4000, 7)[0] = 1


# --- Pass@k ------------------------------------------------------------------------------------------------------


def test_one_sample_a_problem_gives_wilson_per_source_and_stratum() -> None:
    metric = PassAtK(sources=("gsm8k", "aime24"), strata=[("gsm8k", "2 steps")], num_bootstrap=20)
    metric.update(ids(10), ["gsm8k"] * 10, torch.tensor([1] * 8 + [0] * 2), strata=["2 steps"] * 4 + [""] * 6)
    metric.update(["q"], ["aime24"], torch.tensor([0]), strata=[""])
    found = metric.compute()
    assert found["pass@1/gsm8k"] == Estimate(0.8, *wilson_interval(8, 10), 10, "wilson")
    assert found["pass@1/gsm8k/2 steps"] == Estimate(1.0, *wilson_interval(4, 4), 4, "wilson")
    assert found["pass@1/pooled"] == Estimate(8 / 11, *wilson_interval(8, 11), 11, "wilson")
    assert found["pass@1/average"].value == 0.4  # (0.8 + 0) / 2: one problem weighs as much as ten
    assert metric.scalars()["pass@1/pooled"] == 8 / 11


def test_an_expected_source_without_a_problem_is_nan_never_zero() -> None:
    metric = PassAtK(ks=(1, 2), num_samples=3, sources=("gsm8k", "minerva"), num_bootstrap=20)
    metric.update(ids(4), ["gsm8k"] * 4, torch.tensor([3, 0, 1, 2]))
    found = metric.compute()
    for k in (1, 2):
        empty, average = found[f"pass@{k}/minerva"], found[f"pass@{k}/average"]
        assert math.isnan(empty.value) and math.isnan(empty.low) and empty[3:] == (0, "none")
        assert math.isnan(average.value) and math.isnan(average.high) and average.method == "none"
    assert found["pass@1/gsm8k"].value == 0.5  # (3 + 0 + 1 + 2) / 12


def test_the_average_of_sources_has_the_interval_of_its_own_replicates() -> None:
    """Each replicate's mean of two sources' means, by the same draws; the pooled mean is not among them."""
    metric = PassAtK(num_samples=4, sources=("s", "t"), num_bootstrap=60, seed=3)
    right = {"s": [4, 1, 2, 3, 0, 1], "t": [4, 4, 3, 0]}
    of_sources = []
    for source, counts in right.items():
        names = [f"{source}{number}" for number in range(len(counts))]
        metric.update(names, [source] * len(counts), torch.tensor(counts))
        drawn = np.stack([poisson_weights(name, 60, 3) for name in names]).astype(float)
        of_sources.append((np.array(counts) / 4) @ drawn / drawn.sum(0))
    found = metric.compute()["pass@1/average"]
    assert found.method == "bootstrap"
    assert (found.low, found.high) == pytest.approx(percentile_interval(np.mean(of_sources, axis=0)))


def test_intervals_have_1000_replicates_of_seed_0_where_nothing_else_is_asked() -> None:
    """Published intervals were made so."""
    assert (PassAtK(sources=("s",)).num_bootstrap, PassAtK(sources=("s",)).seed) == (1000, 0)
    assert (ReasoningGapRecovered().num_bootstrap, ReasoningGapRecovered().seed) == (1000, 0)
    right = {"floor": lambda n: n % 3, "achieved": lambda n: n % 5 + 1, "ceiling": lambda n: n % 4 + 3}
    arms = {arm: result_of(arm, {i: (of(n), 7) for n, i in enumerate(ids(40))}) for arm, of in right.items()}
    assert rgr_from_results(**arms) == rgr_from_results(**arms, num_bootstrap=1000, seed=0)  # type: ignore[arg-type]
    other = rgr_from_results(**arms, num_bootstrap=1001)  # type: ignore[arg-type]
    assert other != rgr_from_results(**arms), "guard: the number makes a difference"  # type: ignore[arg-type]


def test_where_replicates_cannot_differ_no_interval_pretends_certainty() -> None:
    metric = PassAtK(ks=(1, 4), num_samples=4, sources=("s",), num_bootstrap=20)
    metric.update(ids(9), ["s"] * 9, torch.tensor([4, 1, 2, 3, 4, 1, 2, 3, 4]))
    found = metric.compute()
    assert found["pass@4/s"] == Estimate(1.0, *wilson_interval(9, 9), 9, "wilson")
    assert found["pass@1/s"].method == "bootstrap"
    alone = PassAtK(num_samples=4, sources=("s",), num_bootstrap=20)
    alone.update(["p"], ["s"], torch.tensor([3]))
    estimate = alone.compute()["pass@1/s"]
    assert estimate.value == 0.75 and math.isnan(estimate.low) and estimate[3:] == (1, "none")


def test_padding_of_weight_zero_adds_nothing() -> None:
    metric = PassAtK(num_samples=2, sources=("s",), num_bootstrap=20)
    metric.update(["a", "b", "a"], ["s", "s", "not a source"], torch.tensor([1, 2, 99]), torch.tensor([1, 1, 0]))
    metric.update(["a"], ["s"], torch.tensor([0]), torch.tensor([0]))
    found = metric.compute()["pass@1/s"]
    assert (found.value, found.num_problems) == (0.75, 2)
    with pytest.raises(AssertionError, match="0 or 1"):
        metric.update(["a"], ["s"], torch.tensor([0]), torch.tensor([2]))


@pytest.mark.parametrize("weight", [[1, 1], [1, 1, 2], [1, 0, 1, 1]])
def test_weights_of_another_number_or_value_are_our_mistake(weight: list[int]) -> None:
    with pytest.raises(AssertionError, match="weights must be 0 or 1"):
        PassAtK(sources=("gsm8k",)).update(ids(3), ["gsm8k"] * 3, torch.tensor([1, 0, 1]), torch.tensor(weight))


def test_problems_that_do_not_fit_raise_and_leave_the_sums_alone() -> None:
    metric = PassAtK(num_samples=2, sources=("gsm8k",), strata=[("gsm8k", "easy")], num_bootstrap=20)
    for source, count, stratum, message in [
        ("gsm8k", 3, "easy", r"'p1' has 3 right samples; num_samples=2"),
        ("gsm8k", -1, "easy", r"'p1' has -1 right samples"),
        ("aime24", 1, "easy", r"'p1' is of source 'aime24'; the metric expects \['gsm8k'\]"),
        ("gsm8k", 1, "hard", r"'p1' is of stratum 'hard' of 'gsm8k'; the metric expects \['easy'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric.update(ids(2), ["gsm8k", source], torch.tensor([1, count]), strata=["easy", stratum])
    assert metric.counts.sum() == 0 and metric.replicate_counts.sum() == 0
    with pytest.raises(ValueError, match=r"k=\[3, 0\] needs at least k samples per problem; num_samples=2"):
        PassAtK(ks=(1, 3, 0), num_samples=2, sources=("s",))
    with pytest.raises(ValueError, match=r"would report \['pooled'\] twice"):
        PassAtK(sources=("pooled",))
    with pytest.raises(ValueError, match="Each needs at least one"):
        PassAtK(sources=())


def test_sums_survive_bf16_casts_reset_and_inference_mode() -> None:
    module = torch.nn.Module()
    module.passes = PassAtK(num_samples=3, sources=("s",), num_bootstrap=20)
    module.gap = ReasoningGapRecovered(num_bootstrap=20)
    plain = PassAtK(num_samples=3, sources=("s",), num_bootstrap=20)
    gap_alone = ReasoningGapRecovered(num_bootstrap=20)
    third = {"floor": torch.full((5,), 0.1), "achieved": torch.full((5,), 1 / 3), "ceiling": torch.full((5,), 0.7)}
    with torch.inference_mode():
        module.passes.reset()
        module.gap.reset()
    for metric in (module.passes, plain):
        metric.update(ids(5), ["s"] * 5, torch.tensor([0, 1, 2, 3, 3]))
    for gap in (module.gap, gap_alone):
        gap.update(ids(5), **third)
    module.to(torch.bfloat16)
    with torch.inference_mode():
        for metric in (module.passes, plain):
            metric.update(["q"], ["s"], torch.tensor([1]))
        for gap in (module.gap, gap_alone):
            gap.update(ids(5), **third)
    assert module.gap.totals_AB.dtype == torch.float64
    assert module.passes.compute() == plain.compute()
    assert module.gap.compute() == gap_alone.compute()


# --- the recovered gap ---------------------------------------------------------------------------------------------


def gap_of(floor: list[float], achieved: list[float], ceiling: list[float], kind: str = "RGR") -> ReasoningGapRecovered:
    metric = ReasoningGapRecovered(kind, num_bootstrap=400, seed=2)  # type: ignore[arg-type]
    arms = {"floor": floor, "achieved": achieved, "ceiling": ceiling}
    metric.update(ids(len(floor)), **{arm: torch.tensor(rates) for arm, rates in arms.items()})
    return metric


def test_the_recovered_gap_on_round_numbers() -> None:
    # floor 10/40 = 0.25, achieved 25/40 = 0.625, ceiling 30/40 = 0.75: (0.625 − 0.25) / (0.75 − 0.25) = 0.75.
    found = gap_of([1] * 10 + [0] * 30, [1] * 25 + [0] * 15, [1] * 30 + [0] * 10).compute()
    assert (found.floor, found.achieved, found.ceiling, found.value) == (0.25, 0.625, 0.75, 0.75)
    assert 0.4 < found.low < 0.65 and 0.85 < found.high < 1.0 and found.reason == "" and found.num_problems == 40


def test_beyond_the_ceiling_and_below_the_floor_are_told_as_they_are() -> None:
    assert gap_of([0] * 30 + [1] * 10, [1] * 40, [0] * 10 + [1] * 30).compute().value == 1.5  # 0.75 / 0.5
    assert gap_of([1] * 20 + [0] * 20, [1] * 10 + [0] * 30, [1] * 40).compute().value == -0.5  # −0.25 / 0.5


def test_arms_are_paired_so_that_equal_arms_have_no_spread() -> None:
    rates = [1.0] * 10 + [0.0] * 30
    at_floor = gap_of(rates, rates, [1.0] * 30 + [0.0] * 10).compute()
    assert (at_floor.low, at_floor.value, at_floor.high) == (0.0, 0.0, 0.0)


def test_a_gap_that_is_not_there_is_nan_with_the_reason() -> None:
    found = gap_of([0.5] * 40, [0.7] * 40, [0.25] * 40, "PGR").compute()
    assert math.isnan(found.value) and math.isnan(found.low) and found.nonpositive_frac == 1.0
    assert found.reason == "the ceiling 0.250 is not above the floor 0.500 (weak teacher)"
    empty = ReasoningGapRecovered(num_bootstrap=20)
    empty.update([], floor=torch.zeros(0), achieved=torch.zeros(0), ceiling=torch.zeros(0))
    assert math.isnan(empty.compute().value) and empty.compute().reason == "no problem was given"


def test_an_unstable_gap_is_nan_and_names_the_share() -> None:
    # 30 problems, one more right at the ceiling (4 against 3 others): most replicates see it, about a third do not.
    found = gap_of([1] * 3 + [0] * 27, [0] * 30, [0] * 3 + [1] * 4 + [0] * 23).compute()
    assert 0.05 < found.nonpositive_frac < 0.6 and math.isnan(found.value)
    assert f"≤ 0 in {found.nonpositive_frac:.1%} of the replicates (at most 5%)" in found.reason


def test_padding_of_a_gap_may_hold_anything() -> None:
    metric = ReasoningGapRecovered(num_bootstrap=20)
    arms = {"floor": torch.tensor([0.0, math.nan]), "achieved": torch.tensor([0.5, 9]), "ceiling": torch.ones(2)}
    metric.update(["a", "b"], **arms, weight=torch.tensor([1, 0]))
    assert metric.compute().num_problems == 1 and metric.compute().achieved == 0.5
    with pytest.raises(AssertionError, match=r"lie in \[0, 1\]"):
        metric.update(["a", "b"], **arms)
    with pytest.raises(ValueError, match=r"kind 'rgr' is unknown. Ask for one of \['RGR', 'PGR'\]"):
        ReasoningGapRecovered("rgr")  # type: ignore[arg-type]


def test_rgr_from_results_pairs_by_id_and_reads_files(tmp_path: Path) -> None:
    floor = result_of("plain", {"a": (0, 1), "b": (1, 1), "z": (0, 1)})
    achieved = result_of("P", {"z": (0, 4), "b": (3, 4), "a": (3, 4)})
    ceiling = result_of("RL", {"b": (1, 1), "a": (1, 1), "z": (1, 1)})
    found = rgr_from_results(floor=write_result(floor, tmp_path / "f.json"), achieved=achieved, ceiling=ceiling)
    # floor (0 + 1 + 0)/3, achieved (0.75 + 0.75 + 0)/3, ceiling 1; three problems are too few to be stable.
    assert (found.floor, found.achieved, found.ceiling) == pytest.approx((1 / 3, 0.5, 1.0))
    assert found.num_problems == 3 and "of the replicates" in found.reason
    only = rgr_from_results(floor=floor, achieved=achieved, ceiling=ceiling, source="aime24", kind="PGR")
    assert (only.num_problems, only.floor, only.achieved, only.kind) == (1, 0.0, 0.0, "PGR")


def test_the_order_of_a_result_file_changes_no_interval() -> None:
    def first_are_right(number: int) -> dict[str, tuple[int, int]]:
        return {problem_id: (int(index < number), 1) for index, problem_id in enumerate(ids(40))}

    floor, ceiling = result_of("plain", first_are_right(10)), result_of("RL", first_are_right(30))
    achieved = first_are_right(25)
    ordered = rgr_from_results(floor=floor, achieved=result_of("P", achieved), ceiling=ceiling, seed=5)
    backwards = result_of("P", dict(reversed(achieved.items())))
    assert ordered.value == 0.75 and 0.4 < ordered.low < 0.7
    assert rgr_from_results(floor=floor, achieved=backwards, ceiling=ceiling, seed=5) == ordered


def test_rgr_of_different_problem_sets_raises_with_counts_and_examples() -> None:
    floor, ceiling = result_of("plain", {"a": (0, 1), "b": (1, 1)}), result_of("RL", {"a": (1, 1), "b": (1, 1)})
    message = (
        r"'plain' was evaluated on 2 problems, the achieved 'P' on 3: 1 only in the floor \(such as \['b'\]\), 2 only"
    )
    with pytest.raises(ValueError, match=message):
        rgr_from_results(floor=floor, achieved=result_of("P", {"a": (1, 1), "x": (1, 1), "y": (1, 1)}), ceiling=ceiling)
    with pytest.raises(ValueError, match="the ceiling 'RL' on 1"):
        rgr_from_results(floor=floor, achieved=floor, ceiling=result_of("RL", {"a": (1, 1)}))
    with pytest.raises(ValueError, match="has no problem of source 'minerva'"):
        rgr_from_results(floor=floor, achieved=floor, ceiling=ceiling, source="minerva")


# --- records → result ------------------------------------------------------------------------------------------------


def test_missing_and_failed_samples_are_wrong_never_dropped() -> None:
    problems = [problem("a", stratum="easy"), problem("b"), problem("c"), problem("d", "aime24")]
    cut = replace(record("b", 0, correct=False, num_tokens=90), finish_reason="length")
    records = [record("a", 1), record("a", 0), cut, replace(record("d", 1), num_tokens=-1)]
    result = records_to_result(
        reversed(records),
        problems,
        name="W2SR-P",
        model="runs/p",
        num_samples=2,
        ks=(1, 2),
        seconds=3.5,
        command="test",
        sampling={"temperature": 0.6},
        num_bootstrap=20,
    )
    assert result.per_problem == {
        "a": (2, 2, "gsm8k"), "b": (0, 2, "gsm8k"), "c": (0, 2, "gsm8k"), "d": (1, 2, "aime24")
    }  # fmt: skip
    assert result.estimates["pass@1/pooled"].value == 3 / 8  # 3 right of the 8 samples that were asked for
    assert result.estimates["pass@2/pooled"].value == 2 / 4
    assert result.estimates["pass@1/gsm8k"].value == pytest.approx(1 / 3)
    assert result.estimates["pass@1/gsm8k/easy"].value == 1.0
    assert (result.num_missing_samples, result.finished_frac, result.cut_off_frac) == (4, 3 / 8, 1 / 8)
    assert result.mean_completion_tokens == 50  # (30 + 30 + 90) / 3; one sample did not tell
    assert result.cost.num_generated_tokens == 150 and result.sources == ("gsm8k", "aime24")


def test_more_problems_than_a_chunk_are_all_counted() -> None:
    problems = [problem(i) for i in ids(1100)]
    result = records_to_result(
        [record("p1099")],
        problems,
        name="n",
        model="m",
        num_samples=1,
        seconds=1,
        command="",
        sampling={},
        num_bootstrap=3,
    )
    assert result.estimates["pass@1/pooled"].num_problems == 1100
    assert result.estimates["pass@1/pooled"].value == 1 / 1100


@pytest.mark.parametrize(
    ("records", "problems", "message"),
    [
        ([record("x")], ["a"], r"Sample 0 of problem 'x' is of none of the 1 expected problems"),
        ([record("a", 2)], ["a"], r"Sample 2 of problem 'a' is beyond num_samples=2"),
        ([record("a", 1), record("a", 1)], ["a"], r"Sample 1 of problem 'a' comes twice"),
        ([], ["a", "b", "a"], r"3 problems have 2 different ids; \['a'\] come more than once"),
    ],
)
def test_records_that_do_not_belong_raise(records: list[EvalRecord], problems: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        records_to_result(
            records,
            list(map(problem, problems)),
            name="n",
            model="m",
            num_samples=2,
            seconds=1,
            command="",
            sampling={},
        )
