"""The engine in process against a stand-in for vLLM, and engines as a configuration names them.

What a real vLLM does with it is in tests/real_vllm.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningModule

from w2sr.chat import Chat
from w2sr.miniature.tokenizer import build_tokenizer
from w2sr.rollouts import VLLM, Embedded, OpenAIServer, RolloutEngine, vllm_local
from w2sr.rollouts.vllm_generator import VLLMGenerator
from w2sr.rollouts.vllm_local import rank_gpus
from w2sr.types import SampleRequest, Sampling

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CHAT = Chat(build_tokenizer())


@pytest.mark.parametrize(
    ("visible", "index", "size", "num_gpus", "own"),
    [(None, 0, 1, 4, "0"), (None, 3, 1, 4, "3"), (None, 1, 2, 4, "2,3"), ("4,5,6,7", 1, 2, 4, "6,7")],
)
def test_each_rank_has_its_own_gpus(visible: str | None, index: int, size: int, num_gpus: int, own: str) -> None:
    assert rank_gpus(visible, index, size, num_gpus) == own


def test_more_ranks_than_gpus_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"GPU 2 needs 2 GPUs .* from number 4 on; this node has 4. Set trainer.devices=2"
    ):
        rank_gpus(None, 2, 2, 4)


def test_engine_args_are_handed_on_and_may_not_say_a_thing_twice() -> None:
    arguments = VLLM(max_model_len=99, engine_args={"max_num_seqs": 3})._arguments()
    assert "logprobs_mode" not in arguments, "who follows no policy pays nothing for log-probabilities"
    assert arguments["max_num_seqs"] == 3 and arguments["max_model_len"] == 99
    assert arguments["load_format"] == "safetensors"
    with pytest.raises(ValueError, match="engine_args sets dtype, which"):
        VLLM(engine_args={"dtype": "float16"})._arguments()
    with pytest.raises(ValueError, match="engine_args sets logprobs_mode, which"):
        VLLM(engine_args={"logprobs_mode": "raw_logprobs"})._arguments({"logprobs_mode": "processed_logprobs"})


class StandIn:
    """An engine of vLLM that ends every request in its first step with this reason, and remembers what is open."""

    def __init__(self, reason: str) -> None:
        self.reason, self.open = reason, {}

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        self.open[name] = prompt

    def step(self) -> list[Any]:
        name = next(iter(self.open))
        output = SimpleNamespace(finish_reason=self.reason, token_ids=[5, 7], logprobs=None)
        self.open.pop(name)
        return [SimpleNamespace(finished=True, request_id=name, outputs=[output])]

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.open.pop(name)


def stand_in(reason: str, monkeypatch: pytest.MonkeyPatch) -> tuple[StandIn, VLLMGenerator]:
    engine = StandIn(reason)
    llm = SimpleNamespace(
        llm_engine=engine,
        renderer=SimpleNamespace(render_cmpl=lambda prompts: prompts),
        model_config=SimpleNamespace(max_model_len=64),
    )
    monkeypatch.setattr(VLLMGenerator, "_params", lambda *_: None)
    return engine, VLLMGenerator(llm, CHAT)


def test_walking_away_aborts_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, generator = stand_in("length", monkeypatch)
    stream = generator.stream([SampleRequest(str(n), 0, (1, n)) for n in range(5)], Sampling(max_new_tokens=9))
    assert next(stream).problem_id == "0" and len(engine.open) == 4
    stream.close()  # type: ignore[attr-defined]
    assert not engine.open


def test_a_completion_that_vllm_broke_off_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _, generator = stand_in("abort", monkeypatch)
    with pytest.raises(RuntimeError, match="sample 2 of problem 'a' with 'abort' after 2 tokens"):
        list(generator.stream([SampleRequest("a", 2, (1,))], Sampling(max_new_tokens=9)))


def test_processes_of_vllm_never_get_the_signal_that_asks_for_a_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM sends it to every process of a job step; vLLM's would die of it in the middle of our step."""
    asks = "import signal; print(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    said = []

    def llm_class(**_: Any) -> Any:
        said.append(subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True).stdout)
        llm = stand_in("length", monkeypatch)[0]
        llm.engine_core = SimpleNamespace(shutdown=lambda: None)
        config = SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 10**6)
        return SimpleNamespace(llm_engine=llm, renderer=None, model_config=config)

    monkeypatch.setattr(vllm_local, "_import_llm", lambda: llm_class)
    with VLLM().open(str(tmp_path), CHAT, torch.device("cpu")):
        assert said == ["True\n"] and signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


class Writes(LightningModule):
    """A module with an engine, as every module that writes traces has one."""

    def __init__(self, engine: RolloutEngine = Embedded(num_slots=7)) -> None:
        super().__init__()
        self.engine = engine


@pytest.mark.parametrize(("overlay", "kind"), [("vllm", VLLM), ("vllm_cpu", VLLM), ("server", OpenAIServer)])
@pytest.mark.parametrize("base", [None, {"class_path": "w2sr.rollouts.Embedded", "init_args": {"num_slots": 3}}])
def test_engine_overlays_fit_over_any_module_that_has_an_engine(
    overlay: str, kind: type[RolloutEngine], base: dict[str, Any] | None, tmp_path: Path
) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningModule, "model")
    module: dict[str, Any] = {"class_path": f"{__name__}.Writes"}
    if base:
        module["init_args"] = {"engine": base}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"model": module}))
    file = CONFIGS / "engine" / f"{overlay}.yaml"
    parsed = parser.parse_args([f"--config={tmp_path / 'base.yaml'}", f"--config={file}"])
    engine = parser.instantiate_classes(parsed).model.engine
    assert type(engine) is kind
    settings = yaml.safe_load(file.read_text())["model"]["init_args"]["engine"]["init_args"]
    assert {name: getattr(engine, name) for name in settings} == settings
    again = parser.parse_args([f"--config={tmp_path / 'base.yaml'}", f"--config={file}", *extra(overlay)])
    assert parser.instantiate_classes(again).model.engine != engine


def extra(overlay: str) -> list[str]:
    key = "api=chat" if overlay == "server" else "tensor_parallel_size=2"
    return [f"--model.init_args.engine.init_args.{key}"]
