"""`fit` through the command line on a tiny world: what it logs, saves, resumes from, refuses and exports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from w2sr.chat import Chat
from w2sr.cli import main
from w2sr.policy import load_policy
from w2sr.results import read_result
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import SampleRequest, Sampling

FitConfig = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]

EXPORT = {"class_path": "w2sr.callbacks.ExportStudent", "init_args": {"licence": "apache-2.0"}}
TABLE = {"class_path": "w2sr.callbacks.FinalTable"}
EVERY_STEP = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {
        "every_n_train_steps": 1,
        "save_top_k": -1,
        "filename": "step-{step}",
        "auto_insert_metric_name": False,
    },
}
EVERY_EPOCH = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {
        "every_n_epochs": 1,
        "save_on_train_epoch_end": True,
        "save_top_k": -1,
        "filename": "epoch-end-{step}",
        "auto_insert_metric_name": False,
    },
}


def fit(config: Path, *extra: str) -> None:
    main(["fit", "--config", str(config), *extra])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


@pytest.mark.parametrize(("num_workers", "window"), [(0, 1), (2, 1), (0, 3), (2, 3)])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_by_bit(
    num_workers: int, window: int, tmp_path: Path, fit_config: FitConfig, scalars: Scalars, tiny_world: Any
) -> None:
    changes: dict[str, Any] = {
        "data__num_workers": num_workers,
        "data__window": window,
        "data__held_out_frac": 0.2,
        "data__validation": {"five": {"path": str(tiny_world.validation)}},
        "trainer__max_epochs": 3,
        "trainer__val_check_interval": 2,
    }
    whole = tmp_path / "whole"
    fit(fit_config(whole, trainer__callbacks=[EVERY_STEP, EVERY_EPOCH, EXPORT], **changes))
    losses, rates = scalars(whole, "train/loss"), scalars(whole, "train/learning_rate")
    assert list(losses) == list(range(9)), "3 epochs of 3 steps: 12 traces in steps of 4"
    validations = scalars(whole, "val/loss")  # step 2 is number 1, counted from 0
    assert len(set(validations.values())) == 4, "after steps 2, 4, 6 and 8: once at the end of an epoch"
    assert len(set(losses.values())) == 9 and len(set(rates.values())) > 5
    for name in ("step-2", "step-3", "epoch-end-3", "step-4", "step-6", "step-8"):
        done, resumed = int(name.rpartition("-")[2]), tmp_path / f"from-{name}"
        config = fit_config(resumed, trainer__callbacks=[EXPORT], **changes)
        fit(config, "--ckpt_path", str(whole / "checkpoints" / f"{name}.ckpt"))
        rest = {step: loss for step, loss in losses.items() if step >= done}
        assert scalars(resumed, "train/loss") == rest, name
        assert scalars(resumed, "train/learning_rate") == {step: rates[step] for step in rest}, name
        due = {step: loss for step, loss in validations.items() if step >= done - 1}
        assert scalars(resumed, "val/loss") == due, f"{name}: also the one between this checkpoint and the next step"
        torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0, msg=name)
        tokens = [(folder / "student" / "README.md").read_text().split(" optimizer")[1] for folder in (whole, resumed)]
        assert tokens[0].splitlines()[0] == tokens[1].splitlines()[0], "trained tokens count from the first step on"


def test_limit_train_batches_takes_the_first_steps_of_each_epoch(
    tmp_path: Path, fit_config: FitConfig, scalars: Scalars
) -> None:
    fit(fit_config(tmp_path / "whole"))
    fit(fit_config(tmp_path / "cut", trainer__limit_train_batches=3))
    whole, cut = (scalars(tmp_path / name, "train/loss_tokens") for name in ("whole", "cut"))
    assert list(whole) == list(range(8)) and list(cut) == list(range(6))
    assert list(cut.values()) == [whole[step] for step in (0, 1, 2, 4, 5, 6)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains_validates_and_logs_in_float32(
    precision: str, tmp_path: Path, fit_config: FitConfig, scalars: Scalars, tiny_world: Any
) -> None:
    """Validation samples completions in the weights' dtype: under autocast the cache of keys would not fit."""
    changes = {"data__held_out_frac": 0.2, "data__validation": {"five": {"path": str(tiny_world.validation)}}}
    fit(fit_config(tmp_path / "exact", **changes))
    fit(fit_config(tmp_path / "half", trainer__precision=precision, **changes))
    exact, half = (scalars(tmp_path / name, "train/loss") for name in ("exact", "half"))
    assert half == pytest.approx(exact, rel=0.05) and half != exact
    assert any(loss != float(torch.tensor(loss).bfloat16()) for loss in half.values()), "sums are float32"
    assert scalars(tmp_path / "half", "val/loss") == pytest.approx(scalars(tmp_path / "exact", "val/loss"), rel=0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fit_config: FitConfig, tiny_world: Any) -> Path:
    """The folder of a run with export and final table, made once by `w2sr fit --config run.yaml`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = fit_config(
        folder,
        model__teacher=str(tiny_world.teacher),
        model__sampling={"max_new_tokens": 9, "temperature": 0.9},
        data__benchmarks={"quiz": {"path": str(tiny_world.benchmark)}},
        data__held_out_frac=0.3,
        trainer__max_epochs=1,
        trainer__callbacks=[EXPORT, TABLE],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["w2sr", "fit", "--config", "run.yaml"])
        fit(config)
    return folder


def test_a_run_directory_that_holds_a_run_is_refused(
    finished: Path, tiny_world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        fit(finished.parent / "run.yaml", "--data.init_args.keep=N")
    letter = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"error: The run directory {finished} holds a finished run of " in letter
    assert "Go on" not in letter and f"--data.init_args.keep=N --trainer.default_root_dir={finished}-2" in letter
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == [], "a refused run leaves the old one as it is"


def test_selection_says_what_was_kept(finished: Path) -> None:
    selection = json.loads((finished / "selection.json").read_text())
    assert selection["keep"] == "P" and selection["teachers"] == ["tiny/weak"]
    assert selection["table"]["gates"][0] == {"gate": "keep=P", "num_in": 20, "num_removed": 5, "num_out": 15}
    assert selection["num_train_traces"] + selection["num_held_out_traces"] == selection["table"]["num_traces"] == 15
    assert 0 < selection["num_held_out_traces"] < 8


def test_the_model_card_names_teacher_filter_counts_licence_and_command(finished: Path) -> None:
    card = (finished / "student" / "README.md").read_text()
    selection = json.loads((finished / "selection.json").read_text())
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and Path(front["base_model"]).name == "student"
    for words in ("`tiny/weak`", "keep: P", "w2sr fit --config run.yaml", "<|im_end|>"):
        assert words in card, words
    assert f"{selection['num_train_traces']} " in card or f"{selection['num_train_traces']}," in card
    assert f"{selection['num_train_tokens']:,} tokens" in card
    assert "| keep=P | 20 | 5 | 15 |" in card


def test_the_exported_student_is_an_ordinary_model_that_says_what_we_say(finished: Path) -> None:
    folder = finished / "student"
    assert not list(folder.glob("*.bin")) and list(folder.glob("*.safetensors"))
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop in lm.generation_config.eos_token_id and tokenizer.eos_token == "<|im_end|>"
    assert lm.config._attn_implementation != "w2sr_packed"
    assert "w2sr" not in (folder / "config.json").read_text()
    chat = Chat.load(folder)
    generator = EmbeddedGenerator(load_policy(folder), chat.stop_token_ids, chat.decode, num_slots=2)
    problems = ["Today Mia has 23 apples.", "How many coins does Tom have?", "Today Zoe has 7 eggs. Amy has 2 more."]
    said = set()
    requests = [SampleRequest(str(index), 0, tuple(chat.prompt_ids(text))) for index, text in enumerate(problems)]
    ours = {made.problem_id: made.token_ids for made in generator.stream(requests, Sampling(max_new_tokens=23))}
    for index, text in enumerate(problems):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        theirs = lm.generate(prompt, do_sample=False, max_new_tokens=23)[0, prompt.shape[1] :]
        assert tuple(theirs.tolist()) == ours[str(index)], text
        said |= set(ours[str(index)])
    assert len(said) > 5, "no model that repeats itself"


def test_generation_of_others_ends_on_our_stop_token(finished: Path) -> None:
    """A model made by hand to say `<|im_end|>` at once: `generate` stops there by the exported config."""
    lm = AutoModelForCausalLM.from_pretrained(finished / "student")
    stop = lm.generation_config.eos_token_id[0]
    for layer in lm.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    embedding = lm.get_input_embeddings().weight.data
    embedding[:] = torch.nn.functional.normalize(embedding, dim=-1)
    embedding[stop] = 3 * embedding[7]
    assert lm.generate(torch.tensor([[5, 7]]), do_sample=False, max_new_tokens=9)[0, 2:].tolist() == [stop]


def test_the_final_table_has_four_arms_each_with_its_files(finished: Path, tiny_world: Any) -> None:
    asked = [json.loads(line)["problem_id"] for line in tiny_world.benchmark.read_text().splitlines()]
    arms = {path.parent.name: read_result(path) for path in (finished / "eval").glob("*/result.json")}
    assert len(arms) == 4 and {result.name for result in arms.values()} >= {"plain student", "teacher", "W2SR-P"}
    for folder, result in arms.items():
        lines = (finished / "eval" / folder / "completions.jsonl").read_text().splitlines()
        assert [json.loads(line)["problem_id"] for line in lines] == asked, "in the problems' order"
        assert list(result.per_problem) == asked and result.num_missing_samples == 0
        assert result.estimates["pass@1/quiz"].num_problems == 6
        assert (result.cost.train_seconds is not None) == (result.name == "W2SR-P")
    texts = [(finished / "eval" / name / "completions.jsonl").read_text() for name in arms]
    assert len(set(texts)) == 4, "four different models or prompts"


def test_the_exported_student_is_evaluated_by_test(
    finished: Path, tiny_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "model": {
            "class_path": "w2sr.modules.EvalModule",
            "init_args": {
                "student": str(finished / "student"),
                "sampling": {"max_new_tokens": 9, "temperature": 0.9},
                "num_slots": 2,
            },
        },
        "data": {
            "class_path": "w2sr.datamodules.ProblemDataModule",
            "init_args": {"benchmarks": {"quiz": {"path": str(tiny_world.benchmark)}}, "batch_problems": 4},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "default_root_dir": str(tmp_path / "eval"),
            "callbacks": [{"class_path": "w2sr.callbacks.EvalWriter", "init_args": {"name": "again"}}],
        },
    }
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump(config))
    main(["test", "--config", str(file)])
    assert "again" in capsys.readouterr().out
    mine = (tmp_path / "eval" / "completions.jsonl").read_text()
    (trained,) = (finished / "eval").glob("w2sr-p*/completions.jsonl")
    assert mine == trained.read_text(), "other slots and batches, the same completions"
    assert read_result(tmp_path / "eval" / "result.json").name == "again"
