"""Curation from the command line: scores, votes, mixtures and ensembles as a user types them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from w2sr.chat import Chat
from w2sr.cli import main
from w2sr.traces import read_store, write_store

FitConfig = Callable[..., Path]


@pytest.fixture
def store(tiny_world: Any, tmp_path: Path) -> Path:
    """The tiny world's traces, of two teachers in turn."""
    traces = [replace(t, teacher=f"teacher-{n % 2}") for n, t in enumerate(read_store(tiny_world.traces))]
    write_store(tmp_path / "store", traces)
    return tmp_path / "store"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def selection_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "selection.json").read_text())
    return content


def test_a_mixture_as_an_overlay(store: Path, tmp_path: Path, fit_config: FitConfig) -> None:
    """15 right ones, and of 5 wrong ones the best third, rounded up."""
    config = fit_config(tmp_path / "run", data__traces=[{"path": str(store)}], trainer__max_steps=1)
    main(["fit", "--config", str(config), "--config", "configs/selection/mix_p_best_n.yaml"])
    record = selection_of(tmp_path / "run")
    rows = {row["gate"]: row["num_out"] for row in record["table"]["gates"]}
    assert rows["mix 1: keep=P"] == 15 and rows["mix 2: keep=N"] == 5
    assert rows["mix 2: top_frac.structure=0.33 (within all)"] == 2 and rows["mix of 2"] == 17
    assert record["num_train_traces"] == 17 and record["gates"]["mix"][1]["top_frac"] == {"structure": 0.33}


def test_likelihood_is_scored_once_and_selects(
    store: Path, tmp_path: Path, fit_config: FitConfig, tiny_world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = {"score": {"likelihood": [None, -1.0]}, "top_frac": {"likelihood": 0.5}}
    changes = {"data__traces": [{"path": str(store)}], "data__keep": "all", "data__gates": gates}
    config = str(fit_config(tmp_path / "run", **changes, trainer__max_steps=1))
    letter = refused(capsys, "fit", "--config", config)
    command = f"score {store} --scores likelihood --student {tiny_world.student}"
    assert "20 of 20 traces have no likelihood by the student" in letter and command in letter

    main(command.split())
    printed = capsys.readouterr().out
    assert f"likelihood by {tiny_world.student}: 20 computed, 0 there already" in printed
    assert printed.splitlines()[-1].split()[:4] == ["likelihood", "by", str(tiny_world.student), "20"]
    main(command.split())
    assert "0 computed, 20 there already" in capsys.readouterr().out
    main(["fit", "--config", config])
    assert selection_of(tmp_path / "run")["num_train_traces"] == 10

    # another student's likelihoods are not this one's
    other = str(fit_config(tmp_path / "other", **changes, model__student=str(tiny_world.teacher)))
    assert "20 of 20 traces have no likelihood" in refused(capsys, "fit", "--config", other)


def test_the_command_that_is_named_scores_for_the_template_and_stop_token_of_the_run(
    store: Path, tmp_path: Path, fit_config: FitConfig, tiny_world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fit_config(
        tmp_path / "run",
        data__traces=[{"path": str(store)}],
        data__gates={"top_frac": {"likelihood": 0.4}},
        model__template="simple",
        model__stop_token="<|im_start|>",
        trainer__max_steps=1,
    )
    main(["score", str(store), "--scores", "likelihood", "--student", str(tiny_world.student)])
    letter = refused(capsys, "fit", "--config", str(config))
    command = letter.split("python lightning_cli.py ")[1].strip().rstrip(".")
    assert command.endswith("--template 'simple' --stop_token '<|im_start|>'")
    main(shlex.split(command))
    main(["fit", "--config", str(config)])
    assert selection_of(tmp_path / "run")["num_train_traces"] == 6  # 0.4 of 15


def test_structure_and_difficulty_are_scored_and_summed_up(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", str(store)])
    printed = capsys.readouterr().out
    assert "structure: 20 computed, 0 there already" in printed and "difficulty: 20 computed" in printed
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    assert lines["difficulty"] == ["20", "0.000", "0.000", "0.000", "0.250", "1.000"]  # every fourth is wrong
    assert lines["difficulty_others"][0] == "0", "one trace a problem: nothing is left without it"
    assert lines["equation_validity"][0] == "20"


def test_the_page_of_traces_filters_by_what_was_scored(store: Path, tmp_path: Path, tiny_world: Any) -> None:
    page = tmp_path / "page.html"
    main(["traces", str(store), "--out", str(page)])
    assert page_data(page)["scores"] == []
    main(["score", str(store)])
    for student in (tiny_world.student, tiny_world.teacher):
        main(["score", str(store), "--scores", "likelihood", "--student", str(student)])
    main(["traces", str(store), "--out", str(page)])
    content = page_data(page)
    traces = read_store(store)
    right = {trace.trace_id: float(trace.verdict == "correct") for trace in traces}
    assert {"scores.structure", "scores.difficulty"} <= set(content["scores"])
    likelihoods = [name for name in content["scores"] if name.startswith("scores.likelihood ")]
    assert len(likelihoods) == 2 and all(name.endswith("-float32") for name in likelihoods)
    ids = column(content["columns"]["trace_id"])
    difficulty = column(content["extras"]["scores.difficulty"])
    assert dict(zip(ids, difficulty, strict=True)) == {name: 1 - share for name, share in right.items()}


def page_data(page: Path) -> dict[str, Any]:
    block = page.read_text().split('type="application/json"')[1].partition(">")[2].partition("</script>")[0]
    content: dict[str, Any] = json.loads(block)
    return content


def column(encoded: dict[str, Any]) -> list[Any]:
    return encoded["values"] if "values" in encoded else [encoded["of"][at] for at in encoded["at"]]


def test_vote_writes_a_store_that_trains_and_says_what_it_is(
    store: Path, tmp_path: Path, fit_config: FitConfig, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """Each problem gets 3 samples: its own twice and a wrong one. So every answer is elected, right on 15 of 20."""
    traces = read_store(store)
    samples = [replace(t, sample_index=k) for t in traces for k in (0, 1)]
    samples += [replace(t, sample_index=2, answer="-1", verdict="incorrect") for t in traces]
    write_store(tmp_path / "samples", samples)
    out = tmp_path / "voted"
    main(["vote", str(tmp_path / "samples"), str(out), "--min-share", "0.6"])
    printed = capsys.readouterr().out
    assert "problems: elected 20, tie 0, below min_share 0, below min_votes 0, no answer 0" in printed
    assert f"{out}: 60 traces with grader label-free:vote; correct 40, incorrect 20" in printed
    assert "of the traces that the vote calls correct, 30 of 40 are (75.0 %); of all traces" in printed
    assert "30 of 60 are (50.0 %)" in printed
    assert {t.verdict_reason for t in read_store(out) if t.verdict == "correct"} == {"2 of 3 samples"}

    config = fit_config(tmp_path / "run", data__traces=[{"path": str(out)}], trainer__max_steps=1)
    with caplog.at_level("INFO"):
        main(["fit", "--config", str(config)])
    assert "20 of 20 selected traces have a label-free verdict" in caplog.text
    assert selection_of(tmp_path / "run")["table"]["num_label_free"] == 20


def test_vote_finds_answers_where_nothing_was_verified_and_no_reference_is_there(
    tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare: dict[str, Any] = {"verdict": "", "answer": None, "reference_answer": ""}
    traces = [replace(t, sample_index=k, **bare) for t in read_store(tiny_world.traces)[:4] for k in range(3)]
    write_store(tmp_path / "bare", traces)
    main(["vote", str(tmp_path / "bare"), str(tmp_path / "out"), "--by", "samples"])
    assert "references: none, so how often the vote is right is not known" in capsys.readouterr().out
    assert [t.answer_rule for t in read_store(tmp_path / "out")] == ["boxed"] * 12


def test_wrong_commands_are_answered(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, letter in (
        (["score", str(tmp_path / "nowhere")], "is not a directory. A trace store is one."),
        (["score", str(store), "--scores", "structur"], "'structur' is unknown. Did you mean 'structure'?"),
        (["score", str(store), "--scores", "likelihood"], "--scores likelihood needs one"),
        (["score", str(store), "--student", "x"], "give both or none"),
        (["score", str(store), "--scores", "likelihood", "--student", "./x"], "there is no model directory './x'"),
        (["vote", str(store), str(store)], f"{store} is there already. Name a folder that is not there yet"),
        (["vote", str(store), str(tmp_path / "o")], "No problem has an elected answer, so"),
        (["vote", str(store), str(tmp_path / "o"), "--min-share", "50"], "min_share=50.0 must be in [0, 1]"),
    ):
        assert letter in refused(capsys, *words), words
    assert not (tmp_path / "o").exists()


def test_traces_of_two_families_are_rendered_in_the_students_own_template(tiny_world: Any) -> None:
    """What a teacher's template was leaves no mark: its hash differs, prompt and stop token are the student's."""
    chat = Chat.load(tiny_world.student)
    other = Chat.load(tiny_world.student, template="simple")
    first, second = read_store(tiny_world.traces)[:2]
    mixed = [replace(first, teacher="qwen", template_hash=chat.template_hash)]
    mixed += [replace(second, teacher="llama", template_hash=other.template_hash)]
    assert len({t.template_hash for t in mixed}) == 2
    for trace, segment in zip(mixed, chat.segments(mixed), strict=True):
        prompt = chat.prompt_ids(trace.problem)
        assert segment.input_ids[: len(prompt)].tolist() == prompt != other.prompt_ids(trace.problem)
        assert segment.input_ids[-1] == chat.stop_token_id
        assert chat.decode(segment.input_ids[len(prompt) :]) == trace.completion
