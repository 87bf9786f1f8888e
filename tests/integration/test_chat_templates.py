"""Chat templates and the command line: the day that they show, rows that they refuse, and models that are too short."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from w2sr.cli import main
from w2sr.traces import read_recipe, read_store, trace_key, write_store

FitConfig = Callable[..., Path]
DATED = "{{ 'Today\n' + strftime_now('%d') }}"
"""In front of the miniature's template; 30 and 1 are words of its tokenizer."""
REFUSES_MIA = "{% if 'Mia' in messages[0].content %}{{ raise_exception('no Mia') }}{% endif %}"
SAVE = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}


def copy_of(model: Path, folder: Path, *, template: str = "", **config: Any) -> str:
    """A copy of a model directory with text in front of its chat template, and changes of its configuration."""
    shutil.copytree(model, folder)
    file = folder / "chat_template.jinja"
    file.write_text(template + file.read_text())
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def on_day(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock of new runs to a day of November 2026."""

    def set_clock(day: int) -> None:
        class Clock(date):
            @classmethod
            def today(cls) -> Clock:
                return cls(2026, 11, day)

        monkeypatch.setattr("w2sr.runs.date", Clock)
        monkeypatch.setattr("w2sr.conversation.date", Clock)

    return set_clock


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The message of a command that is refused."""

    def message(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        return capsys.readouterr().err

    return message


def date_of(run: Path) -> str:
    return str(yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["template_date"])


def test_a_store_is_completed_on_another_day_with_the_day_of_its_recipe(
    tmp_path: Path, tiny_world: Any, on_day: Callable[[int], None], refused: Callable[..., str]
) -> None:
    teacher, store = copy_of(tiny_world.teacher, tmp_path / "dated", template=DATED), tmp_path / "store"
    model = {"teacher": teacher, "sampling": {"max_new_tokens": 5, "temperature": 1.0}, "gate_min_answers": 0}
    config = {
        "model": {"class_path": "w2sr.modules.DistillModule", "init_args": model},
        "data": {
            "class_path": "w2sr.datamodules.ProblemDataModule",
            "init_args": {"problems": {"quiz": {"path": str(tiny_world.benchmark)}}},
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "default_root_dir": str(store), "logger": False},
    }
    file = tmp_path / "distill.yaml"
    file.write_text(yaml.safe_dump(config))

    on_day(29)
    main(["predict", "--config", str(file), "--data.init_args.shard=1/2"])
    first = {trace_key(trace): trace for trace in read_store(store)}
    assert read_recipe(store).template_date == date_of(store) == "2026-11-29"
    on_day(30)
    said = refused("predict", "--config", str(file), "--data.init_args.shard=2/2", "--model.template_date=2026-11-30")
    assert "template_date: there '2026-11-29', here '2026-11-30'" in said and "template_hash" not in said
    main(["predict", "--config", str(file), "--data.init_args.shard=2/2"])
    both = {trace_key(trace): trace for trace in read_store(store)}
    assert len(both) == 6 > len(first) > 0 and first.items() <= both.items()
    assert len({trace.template_hash for trace in both.values()}) == 1
    assert read_recipe(store).template_date == date_of(store) == "2026-11-29"


def test_a_run_that_goes_on_keeps_the_day_of_its_prompts(
    tmp_path: Path, tiny_world: Any, fit_config: FitConfig, on_day: Callable[[int], None], refused: Callable[..., str]
) -> None:
    student = copy_of(tiny_world.student, tmp_path / "dated", template=DATED)
    changes = {"model__student": student, "trainer__callbacks": [SAVE], "data__cache_dir": str(tmp_path / "tokens")}
    config = str(fit_config(tmp_path / "run", **changes, trainer__max_epochs=1))
    on_day(29)
    main(["fit", "--config", config])
    assert date_of(tmp_path / "run") == "2026-11-29" and len(list((tmp_path / "tokens").glob("*.lock"))) == 1
    on_day(30)
    longer = ["fit", "--config", config, "--trainer.max_epochs=2", "--ckpt_path=last"]
    assert "model.template_date=2026-11-30, and the run in" in refused(*longer, "--model.template_date=2026-11-30")
    main(longer)
    assert date_of(tmp_path / "run") == "2026-11-29"
    assert len(list((tmp_path / "tokens").glob("*.lock"))) == 1, "the same tokens"


def test_rows_that_a_template_refuses_are_named_or_skipped(
    tmp_path: Path,
    tiny_world: Any,
    fit_config: FitConfig,
    refused: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first three of the traces ask about Mia, and none else."""
    student = copy_of(tiny_world.student, tmp_path / "picky", template=REFUSES_MIA)
    traces = [replace(trace, problem=trace.problem.replace("Mia", "Tom")) for trace in read_store(tiny_world.traces)]
    traces = [trace for trace in traces if trace.verdict == "correct"]
    traces[:3] = [replace(trace, problem=f"Mia has. {trace.problem}") for trace in traces[:3]]
    write_store(tmp_path / "traces", traces)
    changes = {"model__student": student, "data__traces": [{"path": str(tmp_path / "traces")}]}
    config = str(fit_config(tmp_path / "run", **changes, trainer__max_epochs=1))
    said = refused("fit", "--config", config)
    assert "refuses the turns ['user']: no Mia" in said and "data.on_bad_row=skip" in said
    with caplog.at_level("INFO"):
        main(["fit", "--config", config, "--data.init_args.on_bad_row=skip"])
    assert "3 of 15 rows cannot be given to the model:" in caplog.text and "no Mia" in caplog.text
    assert json.loads((tmp_path / "run" / "selection.json").read_text())["num_train_traces"] == 12


def test_a_problem_that_the_template_refuses_stops_the_run_before_it_trains(
    tmp_path: Path, tiny_world: Any, grpo_config: FitConfig, refused: Callable[..., str]
) -> None:
    student = copy_of(tiny_world.student, tmp_path / "picky", template=REFUSES_MIA)
    problems = [json.loads(line) for line in tiny_world.benchmark.read_text().splitlines()]
    problems[4]["problem"] = "Mia has 3 apples. " + problems[4]["problem"].replace("Mia", "Tom")
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in problems))
    said = refused(
        "fit",
        "--config",
        str(grpo_config(tmp_path / "run", model__student=student, data__problems={"six": {"path": str(file)}})),
    )
    assert str(problems[4]["problem_id"]) in said and "no Mia" in said and "data.on_bad_row=skip" in said


@pytest.mark.parametrize("held_out_frac", [0.0, 0.5])
def test_traces_beyond_the_models_positions_are_refused(
    held_out_frac: float, tmp_path: Path, tiny_world: Any, fit_config: FitConfig, refused: Callable[..., str]
) -> None:
    """Traces have 52 to 98 tokens. A model with rotary positions reads beyond its positions without a word."""
    student = copy_of(tiny_world.student, tmp_path / "short", max_position_embeddings=80)
    changes = {"model__student": student, "data__held_out_frac": held_out_frac}
    config = str(fit_config(tmp_path / "run", **changes, trainer__max_epochs=1))
    said = refused("fit", "--config", config)
    assert " tokens with its prompt; the model " in said and " has 80 positions (max_position_embeddings)." in said
    assert "Set data.max_tokens=80 with data.overlong=drop" in said
    main(["fit", "--config", config, "--data.init_args.max_tokens=80", "--data.init_args.overlong=drop"])
