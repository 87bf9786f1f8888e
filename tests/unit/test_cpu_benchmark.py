"""The pure parts of `benchmarks/cpu.py`: rounds, table, verdicts, and the baseline file. Nothing is timed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import cpu
    import cpu_baseline
    from cpu_baseline import Recorded
finally:
    sys.path.remove(str(BENCHMARKS))

RECORDED = Recorded(0.5, 0.45, 0.55, 3, 0.2, 1.5, {"python": "3.11", "trl": "1.0"})


def costs(*seconds: float) -> Iterator[float]:
    return iter(seconds)


def test_sides_run_in_turns_and_ratios_are_round_by_round() -> None:
    order: list[str] = []
    given = {"w2sr": costs(1.0, 4.0), "peer": costs(2.0, 16.0), "limit": costs(0.5, 1.0)}

    def side(name: str) -> float:
        order.append(name)
        return next(given[name])

    sides = {name: (lambda name=name: side(name)) for name in given}
    rows = {"beside the peer": ("w2sr", "peer"), "limit": ("w2sr", "limit")}
    beside, limit = cpu.measured(cpu.Benchmark(sides, rows), rounds=2)
    assert order == ["w2sr", "peer", "limit"] * 2  # ours runs once a round, not once a row
    assert beside.ratios == [0.5, 0.25]  # 1/2, 4/16
    assert limit.ratios == [2.0, 4.0]


def test_a_row_whose_peer_is_not_installed_is_said_to_be_skipped() -> None:
    (row,) = cpu.measured(cpu.Benchmark({"w2sr": lambda: 1.0, "TRL": None}, {"SFT": ("w2sr", "TRL")}), rounds=1)
    assert row.ratios == []
    cells = cpu.line(row, RECORDED, "")
    assert (len(cells), cells[0], cells[-1]) == (len(cpu.HEADER), "SFT", "skipped: a side is not installed")


def test_a_line_shows_medians_the_spread_and_the_baseline() -> None:
    row = cpu.Row("SFT", "w2sr", "TRL", (1.0, 1.2, 3.0), (2.0, 2.0, 4.0))  # ratios 0.5, 0.6, 0.75
    assert cpu.line(row, RECORDED, "as before") == [
        "SFT", "w2sr", "TRL", "1.2 s", "2 s", "0.600", "0.500 to 0.750", "0.500", "20 %", "as before",
    ]  # fmt: skip
    of_tokens = cpu.line(row._replace(ours_s=(25e-6,) * 3, other_s=(5e-5,) * 3, of_a_token=True), None, "no baseline")
    assert of_tokens[3:] == [
        "25 µs a token", "50 µs a token", "0.500", "0.500 to 0.500", "", "", "no baseline",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "said"),
    # 0.5 with a tolerance of a fifth: up to 0.6, and down to 0.5 / 1.2 = 0.4167
    [(0.59, "as before"), (0.61, "slower"), (0.42, "as before"), (0.41, "faster")],
)
def test_a_verdict_is_slower_or_faster_beyond_the_tolerance(ratio: float, said: str) -> None:
    assert cpu_baseline.verdict(ratio, RECORDED) == said


def test_a_row_without_a_baseline_has_no_verdict() -> None:
    assert cpu_baseline.verdict(9.0, None) == "no baseline"


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([0.9, 1.0, 1.25], 0.35), ([2.0, 2.5, 3.0], 0.4), ([1.0, 1.01, 1.02], 0.1)],  # (most − least) / median; a tenth
)
def test_the_tolerance_is_the_spread_of_the_rounds_and_a_tenth_at_least(ratios: list[float], expected: float) -> None:
    assert cpu_baseline.tolerance(ratios) == pytest.approx(expected)


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert cpu_baseline.read_baseline(path) == {}
    made = cpu_baseline.record([0.9, 1.0, 1.25], load=2.04, versions={"python": "3.11"})
    assert made == Recorded(1.0, 0.9, 1.25, 3, 0.35, 2.0, {"python": "3.11"})
    cpu_baseline.write_baseline(path, {"start": made, "SFT": RECORDED})
    assert cpu_baseline.read_baseline(path) == {"start": made, "SFT": RECORDED}
    assert list(json.loads(path.read_text())) == ["SFT", "start"]


@pytest.mark.parametrize("text", ["{", '{"SFT": {"ratio": 1}}', "[1]", '{"SFT": 3}'])
def test_a_file_that_is_no_baseline_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"baseline\.json is no baseline .* with ratio, least, most, rounds"):
        cpu_baseline.read_baseline(path)


def test_other_versions_than_the_recorded_ones_are_named() -> None:
    row = cpu.Row("SFT", "w2sr", "TRL")
    said = cpu.other_versions([row], {"SFT": RECORDED, "start": RECORDED}, {"python": "3.12"})
    assert said == "Recorded with other versions: python 3.11 (now 3.12), trl 1.0 (now absent)."
    assert cpu.other_versions([row], {"SFT": RECORDED}, RECORDED.versions) == ""
    assert cpu.other_versions([row], {}, {"python": "3.12"}) == ""


def test_the_page_says_what_is_slower() -> None:
    rows = [cpu.Row("SFT", "w2sr", "TRL", (0.7,), (1.0,)), cpu.Row("start", "w2sr", "import", (0.5,), (1.0,))]
    baseline = {"SFT": RECORDED, "start": RECORDED}
    text = cpu.page(rows, baseline, {"SFT": "slower", "start": "as before"}, rounds=1)
    assert "**Slower than before: SFT.**" in text
    assert "**Nothing is slower than before.**" in cpu.page(
        rows, baseline, {"SFT": "faster", "start": "as before"}, rounds=1
    )
    text = cpu.page(rows, {"SFT": RECORDED}, {"SFT": "as before", "start": "no baseline"}, rounds=1)
    assert "**Nothing is slower than before. Without a baseline: start.**" in text


def test_the_committed_baseline_is_one() -> None:
    assert cpu_baseline.read_baseline(cpu_baseline.BASELINE)
