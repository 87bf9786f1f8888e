"""A tokenizer is loaded as its own file reads text, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from w2sr.chat import Chat
from w2sr.tokenizer import load_tokenizer

WORDS = ["<unk>", "<end>", "tea", "milk", "and", "so"]


def word_level(folder: Path, model_type: str, words: list[str] = WORDS) -> Path:
    """A model directory, as far as a tokenizer goes, with a word-level tokenizer."""
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<end>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def test_a_tokenizer_that_transformers_replaces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"loaded as Qwen2Tokenizer, .* its own tokenizer.json gives .*model_type"
    ) as error:
        Chat.load(word_level(tmp_path, "qwen2"), template="simple")
    assert str(tmp_path) in str(error.value) and "TokenizersBackend in tokenizer_config.json" in str(error.value)


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_other_architectures_keep_it(tmp_path: Path, model_type: str) -> None:
    tokenizer = load_tokenizer(word_level(tmp_path, model_type))
    assert tokenizer("so tea and milk")["input_ids"] == [5, 2, 4, 3]


def test_the_vocabulary_is_probed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixed text is unknown to both of these word-level tokenizers; only their own words tell them apart."""
    folder = word_level(tmp_path, "qwen3")
    other = load_tokenizer(word_level(tmp_path / "other", "qwen3", [*WORDS[:2], "milk", "tea", "and", "so"]))
    monkeypatch.setattr("w2sr.tokenizer.AutoTokenizer.from_pretrained", lambda *_, **__: other)
    with pytest.raises(ValueError, match=r"reads 'tea milk and so'\.\.\. as 4 tokens, \[3, 2, 4, 5\] from number 0"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_the_miniatures_tokenizers_pass(name: str) -> None:
    assert load_tokenizer(f"w2sr/miniature/{name}").is_fast


@pytest.mark.parametrize(
    ("name", "model_type"),
    [("qwen", ""), ("qwen", "qwen2"), ("smollm2-135m-instruct", ""), ("smollm2-135m-instruct", "llama")],
)
def test_real_tokenizers_pass(shared_data: Path, tmp_path: Path, name: str, model_type: str) -> None:
    for file in (shared_data / "tokenizers" / name).iterdir():
        (tmp_path / file.name).symlink_to(file)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_tokenizer(tmp_path).is_fast


def test_a_real_tokenizer_in_a_directory_of_another_kind_is_refused(shared_data: Path, tmp_path: Path) -> None:
    for file in (shared_data / "tokenizers" / "smollm2-135m-instruct").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="loaded as Qwen2Tokenizer"):
        load_tokenizer(tmp_path)
