"""Pass@k, its replicates and the recovered gap against nested loops; two processes against one."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from w2sr.metrics import GapRecovered, PassAtK, ReasoningGapRecovered, pass_at_k, poisson_weights, records_to_result
from w2sr.results import Estimate
from w2sr.types import EvalRecord, Problem

FLOAT_ROUNDING = 1e-12  # sums of a few dozen float64 numbers in [0, 20], in another order


class Row(NamedTuple):
    problem_id: str
    source: str
    stratum: str
    num_correct: int


def some_rows(num_problems: int, num_samples: int, seed: int) -> list[Row]:
    chance = random.Random(seed)
    return [
        Row(
            f"p{i}",
            chance.choice(["gsm8k", "aime24"]),
            chance.choice(["easy", "hard", ""]),
            chance.randint(0, num_samples),
        )
        for i in range(num_problems)
    ]


def metric_for(num_samples: int, ks: tuple[int, ...], num_bootstrap: int = 60) -> PassAtK:
    strata = list(itertools.product(["gsm8k", "aime24"], ["easy", "hard"]))
    sources = ("gsm8k", "aime24")
    return PassAtK(ks=ks, num_samples=num_samples, sources=sources, strata=strata, num_bootstrap=num_bootstrap, seed=11)


def add(metric: PassAtK, rows: list[Row], weight: list[int] | None = None) -> None:
    metric.update(
        [row.problem_id for row in rows],
        [row.source for row in rows],
        torch.tensor([row.num_correct for row in rows], dtype=torch.int64),
        None if weight is None else torch.tensor(weight),
        [row.stratum for row in rows],
    )


def same(left: dict[str, Estimate], right: dict[str, Estimate]) -> bool:
    """Equal to the last bit, NaN included."""
    return repr(left) == repr(right)


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_the_formula_counts_subsets(num_samples: int) -> None:
    for num_correct, k in itertools.product(range(num_samples + 1), range(1, num_samples + 1)):
        samples = [True] * num_correct + [False] * (num_samples - num_correct)
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(num_correct, num_samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_every_value_and_interval_equals_nested_loops() -> None:
    rows = some_rows(41, num_samples=5, seed=3)
    metric = metric_for(5, ks=(1, 3))
    add(metric, rows[:17])
    add(metric, rows[17:])
    found = metric.compute()
    cells = {"pooled": rows}
    for source in ("gsm8k", "aime24"):
        cells[source] = [row for row in rows if row.source == source]
        for stratum in ("easy", "hard"):
            cells[f"{source}/{stratum}"] = [row for row in cells[source] if row.stratum == stratum]
    assert min(len(of_cell) for of_cell in cells.values()) >= 3, "every cell must hold problems"
    assert any(row.stratum == "" for row in rows), "some problems must have no stratum"

    replicates: dict[str, list[float]] = {}
    for k, (name, of_cell) in itertools.product((1, 3), cells.items()):
        key = f"pass@{k}/{name}"
        assert found[key].num_problems == len(of_cell)
        rates = [pass_at_k(row.num_correct, 5, k) for row in of_cell]
        assert found[key].value == pytest.approx(sum(rates) / len(rates), abs=FLOAT_ROUNDING)
        replicates[key] = []
        for b in range(60):
            top, bottom = 0.0, 0
            for row, rate in zip(of_cell, rates, strict=True):
                weight = int(poisson_weights(row.problem_id, 60, seed=11)[b])
                top, bottom = top + weight * rate, bottom + weight
            replicates[key].append(top / bottom if bottom else math.nan)
        low, high = np.nanquantile(replicates[key], [0.025, 0.975])
        assert found[key][1:3] == pytest.approx((low, high), abs=FLOAT_ROUNDING)
        assert found[key].method == "bootstrap" and low < found[key].value < high
    for k in (1, 3):
        gsm8k, aime24 = (np.array(replicates[f"pass@{k}/{source}"]) for source in ("gsm8k", "aime24"))
        average = found[f"pass@{k}/average"]
        assert average.value == pytest.approx(
            (found[f"pass@{k}/gsm8k"].value + found[f"pass@{k}/aime24"].value) / 2, abs=FLOAT_ROUNDING
        )
        assert average[1:3] == pytest.approx(np.quantile((gsm8k + aime24) / 2, [0.025, 0.975]), abs=FLOAT_ROUNDING)
        assert average.value != found[f"pass@{k}/pooled"].value, "sources must differ in size, or the test sees nothing"


def test_order_and_split_change_no_bit() -> None:
    rows = some_rows(23, num_samples=4, seed=5)
    once = metric_for(4, ks=(1, 2))
    add(once, rows)
    shuffled = random.Random(9).sample(rows, len(rows))
    pieces = metric_for(4, ks=(1, 2))
    for start in range(0, 23, 3):
        add(pieces, shuffled[start : start + 3])
    assert same(once.compute(), pieces.compute())


def a_rank(rank: int, world_size: int, folder: str) -> None:
    """Adds every second problem, with one of padding where this rank has one fewer, and writes what it computes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    init = f"file://{folder}/init"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=world_size)
    rows, rates = some_rows(7, num_samples=4, seed=5), some_rates(7)
    own = list(range(rank, 7, world_size))
    weight = [1] * len(own) + [0] * (4 - len(own))
    own += [0] * (4 - len(own))
    passes = metric_for(4, ks=(1, 2))
    add(passes, [rows[i] for i in own], weight)
    gap = ReasoningGapRecovered("RGR", num_bootstrap=60, seed=11)
    add_gap(gap, rates, own, weight)
    found = {"padding": weight.count(0), "passes": repr(passes.compute()), "gap": list(gap.compute())}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def some_rates(num_problems: int) -> dict[str, list[float]]:
    chance = random.Random(1)
    return {
        "floor": [chance.randint(0, 3) / 9 for _ in range(num_problems)],
        "achieved": [chance.randint(2, 7) / 9 for _ in range(num_problems)],
        "ceiling": [chance.randint(6, 9) / 9 for _ in range(num_problems)],
    }


def add_gap(metric: ReasoningGapRecovered, rates: dict[str, list[float]], own: list[int], weight: list[int]) -> None:
    columns = {arm: torch.tensor([of_arm[i] for i in own], dtype=torch.float64) for arm, of_arm in rates.items()}
    metric.update([f"p{i}" for i in own], **columns, weight=torch.tensor(weight))


def test_two_processes_with_an_odd_number_of_problems_equal_one(tmp_path: Path) -> None:
    mp.spawn(a_rank, args=(2, str(tmp_path)), nprocs=2)
    ranks: list[dict[str, Any]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["padding"] for rank in ranks] == [0, 1]
    passes, gap = metric_for(4, ks=(1, 2)), ReasoningGapRecovered("RGR", num_bootstrap=60, seed=11)
    add(passes, some_rows(7, num_samples=4, seed=5))
    add_gap(gap, some_rates(7), list(range(7)), [1] * 7)
    alone = gap.compute()
    assert alone.num_problems == 7 and 0 < alone.low < alone.value < alone.high
    for rank in ranks:
        assert rank["passes"] == repr(passes.compute())
        assert rank["gap"][1:9] == pytest.approx(list(alone)[1:9], abs=FLOAT_ROUNDING)


def test_the_recovered_gap_equals_nested_loops() -> None:
    rates = some_rates(9)
    metric = ReasoningGapRecovered("PGR", num_bootstrap=80, seed=4)
    add_gap(metric, rates, list(range(9)), [1] * 9)
    found: GapRecovered = metric.compute()
    floor, achieved, ceiling = (sum(rates[arm]) / 9 for arm in ("floor", "achieved", "ceiling"))
    assert found.value == pytest.approx((achieved - floor) / (ceiling - floor), abs=FLOAT_ROUNDING)
    ratios = []
    for b in range(80):
        totals = dict.fromkeys(rates, 0.0)
        for i, arm in itertools.product(range(9), rates):
            totals[arm] += int(poisson_weights(f"p{i}", 80, seed=4)[b]) * rates[arm][i]
        ratios.append((totals["achieved"] - totals["floor"]) / (totals["ceiling"] - totals["floor"]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=FLOAT_ROUNDING)
    assert found.nonpositive_frac == 0 and found.reason == "" and found.kind == "PGR"


def test_bootstrap_intervals_cover_the_truth_about_95_times_in_100() -> None:
    """300 simulated evaluations of 80 problems × 4 samples; the true Pass@1 is the mean of Uniform(0, 1): 0.5."""
    chance = np.random.default_rng(17)
    ids = [f"p{i}" for i in range(80)]
    covered = 0
    for trial in range(300):
        metric = PassAtK(num_samples=4, sources=("s",), num_bootstrap=200, seed=trial)
        num_correct = chance.binomial(4, chance.uniform(size=80))
        metric.update(ids, ["s"] * 80, torch.from_numpy(num_correct))
        estimate = metric.compute()["pass@1/s"]
        covered += estimate.low <= 0.5 <= estimate.high
    # Standard error of the share: sqrt(.95 · .05 / 300) = 0.013; percentile intervals run about 0.01 short.
    assert 0.90 <= covered / 300 <= 0.985


def test_real_answers_of_seven_models_give_the_counted_shares(shared_data: Path) -> None:
    with gzip.open(shared_data / "traces" / "zeroeval_gsm8k_weak_to_strong.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    right: dict[str, dict[str, bool]] = {}
    for line in lines:
        right.setdefault(line["model"], {})[line["id"]] = line["exact_match"]
    results = {}
    for model, answers in right.items():
        problems = [Problem(i, "gsm8k", "", "") for i in answers]
        records = [
            EvalRecord(i, "gsm8k", "", 0, "", "unknown", -1, None, "", "correct" if ok else "incorrect", ok)
            for i, ok in answers.items()
        ]
        results[model] = records_to_result(
            records, problems, name=model, model=model, num_samples=1, seconds=0.0, command="", sampling={}
        )
        estimate = results[model].estimates["pass@1/gsm8k"]
        assert estimate.value == sum(answers.values()) / 1319 and estimate.num_problems == 1319
        assert 0.01 < estimate.high - estimate.low < 0.06
    assert round(results["Qwen2-72B-Instruct"].estimates["pass@1/gsm8k"].value, 4) == 0.9265
    assert len(results) == 7
