"""`export`: checkpoints of one process, with adapters and without, as Hugging Face directories. Sharded ones are in
`test_sharded_checkpoints.py`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from w2sr.chat import Chat
from w2sr.cli import main
from w2sr.verbs import export

FitConfig = Callable[..., Path]

SAVE = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"save_last": True, "every_n_train_steps": 1, "save_top_k": -1, "filename": "at-{step}"},
}
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}
MERGE_ATOL = 1e-6
"""The merged product of the same two matrices, added by peft and by us."""


@pytest.fixture(scope="module", params=[None, {"rank": 3, "alpha": 9}], ids=["all weights", "adapters"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory, fit_config: FitConfig) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    main(["fit", "--config", str(fit_config(folder, model__lora=request.param, trainer__callbacks=[SAVE, EXPORT]))])
    return folder


def test_a_run_directory_is_exported_as_the_run_itself_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["export", str(run), str(out)])
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: the student of {run / 'checkpoints' / 'last.ckpt'} at step 8 of 8 (epoch 1); ")
    assert "agree within" in said
    weights = [load_file(folder / "model.safetensors") for folder in (out, run / "student")]
    assert weights[0].keys() == weights[1].keys()
    torch.testing.assert_close(*weights, atol=MERGE_ATOL, rtol=0)
    written = {path.name for path in (run / "student").iterdir()} - {"README.md"}
    assert {path.name for path in out.iterdir()} == written
    for kind in (AutoModelForCausalLM, GenerationConfig):
        kind.from_pretrained(out)
    ends = [GenerationConfig.from_pretrained(folder).eos_token_id for folder in (out, run / "student")]
    assert ends[0] == ends[1]
    assert list(tmp_path.iterdir()) == [out], "nothing is left beside it"


def test_any_checkpoint_can_be_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(run / "checkpoints" / "at-step=2.ckpt"), str(tmp_path / "early"), "--unchecked"])
    assert "at step 2 of 8 (epoch 0); not checked." in capsys.readouterr().out
    early, late = (load_file(folder / "model.safetensors") for folder in (tmp_path / "early", run / "student"))
    assert max(float((early[name] - late[name]).abs().max()) for name in late) > 0.005


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["export", *words])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_what_is_not_a_whole_checkpoint_of_a_run_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    foreign = tmp_path / "foreign" / "checkpoints" / "x.ckpt"
    foreign.parent.mkdir(parents=True)
    shutil.copy(last, foreign)
    assert "lies in no run directory of w2sr" in refused(capsys, str(foreign), str(tmp_path / "out"))
    (tmp_path / "foreign" / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "foreign" / "checkpoints" / "y.ckpt").write_bytes(last.read_bytes()[:-50])
    letter = refused(capsys, str(tmp_path / "foreign" / "checkpoints" / "y.ckpt"), str(tmp_path / "out"))
    assert "is cut off" in letter and f"{foreign} is good, at step 8 of 8" in letter
    foreign.unlink()
    (tmp_path / "foreign" / "checkpoints" / "y.ckpt").unlink()
    assert "holds no checkpoint" in refused(capsys, str(tmp_path / "foreign"), str(tmp_path / "out"))
    assert "exists. Give another directory" in refused(capsys, str(run), str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "the last"])
def test_a_wrong_row_of_a_special_token_is_found(
    token: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, chat = export.write_weights, Chat.load(run / "student")
    row = chat.vocab_size - 1 if token == "the last" else chat.vocabulary[token]

    def shifted(folder: Path, weights: Any) -> None:
        changed = dict(weights)
        changed["model.embed_tokens.weight"] = changed["model.embed_tokens.weight"].clone()
        changed["model.embed_tokens.weight"][row] += 0.05
        real(folder, changed.items())

    monkeypatch.setattr(export, "write_weights", shifted)
    monkeypatch.setattr(export, "NUM_SPREAD", 1)
    assert "log-probabilities that differ from those of" in refused(capsys, str(run), str(tmp_path / "out"))


def test_a_directory_that_disagrees_is_not_left(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.write_weights

    def shifted(folder: Path, weights: Any) -> None:
        real(folder, ((name, weight + 0.05 if name.endswith("up_proj.weight") else weight) for name, weight in weights))

    monkeypatch.setattr(export, "write_weights", shifted)
    assert "log-probabilities that differ from those of" in refused(capsys, str(run), str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())
