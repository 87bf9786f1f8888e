"""`fit` with supervision, corruption and decontamination: what is trained on, and what the run says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from w2sr.cli import main
from w2sr.corruption import restored
from w2sr.datamodules import sources
from w2sr.traces import read_store, write_store

FitConfig = Callable[..., Path]


@pytest.fixture(scope="module")
def verified(tiny_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's traces as a verifier leaves them, with the rule; one of 20 has no answer."""
    traces = [replace(trace, answer_rule="boxed", grader="exact") for trace in read_store(tiny_world.traces)]
    bare = {"completion": "Mia has 3.", "answer": None, "answer_rule": "", "verdict": "no_answer"}
    store = tmp_path_factory.mktemp("verified") / "store"
    write_store(store, [replace(traces[0], **bare), *traces[1:]])  # type: ignore[arg-type]
    return store


def run(fit_config: FitConfig, folder: Path, store: Path, **changes: Any) -> dict[str, Any]:
    """The run's selection.json."""
    limits = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1}
    main(["fit", "--config", str(fit_config(folder, data__traces=[{"path": str(store)}], **limits, **changes))])
    content: dict[str, Any] = json.loads((folder / "selection.json").read_text())
    return content


def test_each_variant_trains_on_its_tokens(tmp_path: Path, fit_config: FitConfig, verified: Path) -> None:
    made = {
        name: run(fit_config, tmp_path / name, verified, data__keep="all", data__supervision=name)
        for name in ("full", "process_only", "outcome_only", "outcome_hard")
    }
    assert [content["num_train_traces"] for content in made.values()] == [20, 19, 19, 19]
    full, process, outcome, hard = (content["num_loss_tokens"] for content in made.values())
    # every answer is three tokens, and every trace has a stop token
    assert outcome == hard == 19 * 4
    assert full - process - 19 * 3 in range(4, 9), "the trace that the others leave out, one short sentence"
    assert made["process_only"]["num_train_tokens"] == made["outcome_only"]["num_train_tokens"]
    assert made["outcome_hard"]["num_train_tokens"] < made["outcome_only"]["num_train_tokens"]
    tokens = made["outcome_only"]["num_train_tokens"]
    assert made["outcome_only"]["supervision"] == (
        f"supervision=outcome_only: 76 of {tokens:,} tokens carry loss ({7600 / tokens:.1f} %); "
        "1 traces without a final answer are left out"
    )


def test_a_verdict_that_came_without_a_rule_gets_the_rule_of_its_file(
    tmp_path: Path, fit_config: FitConfig, tiny_world: Any
) -> None:
    assert {trace.answer_rule for trace in read_store(tiny_world.traces)} == {""}
    assert (
        run(fit_config, tmp_path / "run", tiny_world.traces, data__supervision="outcome_hard")["num_train_traces"] == 15
    )


def test_corrupted_traces_are_verified_anew_and_counted(
    tmp_path: Path, fit_config: FitConfig, verified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(sources, "rank_zero_info", printed.append)
    corruption = {"kind": "off_by_one", "rate": 1.0, "seed": 2, "whole_to": 199}
    content = run(fit_config, tmp_path / "run", verified, data__keep="N", data__corruption=corruption)
    assert content["corruption"] == corruption
    # of 14 right traces with an answer every one is wrong now, and most of the 5 wrong ones still are
    assert content["num_corrupted_traces"] == content["num_train_traces"] and 14 <= content["num_train_traces"] <= 19
    assert "corruption off_by_one, rate 1, seed 2: 20 of 20 traces chosen, 1 of them hold nothing" in printed[0]


def test_the_corrupt_verb_writes_a_store_with_the_truth(
    tmp_path: Path, verified: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["corrupt", str(verified), str(out), "--kind", "off_by_one", "--rate", "0.6", "--seed", "1"]
    main(words)
    printed = capsys.readouterr().out
    before, after = read_store(verified), read_store(out)
    changed = [trace for trace in after if trace.corruption]
    assert 5 <= len(changed) <= 17 and f"{len(changed)} corrupted" in printed
    assert [restored(trace) for trace in after] == [trace.completion for trace in before]
    assert all(trace.verdict and trace.answer and trace.answer_rule == "boxed" for trace in changed)
    assert any(trace.verdict == "incorrect" for trace in changed)
    assert [new for new in after if not new.corruption] == [
        old for old, new in zip(before, after, strict=True) if not new.corruption
    ]
    with pytest.raises(SystemExit):
        main(words)
    assert f"{out} is there already" in capsys.readouterr().err


def test_traces_of_benchmark_problems_are_left_out(
    tmp_path: Path, fit_config: FitConfig, verified: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaked = tmp_path / "leaked.jsonl"
    asked = [trace for trace in read_store(verified) if trace.verdict == "correct"][:2]
    rows = [{"problem": trace.problem.upper(), "reference_answer": trace.reference_answer} for trace in asked]
    leaked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks = {"leaked": {"path": str(leaked)}}
    strict = {"ngram": 13, "max_overlap": 1.5}
    content = run(fit_config, tmp_path / "run", verified, data__benchmarks=benchmarks, data__decontaminate=strict)
    assert content["decontamination"]["removed"] == {"leaked": {"exact": 2, "overlap": 0}}
    assert content["num_train_traces"] == 12
    config = fit_config(tmp_path / "alone", data__decontaminate={})
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config)])
    assert "data.decontaminate needs problems to compare with: name data.benchmarks" in capsys.readouterr().err
