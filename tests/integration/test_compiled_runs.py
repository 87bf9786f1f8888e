"""`model.kernels.compile` through the command line: a run whose blocks are compiled has the curves of an eager one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AttentionInterface

from w2sr import attention
from w2sr.cli import main

CURVE_RTOL = 1e-4
"""The compiler adds the same float32 numbers in another order; 8 optimizer steps of a rate of 0.01 carry that on."""

CLOCK = ("seconds/", "speed/")
"""Values of a round that no two runs share."""

Config = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]


@pytest.fixture(autouse=True)
def no_graph_is_given_up() -> Iterator[None]:
    """Beyond its limit of graphs Dynamo runs a block as it is written, and only logs that."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    AttentionInterface.register(attention.ATTENTION_NAME, attention.packed_attention)


def test_a_compiled_fit_has_the_curve_of_an_eager_one(tmp_path: Path, fit_config: Config, scalars: Scalars) -> None:
    curves = []
    for compiled in (False, True):
        folder = tmp_path / f"compiled-{compiled}"
        keys: dict[str, Any] = {"model__kernels": {"compile": compiled}, "model__gradient_checkpointing": "selective"}
        main(["fit", "--config", str(fit_config(folder, data__max_tokens=120, **keys))])
        curves.append([scalars(folder, f"train/{name}") for name in ("loss", "grad_norm")])
    eager, ours = curves
    assert counters["stats"]["unique_graphs"] > 0
    assert len(eager[0]) == 8
    for one, other in zip(ours, eager, strict=True):
        assert one == pytest.approx(other, rel=CURVE_RTOL)


def test_a_compiled_grpo_run_has_the_rounds_of_an_eager_one(tmp_path: Path, grpo_config: Config) -> None:
    """Rollouts too: they are sampled by the compiled blocks, with the noise of the eager run."""
    shortness = {"class_path": "w2sr.rewards.Overlong", "init_args": {"max_tokens": 48, "buffer_tokens": 48}}
    keys: dict[str, Any] = {
        "model__rewards": {"short": {"reward": shortness}},
        "model__sampling": {"max_new_tokens": 48},
        "model__learning_rates": {"grpo": 0.001},
        "model__passes": 2,
    }
    runs = []
    for compiled in (False, True):
        folder = tmp_path / f"compiled-{compiled}"
        main(["fit", "--config", str(grpo_config(folder, model__kernels={"compile": compiled}, **keys))])
        runs.append([json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()])
    eager, ours = runs
    assert counters["stats"]["unique_graphs"] > 0
    assert len(eager) == 4 and sum((line["train/grad_norm"] or 0) > 0 for line in eager) >= 2, (
        "guard: rounds that teach"
    )
    for one, other in zip(ours, eager, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            if other[name] is None:  # a mean over no token
                assert one[name] is None, name
            elif not name.startswith(CLOCK):
                assert one[name] == pytest.approx(other[name], rel=CURVE_RTOL, abs=CURVE_RTOL), name
