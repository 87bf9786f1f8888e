"""A signal in the parts of a run that take minutes: it is obeyed at once, and the run goes on bit for bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_server import fake_server
from safetensors.torch import load_file

from w2sr.cli import main
from w2sr.modules import collect
from w2sr.rewards import Overlong
from w2sr.rollouts.embedded import _Slots
from w2sr.runs import read_label

Config = Callable[..., Path]

REPOSITORY = Path(__file__).resolve().parents[2]
OBEYED_S = 60.0
"""Within which a process ends after a signal: the save, the end of the interpreter and a very busy machine."""
STEPS_AFTER = 8
"""Lines of decode steps after the signal: the step in progress and the next one of two ranks, and some that are printed
while the signal is sent."""
SCRIPT = """
import time
from w2sr.cli import main
from w2sr.rollouts.embedded import _Slots
real = _Slots.decode_step
def slow(self):
    print("decoding", flush=True)
    time.sleep(1)
    real(self)
_Slots.decode_step = slow
main()
"""
"""A command whose decode steps take a second each, and say when they begin."""
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}
TABLE = {"class_path": "w2sr.callbacks.FinalTable"}
CLOCK = ("seconds/", "speed/")
"""Values of a round that no two runs share."""


@pytest.fixture(scope="module")
def more(tiny_world: Any) -> dict[str, Any]:
    """2 epochs of 2 rounds of 4 optimizer steps, with all that has a state; validation after the third round."""
    return {
        "data__validation": {"five": {"path": str(tiny_world.validation)}},
        "data__curriculum": {"low": 0.01, "high": 0.99, "keep_frac": 0.5},
        "model__minibatches": 2,
        "model__passes": 2,
        "model__dynamic_sampling": {"max_batches": 3},
        "trainer__callbacks": [EXPORT],
    }


Place = tuple[Any, str, Callable[..., int]]
PLACES: list[Place] = [
    (_Slots, "decode_step", lambda slots: slots.version),
    (collect, "verified_groups", lambda _, requests, completions, *more: completions[0].policy_version),
    # what a reward raises is told as the reward's fault elsewhere
    (Overlong, "__call__", lambda reward, rollout: rollout.completion.policy_version),
    (collect, "check_rollouts", lambda completions, number, max_staleness: number),
]
"""Of a round: a function that is called in it, by its owner and name, and the round's number from its arguments."""


def rounds(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [
        {name: math.nan if value is None else value for name, value in line.items() if not name.startswith(CLOCK)}
        for line in lines
    ]


def interrupted(config: Path, place: Place, number: int, patch: pytest.MonkeyPatch, *words: str) -> tuple[int, int]:
    """Sends SIGTERM in the first call of a function in a round. Returns exit status and number of later calls."""
    owner, name, version_of = place
    real, num_after = getattr(owner, name), list[int]()

    def signalled(*given: Any, **named: Any) -> Any:
        version = version_of(*given)
        if num_after or version == number:
            num_after.append(1)
        if num_after == [1]:
            signal.raise_signal(signal.SIGTERM)
        return real(*given, **named)

    with patch.context() as context, pytest.raises(SystemExit) as end:
        context.setattr(owner, name, signalled)
        main(["fit", "--config", str(config), *words])
    return int(end.value.code or 0), len(num_after) - 1


def test_a_round_that_is_thrown_away_is_asked_again(
    tmp_path: Path,
    grpo_config: Config,
    more: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each round is stopped once, in one of PLACES. Round 0 is the first of the run,
    2 the first of an epoch, 3 follows a validation."""
    main(["fit", "--config", str(grpo_config(tmp_path / "whole", **more))])
    run, words = tmp_path / "run", list[str]()
    config = grpo_config(run, **more)
    for number in range(4):
        ended = interrupted(config, PLACES[number], number, monkeypatch, *words)
        assert ended == (128 + signal.SIGTERM, 0), "and nothing goes on after the signal"
        told = capfd.readouterr().err
        assert f"Stopped at optimizer step {4 * number} of 16" in told, told
        label = read_label(run / "checkpoints" / "last.ckpt")
        assert label is not None and label.step == 4 * number
        words = ["--ckpt_path", "last"]
    main(["fit", "--config", str(config), *words])
    assert rounds(run) == rounds(tmp_path / "whole") and len(rounds(run)) == 4
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_leave_a_long_round_together(strategy: str, tmp_path: Path, grpo_config: Config) -> None:
    """Only the first of two processes is sent the signal. Rollouts of up to 150 tokens take up to 150 s."""
    (tmp_path / "slow.py").write_text(SCRIPT)
    config = grpo_config(
        tmp_path / "run",
        model__sampling={"max_new_tokens": 150},
        model__max_tokens=300,
        trainer__devices=2,
        trainer__strategy=strategy,
    )
    code, told, rest = signalled_when(tmp_path / "told", tmp_path / "slow.py", "fit", "--config", str(config))
    assert code == 128 + signal.SIGTERM and told.count("Stopped at optimizer step 0 of 4 (epoch 0)") == 1, told
    assert "Traceback" not in told and rest.count("decoding") <= STEPS_AFTER
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def signalled_when(
    errors: Path, script: Path, *words: str, begun: Callable[[], bool] | None = None
) -> tuple[int, str, str]:
    """Sends SIGTERM to a command once it decodes, or `begun` says so. Returns its exit status, what it told, which is
    kept in the file `errors`, and what it printed after the signal. Fails where it does not end within OBEYED_S."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(script), *words], env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdout is not None
        if begun is None:
            while (line := process.stdout.readline()) != "decoding\n":
                assert line, errors.read_text()
        while begun is not None and not begun():
            assert process.poll() is None, errors.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        try:
            rest, _ = process.communicate(timeout=OBEYED_S)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"goes on after the signal: {errors.read_text()}")
    return process.returncode, errors.read_text(), rest


def test_predict_leaves_a_server_that_does_not_answer(tmp_path: Path, tiny_world: Any) -> None:
    def hangs(number: int, body: dict[str, Any]) -> None:
        time.sleep(10 * OBEYED_S)

    with fake_server(hangs) as server:
        engine = {"base_url": server.url, "api": "chat"}
        module = {
            "teacher": str(tiny_world.teacher),
            "engine": {"class_path": "w2sr.rollouts.OpenAIServer", "init_args": engine},
            "sampling": {"max_new_tokens": 9},
        }
        data = {"problems": {"quiz": {"path": str(tiny_world.benchmark)}}}
        config = {
            "model": {"class_path": "w2sr.modules.DistillModule", "init_args": module},
            "data": {"class_path": "w2sr.datamodules.ProblemDataModule", "init_args": data},
            "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "store"), "logger": False},
        }
        (tmp_path / "distill.yaml").write_text(yaml.safe_dump(config))
        code, told, _ = signalled_when(
            tmp_path / "told",
            REPOSITORY / "lightning_cli.py",
            *("predict", "--config", str(tmp_path / "distill.yaml")),
            begun=lambda: bool(server.asked),
        )
    assert code == 128 + signal.SIGTERM and "Stopped outside of training" in told, told


def test_the_final_evaluation_is_left_at_once(
    tmp_path: Path,
    fit_config: Config,
    tiny_world: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Training is over and its student written."""
    arms: list[str] = []

    def signalled(*given: Any) -> Any:
        arms.append("begun")
        signal.raise_signal(signal.SIGTERM)
        arms.append("goes on")

    monkeypatch.setattr("w2sr.callbacks.evaluation.evaluate", signalled)
    benchmarks = {"quiz": {"path": str(tiny_world.benchmark)}}
    changes = {"data__benchmarks": benchmarks, "trainer__max_steps": 1, "trainer__callbacks": [EXPORT, TABLE]}
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(fit_config(tmp_path / "run", **changes))])
    assert end.value.code == 128 + signal.SIGTERM and arms == ["begun"]
    assert "Stopped outside of training" in capfd.readouterr().err
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
