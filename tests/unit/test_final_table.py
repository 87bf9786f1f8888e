"""The arms of the final table against transformers' `generate`: whose weights, and which prompt, each of them has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from w2sr.callbacks import FinalTable
from w2sr.datamodules.sources import build_verifiers, load_problems
from w2sr.modules import SFTModule
from w2sr.types import DataFile, Problem, Sampling

MAX_NEW_TOKENS = 15
INSTRUCTION = " Please reason step by step."
"""In words that the tokenizer knows."""


@pytest.fixture(scope="module")
def teacher(tiny_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher with a chat template of its own: `How` before each problem."""
    folder = tmp_path_factory.mktemp("teacher")
    AutoModelForCausalLM.from_pretrained(tiny_world.teacher).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_world.teacher)
    content = "{{ message['content'] }}"
    how = "{% if message['role'] == 'user' %}How {% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace(content, how + content)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tiny_world: Any, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SFTModule]:
    """The run folder after `on_fit_end`, and the module, whose policy is not the plain student any more."""
    folder = tmp_path_factory.mktemp("table")
    file = DataFile(str(tiny_world.benchmark))
    verifiers = build_verifiers({"quiz": file}, 5.0)
    problems = load_problems("quiz", file, verifiers["quiz"], seed=0, on_bad_row="error", on_bad_reference="error")
    module = SFTModule(
        str(tiny_world.student), str(teacher), sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS), num_slots=3
    )
    module.configure_model()
    assert module.policy is not None
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in module.policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    data = SimpleNamespace(test_problems=problems, verifiers=verifiers, keep="P")
    trainer: Any = SimpleNamespace(
        datamodule=data, lightning_module=module, default_root_dir=str(folder), global_rank=0, world_size=1
    )
    callback = FinalTable(instruction=INSTRUCTION)
    callback.on_train_start(trainer, module)
    callback.on_train_end(trainer, module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SFTModule, "arm", "W2SR-P")
        callback.on_fit_end(trainer, module)
    return folder, module


def generated(lm: Any, tokenizer: Any, problem: str) -> str:
    """What transformers says, greedily, to the problem as the tokenizer's own template renders it."""
    turns = [{"role": "user", "content": problem}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_tensors="pt", return_dict=False
    )
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = lm.generate(prompt, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=stop, pad_token_id=stop)
    return str(tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True))


def test_every_arm_has_its_own_weights_and_prompt(
    table: tuple[Path, SFTModule], tiny_world: Any, teacher: Path
) -> None:
    folder, module = table
    plain, of_teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_world.student, teacher))
    trained = AutoModelForCausalLM.from_pretrained(tiny_world.student)
    assert module.policy is not None
    trained.load_state_dict(module.policy.lm.state_dict())
    student, teachers = (AutoTokenizer.from_pretrained(path) for path in (tiny_world.student, teacher))
    arms = {
        "plain-student": (plain, student, ""),
        "plain-student-cot-prompt": (plain, student, INSTRUCTION),
        "teacher": (of_teacher, teachers, ""),
        "w2sr-p": (trained, student, ""),
    }
    problems = [Problem(**json.loads(line)) for line in tiny_world.benchmark.read_text().splitlines()]
    said = {}
    for arm, (lm, tokenizer, instruction) in arms.items():
        lines = (folder / "eval" / arm / "completions.jsonl").read_text().splitlines()
        said[arm] = [json.loads(line)["completion"] for line in lines]
        assert said[arm] == [generated(lm, tokenizer, problem.problem + instruction) for problem in problems], arm
    assert len({tuple(texts) for texts in said.values()}) == 4, "guard: the arms differ"
    as_students = [generated(of_teacher, student, problem.problem) for problem in problems]
    assert as_students != said["teacher"], "guard: the teacher's own template makes a difference"
