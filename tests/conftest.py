"""Fixtures that several test files share: real data, and a world so small that a whole run takes a second."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

# Models of a few thousand weights: a second OpenMP thread only waits, twenty-fold so beside another busy process.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deals the files that start servers and jobs out among those of `integration`, the longest of the others: with
    several workers none of them comes last, and two of them seldom run at once. What is short fills the end."""
    files = list(dict.fromkeys(item.path for item in items))
    starting = [file for file in files if file.parent.name.startswith("real_")]
    long = [file for file in files if file.parent.name == "integration"]
    order, every = list[Path](), max(1, len(long) // max(1, len(starting)))
    for number, file in enumerate(long):
        if number % every == 0:
            order += starting[:1]
            del starting[:1]
        order.append(file)
    rank = {file: place for place, file in enumerate(dict.fromkeys([*order, *starting, *files]))}
    items.sort(key=lambda item: rank[item.path])


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Lightning tells a machine's processes apart by variables that it leaves behind: processes that a later test
    starts would take them for their own, and wait for others that nobody starts."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real problems, traces and tokenizers beside the checkout; tests that need them are skipped without."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data folder {folder} is absent")
    return folder


class TinyWorld(NamedTuple):
    """Files of a run: two random models of some thousand weights, 20 traces (15 right), 6 test problems, 5 others."""

    student: Path
    teacher: Path
    traces: Path
    benchmark: Path
    validation: Path


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    from w2sr.miniature.world import generate
    from w2sr.traces import write_store

    folder = tmp_path_factory.mktemp("tiny")
    rng = random.Random(11)
    asked = [generate(rng, 1 + number % 4) for number in range(31)]
    world = TinyWorld(*(folder / name for name in ("student", "teacher", "traces", "quiz.jsonl", "validation.jsonl")))
    _write_model(world.student, seed=5)
    _write_model(world.teacher, seed=6)
    write_store(world.traces, [_trace(word_problem, number, rng) for number, word_problem in enumerate(asked[:20])])
    for path, part in ((world.benchmark, asked[20:26]), (world.validation, asked[26:])):
        path.write_text("".join(json.dumps(one.to_problem()._asdict()) + "\n" for one in part))
    return world


def _trace(word_problem: Any, number: int, rng: random.Random) -> Any:
    """A right trace, or (every fourth) one whose last number is changed. 52 to 98 tokens with the prompt."""
    from w2sr.miniature.world import answer_text
    from w2sr.types import Trace

    text, right = answer_text(word_problem, "chain", rng), number % 4 != 3
    answer = word_problem.answer if right else word_problem.answer + 1
    return Trace(
        *word_problem.to_problem()[:1],
        source="tiny",
        problem=word_problem.text(),
        reference_answer=str(word_problem.answer),
        teacher="tiny/weak",
        completion=text.replace(f"{{{word_problem.answer}}}", f"{{{answer}}}"),
        finish_reason="stop",
        answer=str(answer),
        verdict="correct" if right else "incorrect",
    )


def _write_model(folder: Path, seed: int) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from w2sr.miniature.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,  # with the usual 0.02 a tied model repeats its last token for ever
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def fit_config(tiny_world: TinyWorld) -> Callable[..., Path]:
    """Writes the configuration of a fit on the tiny world beside the run's folder: (folder, changes) → its path.

    A change is spelled `data__window=3`, `trainer__devices=2`. 2 epochs of 4 steps: 15 right traces, 4 a step. Nothing
    is validated, saved or exported unless the changes say so.
    """

    def write(folder: Path, **changes: Any) -> Path:
        model = {
            "class_path": "w2sr.modules.SFTModule",
            "init_args": {
                "student": str(tiny_world.student),
                "learning_rates": {"sft": 0.01},
                "warmup_frac": 0.25,
                "clip_norm": 0.7,
                "sampling": {"max_new_tokens": 9},
            },
        }
        data = {
            "class_path": "w2sr.datamodules.TraceDataModule",
            "init_args": {"traces": [{"path": str(tiny_world.traces)}], "max_tokens": 160, "step_sequences": 4},
        }
        return _write_config(folder, model, data, changes)

    return write


@pytest.fixture(scope="session")
def grpo_config(tiny_world: TinyWorld) -> Callable[..., Path]:
    """Likewise of GRPO: 2 epochs of 2 rounds of 3 problems, 4 rollouts each, whose reward is how short they are."""

    def write(folder: Path, **changes: Any) -> Path:
        shortness = {"class_path": "w2sr.rewards.Overlong", "init_args": {"max_tokens": 12, "buffer_tokens": 12}}
        model = {
            "class_path": "w2sr.modules.GRPOModule",
            "init_args": {
                "student": str(tiny_world.student),
                "learning_rates": {"grpo": 0.01},
                "clip_norm": 0.7,
                "group_size": 4,
                "rewards": {"short": {"reward": shortness, "weight": 2.0}},
                "max_tokens": 160,
                "sampling": {"max_new_tokens": 12},
            },
        }
        data = {
            "class_path": "w2sr.datamodules.ProblemDataModule",
            "init_args": {"problems": {"six": {"path": str(tiny_world.benchmark)}}, "step_problems": 3},
        }
        return _write_config(folder, model, data, changes)

    return write


def _write_config(folder: Path, model: dict[str, Any], data: dict[str, Any], changes: dict[str, Any]) -> Path:
    import yaml

    config: dict[str, Any] = {
        "seed_everything": 0,
        "model": model,
        "data": data,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(folder),
            "max_epochs": 2,
            "check_val_every_n_epoch": None,
            "val_check_interval": 3,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [],
        },
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        at = config
        for name in path:
            at = at[name] if name not in ("model", "data") else at[name]["init_args"]
        at[last] = value
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="session")
def scalars() -> Callable[[Path, str], dict[int, float]]:
    """(run folder, tag) → optimizer step → value, from the run's TensorBoard log."""

    def read(folder: Path, tag: str) -> dict[int, float]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        return {event.step: event.value for event in events.Scalars(tag)}

    return read
