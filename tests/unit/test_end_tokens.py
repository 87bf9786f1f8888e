"""Models whose generation config lists several end tokens: completions end where transformers' `generate` ends them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from w2sr.chat import Chat
from w2sr.policy import load_policy
from w2sr.rollouts import EmbeddedGenerator, sample_requests
from w2sr.tokenizer import generation_end_ids
from w2sr.types import Problem, Sampling

LIMIT = 24
GREEDY = Sampling(temperature=0.0, max_new_tokens=LIMIT)


def with_ends(model: Path, folder: Path, ends: Any) -> Path:
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def completions(model: Path, problems: list[str]) -> list[tuple[int, ...]]:
    chat = Chat.load(model)
    requests = [sample_requests(Problem(text, "quiz", text, "0"), chat)[0] for text in problems]
    generator = EmbeddedGenerator(load_policy(model), chat.stop_token_ids, chat.decode)
    done = {one.problem_id: one.token_ids for one in generator.stream(requests, GREEDY)}
    return [done[text] for text in problems]


def generated(model: Path, problems: list[str]) -> list[tuple[int, ...]]:
    """By transformers, with the end tokens that it reads from the model's directory."""
    lm, chat = AutoModelForCausalLM.from_pretrained(model), Chat.load(model)
    rows = []
    for text in problems:
        prompt = torch.tensor([chat.prompt_ids(text)])
        out = lm.generate(prompt, max_new_tokens=LIMIT, do_sample=False, pad_token_id=0)
        rows.append(tuple(out[0, prompt.shape[1] :].tolist()))
    return rows


def test_completions_end_where_transformers_ends_them(tiny_world: Any, tmp_path: Path) -> None:
    """A token that the model writes by itself, neither special nor the tokenizer's end token, is a second end token."""
    problems = [f"Today Mia has {number} kites." for number in range(8)]
    stop = Chat.load(tiny_world.student).stop_token_id
    plain = completions(tiny_world.student, problems)
    second = next(token for row in plain for token in row[2:] if token != stop)
    model = with_ends(tiny_world.student, tmp_path / "model", [stop, second])
    ours = completions(model, problems)
    assert ours == generated(model, problems) and ours != plain
    assert any(row[-1] == second and len(row) < LIMIT for row in ours), "the second end token ends some"


def test_a_student_is_exported_with_all_end_tokens(tiny_world: Any, tmp_path: Path) -> None:
    stop = Chat.load(tiny_world.student).stop_token_id
    model = with_ends(tiny_world.student, tmp_path / "model", [stop, 9, 11])
    chat = Chat.load(model)
    load_policy(model).save(tmp_path / "student", chat)
    assert GenerationConfig.from_pretrained(tmp_path / "student").eos_token_id == [stop, 9, 11]
    assert Chat.load(tmp_path / "student").stop_token_ids == chat.stop_token_ids
    assert chat.with_instruction(" Think.").stop_token_ids == chat.stop_token_ids


def test_traces_that_end_on_other_tokens_are_other_traces(tiny_world: Any, tmp_path: Path) -> None:
    """The recipe of a store holds this hash. A generation config without other end tokens leaves it as it is."""
    stop = Chat.load(tiny_world.student).stop_token_id
    same, other = (
        Chat.load(with_ends(tiny_world.student, tmp_path / name, ends))
        for name, ends in (("same", [stop]), ("other", [stop, 9]))
    )
    without = with_ends(tiny_world.student, tmp_path / "without", None)
    (without / "generation_config.json").unlink()
    assert generation_end_ids(without) == ()
    assert same.template_hash == Chat.load(without).template_hash != other.template_hash


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([2, 5000], r"ends completions on the ids \[2, 5000\], of which its tokenizer has no \[5000\]"),
        ("</s>", "eos_token_id='</s>'; it must be a token id, or a list of token ids"),
        ([True], r"eos_token_id=\[True\]; it must be"),
    ],
)
def test_end_tokens_that_are_none_are_refused(ends: Any, said: str, tiny_world: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        Chat.load(with_ends(tiny_world.student, tmp_path / "model", ends))
