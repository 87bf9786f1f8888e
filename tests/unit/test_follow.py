"""Engines that follow a policy: a server that fails and starts anew, vLLM's calls in order, stale completions."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_server import FakeServer, Score, server_of

from w2sr.chat import Chat
from w2sr.policy import LoRA, Policy, load_policy
from w2sr.ranks import from_first_rank, meet
from w2sr.rollouts import OpenAIServer, PolicyGenerator, RolloutEngine, sample_requests
from w2sr.rollouts.freshness import FLOAT32_TOLERANCE, check_rollouts, completion_logprobs, copy_tolerance
from w2sr.rollouts.vllm_generator import VLLMFollower, VLLMGenerator
from w2sr.rollouts.weight_sync import LOCK, sync_folder, written
from w2sr.types import Completion, Problem, SampleRequest, Sampling

CPU = torch.device("cpu")
QUICK = {"backoff_s": 0.02, "backoff_limit_s": 0.1, "give_up_after_s": 5.0, "timeout_s": 5.0}
SAMPLING = Sampling(temperature=0.7, max_new_tokens=23, seed=5)
SAME_ATOL = 1e-4
"""The same float32 weights and code, read back from files; LoRA's product is added to the weights before they are
written."""


@pytest.fixture(scope="module")
def chat(tiny_world: Any) -> Chat:
    return Chat.load(tiny_world.student)


@pytest.fixture
def policy(tiny_world: Any) -> Policy:
    return load_policy(tiny_world.student).eval()


def change(policy: Policy) -> None:
    """Another policy: every weight is moved a little."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def follow(server: FakeServer, policy: Policy, chat: Chat, **settings: Any) -> Any:
    return OpenAIServer(server.url, **{**QUICK, **settings}).follow(policy, chat, CPU)


def requests(chat: Chat, count: int = 3) -> list[SampleRequest]:
    problems = [Problem(f"p{number}", "quiz", f"Today Mia has {number} kites.", str(number)) for number in range(count)]
    return [request for problem in problems for request in sample_requests(problem, chat)]


def gap(policy: Policy, asked: list[SampleRequest], completions: list[Completion]) -> float:
    """The largest difference between the sampler's and the trainer's log-probabilities, in nats."""
    prompts = {request.problem_id: request for request in asked}
    assert len(completions) == len(asked)
    return max(
        float(abs(completion_logprobs(policy, prompts[c.problem_id], c, SAMPLING.temperature) - c.logprobs).max())
        for c in completions
    )


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_a_server_has_the_policy_s_weights_after_an_update_and_not_before(
    lora: LoRA | None, tiny_world: Any, chat: Chat, policy: Policy
) -> None:
    if lora:
        policy.add_lora(lora, chat.stop_token_id)
    with server_of(tiny_world, chat) as server, follow(server, policy, chat) as generator:
        assert generator.policy_version == -1
        change(policy)
        generator.update(4)
        asked = requests(chat)
        fresh = list(generator.stream(asked, SAMPLING))
        assert {c.policy_version for c in fresh} == {4} == {generator.policy_version}
        assert gap(policy, asked, fresh) < SAME_ATOL
        change(policy)
        assert gap(policy, asked, list(generator.stream(asked, SAMPLING))) > 0.1
        generator.update(5)
        assert gap(policy, asked, list(generator.stream(asked, SAMPLING))) < SAME_ATOL
        assert {body["logprobs"] for body in server.asked} == {0}
        assert server.weights is not None and "/reset_prefix_cache" in server.weights.calls


def test_the_weights_folder_is_empty_between_updates_and_gone_afterwards(
    tiny_world: Any, chat: Chat, policy: Policy, tmp_path: Path
) -> None:
    with server_of(tiny_world, chat) as server:
        with follow(server, policy, chat, sync_folder=str(tmp_path)) as generator:
            generator.update(0)
            (folder,) = tmp_path.iterdir()
            assert not list(folder.glob("*.safetensors"))
        assert not list(tmp_path.iterdir())


def test_a_server_that_was_started_anew_between_updates_is_found_out(
    tiny_world: Any, chat: Chat, policy: Policy
) -> None:
    with server_of(tiny_world, chat) as server, follow(server, policy, chat) as generator:
        generator.update(0)
        server.weights.restart()  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match=r"holds the weights 'default', not '.*/0' of the last update"):
            next(generator.stream(requests(chat), SAMPLING))
        generator.update(1)
        assert len(list(generator.stream(requests(chat), SAMPLING))) == 3


def test_a_server_that_is_started_anew_during_a_stream_is_found_out(
    tiny_world: Any, chat: Chat, policy: Policy
) -> None:
    with server_of(tiny_world, chat) as server, follow(server, policy, chat) as generator:
        generator.update(0)
        stream = generator.stream(requests(chat), SAMPLING)
        next(stream)
        server.weights.restart()  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match=r"it was started anew since then"):
            list(stream)


def test_a_server_that_is_started_anew_while_it_loads_loads_again(tiny_world: Any, chat: Chat, policy: Policy) -> None:
    with server_of(tiny_world, chat) as server, follow(server, policy, chat) as generator:
        assert server.weights is not None
        server.weights.restarts_while_loading = 2
        change(policy)
        generator.update(0)
        assert server.weights.calls.count("/collective_rpc") == 3
        asked = requests(chat)
        assert gap(policy, asked, list(generator.stream(asked, SAMPLING))) < SAME_ATOL


def test_a_server_that_does_not_load_what_it_is_given_is_found_out(tiny_world: Any, chat: Chat, policy: Policy) -> None:
    with server_of(tiny_world, chat) as server, follow(server, policy, chat) as generator:
        server.weights.ignores_loading = True  # type: ignore[union-attr]
        generator.update(0)  # the same weights: nothing to find
        with torch.no_grad():
            policy.lm.get_output_embeddings().weight.mul_(-3)
        with pytest.raises(RuntimeError, match=r"After the update to version 1 .* differ from the policy's by .* nats"):
            generator.update(1)


def test_a_server_that_leaves_the_temperature_out_of_its_logprobs_is_found_out(
    tiny_world: Any, chat: Chat, policy: Policy
) -> None:
    with (
        server_of(tiny_world, chat, temperature_matters=False) as server,
        follow(server, policy, chat) as generator,
        pytest.raises(RuntimeError, match=r"those of temperature 1. Start the server with --logprobs-mode"),
    ):
        generator.update(0)


def test_a_server_that_is_gone_ends_the_run_in_time(tiny_world: Any, chat: Chat, policy: Policy) -> None:
    with server_of(tiny_world, chat) as server, follow(server, policy, chat, give_up_after_s=0.2) as generator:
        generator.update(0)
        server.shutdown()
        server.server_close()
        with pytest.raises(ConnectionError, match=r"did not answer for give_up_after_s=0.2 s"):
            generator.update(1)
        with pytest.raises(ConnectionError, match=r"did not answer for give_up_after_s=0.2 s"):
            list(generator.stream(requests(chat), SAMPLING))


def test_a_server_without_the_routes_is_told_how_to_start(tiny_world: Any, chat: Chat, policy: Policy) -> None:
    with server_of(tiny_world, chat) as server:
        server.weights = None
        with (
            pytest.raises(ValueError, match=r"VLLM_SERVER_DEV_MODE=1.* answered 404"),
            follow(server, policy, chat),
        ):
            pass


def test_a_server_that_cannot_read_the_folder_says_so_at_once(tiny_world: Any, chat: Chat, policy: Policy) -> None:
    def unreadable(folder: str) -> Score:
        raise FileNotFoundError(folder)

    with server_of(tiny_world, chat) as server, follow(server, policy, chat) as generator:
        server.weights.load = unreadable  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=r"must see this folder .*sync_folder.* answered 500"):
            generator.update(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api": "chat"}, "api=chat returns neither the token ids .* Set engine.init_args.api to tokens"),
        ({"base_url": "http://far.example/v1"}, "is on another machine.* Set engine.init_args.sync_folder"),
    ],
)
def test_servers_that_cannot_follow_are_refused(
    settings: dict[str, str], message: str, chat: Chat, policy: Policy
) -> None:
    engine = OpenAIServer(**{"base_url": "http://127.0.0.1:9/v1", **settings})
    with pytest.raises(ValueError, match=message), engine.follow(policy, chat, CPU):
        pass


def test_a_sync_folder_must_be_there(policy: Policy, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"sync_folder=.*absent is no folder here"),
        sync_folder(policy, tmp_path / "absent"),
    ):
        pass


HOLDS_A_FOLDER = """
import sys, torch
from w2sr.rollouts.weight_sync import sync_folder
with sync_folder(torch.nn.Linear(2, 2), sys.argv[1]) as folder:
    (folder / "model.safetensors").write_bytes(b"weights")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folders_of_killed_runs_are_removed_and_only_those(policy: Policy, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS_A_FOLDER, tmp_path]
    killed, lives, foreign = runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    left, held, other = (Path(run.stdout.readline().strip()) for run in runs if run.stdout)
    for run in (killed, foreign):
        run.kill()
        run.wait()
    assert left.is_dir(), "guard: kill -9 leaves it"
    if os.geteuid() == 0:
        os.chown(other / LOCK, 12345, -1)
    (tmp_path / "w2sr-weights-mine").mkdir()  # no run made it
    with sync_folder(policy, tmp_path) as folder:
        expected = {folder.name, held.name, "w2sr-weights-mine", *([other.name] if os.geteuid() == 0 else [])}
        assert {path.name for path in tmp_path.iterdir()} == expected
        assert (held / "model.safetensors").is_file()
    assert not folder.exists()
    lives.communicate("")
    assert lives.returncode == 0 and not held.exists()


def test_a_disk_without_locks_is_named(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ValueError, match=r"is on a disk without file locks \(Function not implemented\)"):
        sync_folder(policy, tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_an_engine_that_only_opens_models_says_what_to_take(chat: Chat, policy: Policy) -> None:
    class Opens(RolloutEngine):
        def open(self, *_: Any) -> Any: ...

    with pytest.raises(ValueError, match=r"engine=Opens only runs models .* w2sr.rollouts.Embedded"):
        Opens().follow(policy, chat, CPU)


DONE = Completion("quiz/7", 3, (5, 6), "12", "stop", logprobs=(-0.5, -1.0), policy_version=4)


def test_completions_are_fresh_up_to_max_staleness() -> None:
    check_rollouts([DONE], 4, max_staleness=0)
    check_rollouts([DONE], 6, max_staleness=2)
    message = "Sample 3 of problem 'quiz/7' was written by version 4 of the policy, which is at version 7: 3 before"
    with pytest.raises(ValueError, match=f"{message} .*max_staleness=2"):
        check_rollouts([DONE], 7, max_staleness=2)
    with pytest.raises(ValueError, match=r"by version 4 of the policy, which is at version 3: not from before"):
        check_rollouts([DONE], 3, max_staleness=2)


def test_completions_without_logprobs_are_not_trained_on() -> None:
    with pytest.raises(ValueError, match=r"has no log-probabilities of its 2 tokens.*set top_p to 1"):
        check_rollouts([replace(DONE, logprobs=None)], 4, max_staleness=0)


def test_float32_on_both_sides_is_held_to_more(policy: Policy) -> None:
    assert copy_tolerance(policy, "float32") == FLOAT32_TOLERANCE
    assert copy_tolerance(policy, "bfloat16") == copy_tolerance(policy, None) > 100 * FLOAT32_TOLERANCE
    assert copy_tolerance(policy.to(torch.bfloat16), "float32") > FLOAT32_TOLERANCE


class StandIn:
    """What a `vllm.LLM` is told, in order. Its prefix cache is in use as often as `busy` says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.stamp, self.resets = folder, list[str](), "default", True
        self.renderer = None
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(resources=SimpleNamespace(engine_dead=False)))
        self.model_config = type("", (), {"max_model_len": 99})

    def collective_rpc(self, method: str, kwargs: dict[str, str]) -> None:
        assert kwargs["weights_path"] == str(self.folder)
        assert json.loads((self.folder / "config.json").read_text())["tie_word_embeddings"] is False
        assert list(self.folder.glob("*.safetensors"))
        self.told.append(method)

    def reset_prefix_cache(self) -> bool:
        self.told.append("reset")
        return self.resets

    def update_weight_version(self, stamp: str) -> None:
        self.stamp = stamp

    def get_weight_version(self) -> str:
        return self.stamp

    def sleep(self, level: int) -> None:
        self.told.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.told += tags


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, chat: Chat, policy: Policy, tmp_path: Path) -> Any:
    """(a stand-in for vllm.LLM, make a follower of it)."""
    from w2sr.rollouts import vllm_generator

    @contextmanager
    def alive() -> Iterator[None]:
        yield

    monkeypatch.setattr(vllm_generator, "_while_alive", alive)
    monkeypatch.setattr(vllm_generator, "check_copy", lambda *_: None)
    llm = StandIn(tmp_path)

    def make(*, sleeps: bool) -> VLLMFollower:
        generator = VLLMGenerator(llm, chat, policy_version=-1, follows=True)
        return VLLMFollower(llm, generator, policy, chat, tmp_path, writes=True, sleeps=sleeps, tolerance=0.0)

    return llm, make


def test_vllm_sleeps_and_wakes_for_its_weights_first(stand_in: Any) -> None:
    llm, make = stand_in
    follower: PolicyGenerator = make(sleeps=True)
    follower.update(0)
    follower.rest()
    follower.rest()
    with pytest.raises(AssertionError, match=r"after a rest"):
        next(iter(follower.stream([], SAMPLING)))
    follower.update(1)
    assert llm.told == ["reload_weights", "reset", "sleep 2", "weights", "reload_weights", "kv_cache", "reset"]
    assert list(follower.stream([], SAMPLING)) == []


def test_vllm_on_a_cpu_cannot_sleep(stand_in: Any) -> None:
    llm, make = stand_in
    follower = make(sleeps=False)
    follower.update(0)
    follower.rest()
    assert llm.told == ["reload_weights", "reset"] and list(follower.stream([], SAMPLING)) == []


def test_vllm_with_other_weights_than_those_of_the_last_update_is_found_out(stand_in: Any) -> None:
    llm, make = stand_in
    follower = make(sleeps=False)
    with pytest.raises(AssertionError, match=r"update comes before sampling"):
        next(follower.stream([], SAMPLING))
    follower.update(2)
    llm.stamp = "default"
    with pytest.raises(RuntimeError, match=r"holds the weights 'default', not '[0-9a-f]{8}/2' of the last update"):
        list(follower.stream([], SAMPLING))
    llm.resets = False
    with pytest.raises(RuntimeError, match=r"kept its prefix cache"):
        follower.update(3)


def test_written_weights_are_gone_also_after_an_error(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(KeyError), written(policy, tmp_path):
        assert list(tmp_path.glob("*.safetensors"))
        raise KeyError
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_fails_on_one_rank_ends_every_rank_and_a_machine_has_one_folder(tmp_path: Path) -> None:
    script = Path(__file__).with_name("rank_zero.py")
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), tmp_path], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    folders = ["1 folders, written by [True, False]", "2 folders, written by [True, True]"]
    said = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    assert said == [
        ["made on 0", "ValueError: no such folder", "RuntimeError: Rank 1 ended with OSError: no room", *folders],
        ["made on 0", "RuntimeError: Rank 0 ended with ValueError: no such folder", "OSError: no room", *folders],
    ]


def test_one_process_is_its_own_first_rank() -> None:
    meet()
    assert from_first_rank(lambda: 5) == 5
