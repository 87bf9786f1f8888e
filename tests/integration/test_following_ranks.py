"""Two processes are trained by GRPO on what one server writes, which gets their weights, whole or sharded."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_server import FakeServer, Reply, server_of
from safetensors.torch import load_file
from test_grpo import EXPORT, RANK_RTOL, fit, rounds, run_cli

from w2sr.chat import Chat

GrpoConfig = Callable[..., Path]
MISMATCH = "policy/mismatch_kl"
MISMATCH_ATOL = 1e-6
"""The server's weights are the trainer's, in float32; those of one update before would be off by more than 1e-3."""


@contextmanager
def babbling(tiny_world: Any) -> Iterator[FakeServer]:
    """A server with the policy's log-probabilities, whose completions are random tokens of the request's seed."""

    def babble(number: int, body: dict[str, Any]) -> Reply:
        choose = random.Random(body["seed"])
        ids = [choose.randrange(40) for _ in range(choose.randrange(1, body["max_tokens"]))]
        ids = [token for token in ids if token not in body["stop_token_ids"]] + body["stop_token_ids"][:1]
        assert server.weights is not None
        logprobs = server.weights.score(body["prompt"], ids, body["temperature"])
        choice = {"index": 0, "finish_reason": "stop", "text": "", "token_ids": ids, "prompt_token_ids": body["prompt"]}
        return 200, {}, json.dumps({"choices": [{**choice, "logprobs": {"token_logprobs": logprobs}}]})

    with server_of(tiny_world, Chat.load(tiny_world.student), babble) as server:
        yield server


@pytest.fixture(scope="module")
def server(tiny_world: Any) -> Iterator[FakeServer]:
    with babbling(tiny_world) as server:
        yield server


def following(server: FakeServer, **changes: Any) -> dict[str, Any]:
    settings = {"base_url": server.url, "give_up_after_s": 60.0}
    return {
        "model__engine": {"class_path": "w2sr.rollouts.OpenAIServer", "init_args": settings},
        "model__optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
        "model__learning_rates": {"grpo": 0.3},
        "trainer__callbacks": [EXPORT],
        **changes,
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, grpo_config: GrpoConfig, server: FakeServer) -> Path:
    """The run directory of one process."""
    folder = tmp_path_factory.mktemp("following") / "one"
    fit(grpo_config(folder, **following(server)))
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_with_a_server_have_the_curve_of_one(
    strategy: str, one: Path, tmp_path: Path, grpo_config: GrpoConfig, server: FakeServer
) -> None:
    two = tmp_path / "two"
    fit(grpo_config(two, **following(server, trainer__devices=2, trainer__strategy=strategy)))
    assert len(rounds(one)) == len(rounds(two)) == 4
    for mine, theirs in zip(rounds(one), rounds(two), strict=True):
        assert max(abs(line.pop(MISMATCH)) for line in (mine, theirs)) < MISMATCH_ATOL
        assert theirs == pytest.approx(mine, rel=RANK_RTOL, abs=1e-6, nan_ok=True)
    ours, theirs_too = (load_file(folder / "student" / "model.safetensors") for folder in (one, two))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs_too[name], weight, rtol=RANK_RTOL, atol=1e-6)


def test_the_server_of_sharded_adapters_gets_them_merged(
    tmp_path: Path, grpo_config: GrpoConfig, server: FakeServer, tiny_world: Any
) -> None:
    """Shards draw their adapters otherwise than a whole model does, so there is no curve to compare."""
    changes = following(server, model__lora={"rank": 2, "alpha": 8}, trainer__devices=2, trainer__strategy="fsdp2")
    fit(grpo_config(tmp_path / "run", **changes))
    assert all(abs(line[MISMATCH]) < MISMATCH_ATOL for line in rounds(tmp_path / "run"))
    before, after = (load_file(f / "model.safetensors") for f in (tiny_world.student, tmp_path / "run" / "student"))
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-3, "guard: they were trained"


def test_a_server_that_loads_nothing_ends_all_ranks_of_a_sharded_policy(
    tmp_path: Path, grpo_config: GrpoConfig, tiny_world: Any
) -> None:
    with babbling(tiny_world) as server:
        assert server.weights is not None
        server.weights.ignores_loading = True
        changes = following(server, trainer__devices=2, trainer__strategy="fsdp2")
        done = run_cli("fit", "--config", str(grpo_config(tmp_path / "run", **changes)))
    assert done.returncode != 0
    assert re.search(r"After the update to version \d the engine.s log-probabilities .* differ from", done.stderr)
