"""result.json: what is written is read again, and what is not whole is refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from w2sr.results import (
    Cost,
    Estimate,
    ProblemCount,
    RunResult,
    library_versions,
    read_arms,
    read_result,
    write_result,
)

RESULT = RunResult(
    name="W2SR-P – «ü»",
    model="runs/p/student",
    sources=("gsm8k", "minerva"),
    num_samples=4,
    estimates={
        "pass@1/gsm8k": Estimate(0.1 + 0.2, 0.25, 1 / 3, 2, "bootstrap"),
        "pass@1/minerva": Estimate(math.nan, math.nan, math.nan, 0, "none"),
    },
    per_problem={"gsm8k/3": ProblemCount(1, 4, "gsm8k"), "gsm8k/9": ProblemCount(4, 4, "gsm8k")},
    finished_frac=0.875,
    cut_off_frac=0.125,
    num_missing_samples=0,
    mean_completion_tokens=math.nan,
    sampling={"temperature": 0.6, "top_p": 0.95, "stop": ["<eos>"]},
    cost=Cost(12.5, 4_000, 64.25, None),
    command="python lightning_cli.py test --config configs/eval.yaml",
    versions={"w2sr": "0.1.0"},
    created="2026-11-22T12:00:00+00:00",
    extra={"loss": None, "steps": 16},
)


def test_a_result_survives_the_file_bit_for_bit(tmp_path: Path) -> None:
    path = write_result(RESULT, tmp_path / "new" / "folder" / "result.json")
    assert repr(read_result(path)) == repr(RESULT)  # repr, because NaN differs from itself
    assert isinstance(read_result(path).per_problem["gsm8k/3"], ProblemCount)
    assert read_result(path).per_problem["gsm8k/3"].pass_rate == 0.25


def test_the_file_is_plain_json_without_nan(tmp_path: Path) -> None:
    result = replace(RESULT, extra={"loss": math.inf, "curve": [1.5, math.nan]})
    text = write_result(result, tmp_path / "result.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(text, parse_constant=refuse)
    assert (content["format"], content["version"]) == ("w2sr.result", 1)
    assert content["per_problem"]["gsm8k/3"] == [1, 4, "gsm8k"]
    assert content["estimates"]["pass@1/minerva"]["value"] is None
    assert content["extra"] == {"loss": None, "curve": [1.5, None]}


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_result(RESULT, tmp_path / "result.json")

    def die(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_result(replace(RESULT, name="newer"), path)
    assert read_result(path).name == RESULT.name
    assert [entry.name for entry in tmp_path.glob("*.json")] == ["result.json"]


def test_whoever_has_the_old_file_open_reads_it_whole(tmp_path: Path) -> None:
    path = write_result(RESULT, tmp_path / "result.json")
    with path.open(encoding="utf-8") as old:
        write_result(replace(RESULT, name="newer"), path)
        assert json.load(old)["name"] == RESULT.name
    assert read_result(path).name == "newer"


@pytest.mark.parametrize("kept_share", [0.0, 0.3, 0.99])
def test_a_cut_off_file_is_refused(tmp_path: Path, kept_share: float) -> None:
    path = write_result(RESULT, tmp_path / "result.json")
    text = path.read_text(encoding="utf-8").strip()
    path.write_text(text[: int(kept_share * len(text))], encoding="utf-8")
    with pytest.raises(ValueError, match=r"result\.json is not whole JSON .*cut off or is no result file"):
        read_result(path)


def test_foreign_versions_and_fields_are_refused_by_name(tmp_path: Path) -> None:
    path = write_result(RESULT, tmp_path / "result.json")
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    estimate = {"value": 1.0, "low": 1.0, "high": 1.0, "method": "none"}
    for change, message in [
        ({"version": 2}, r"has result version 2; this w2sr reads version 1"),
        ({"format": "other"}, r"has no 'format': 'w2sr\.result'"),
        ({"colour": "red"}, r"lacks the fields \[\] and has unknown fields \['colour'\]"),
        (
            {"cost": {"seconds": 1}},
            r"cost lacks the fields \['num_generated_tokens', 'num_train_tokens', 'train_seconds'\]",
        ),
        ({"cost": None}, r"cost lacks the fields"),
        ({"estimates": {"pass@1/x": estimate}}, r"estimate 'pass@1/x' lacks the fields \['num_problems'\]"),
        ({"per_problem": {"a": [3, 2, "s"]}}, r"problem 'a' has 3 correct of 2 samples"),
        ({"per_problem": {"a": [0, 0, "s"]}}, r"problem 'a' has 0 correct of 0 samples"),
    ]:
        path.write_text(json.dumps({**whole, **change}), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_result(path)
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ValueError, match="has no 'format'"):
        read_result(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_result(tmp_path / "absent.json")


def test_versions_name_what_numbers_depend_on() -> None:
    versions = library_versions()
    assert {"python", "w2sr", "torch", "numpy", "transformers"} <= versions.keys()
    assert versions["numpy"][0].isdigit() and versions["w2sr"][0].isdigit()


def test_an_arm_that_two_runs_evaluated_alike_is_taken_once(tmp_path: Path) -> None:
    """Every `fit` evaluates the plain student. Seconds, dates and commands differ; the first file's are taken."""
    again = replace(RESULT, cost=Cost(99.0, 4_000), created="2026-11-23T12:00:00+00:00", command="fit --config grpo")
    write_result(RESULT, tmp_path / "a" / "plain-student" / "result.json")
    write_result(replace(RESULT, name="P"), tmp_path / "a" / "p" / "result.json")
    write_result(again, tmp_path / "b" / "plain-student" / "result.json")
    arms = read_arms([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "p" / "result.json"])
    assert [(arm.name, arm.cost.seconds) for arm in arms] == [("P", 12.5), (RESULT.name, 12.5)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "runs/q/student"}, r"model \('runs/p/student' and 'runs/q/student'\)"),
        ({"sampling": {"temperature": 0.7}}, r"sampling \(\{'temperature': 0\.6, .*\} and \{'temperature': 0\.7\}\)"),
        ({"num_samples": 8}, r"num_samples \(4 and 8\)"),
        (
            {"per_problem": {"gsm8k/3": ProblemCount(2, 4, "gsm8k"), "gsm8k/9": ProblemCount(4, 4, "gsm8k")}},
            "the verdicts of 1 of 2 problems",
        ),
        ({"per_problem": {"gsm8k/3": ProblemCount(1, 4, "gsm8k")}}, r"problems \(2 and 1, 1 in both\)"),
    ],
)
def test_two_arms_of_one_name_that_differ_are_refused_with_both_files(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    files = [tmp_path / folder / "result.json" for folder in ("a", "b")]
    write_result(RESULT, files[0])
    write_result(replace(RESULT, **change), files[1])
    with pytest.raises(ValueError, match=rf"called '{RESULT.name}' and differ in {told}: {files[0]} and {files[1]}\."):
        read_arms([tmp_path])
