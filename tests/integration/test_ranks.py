"""Two processes (gloo, CPU) train as one does, with DDP and sharded: the same losses, weights, validation and table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from step_recorder import recorded

from w2sr.modules.sharded_checkpoints import read_tensors
from w2sr.runs import Progress, check_checkpoint, read_label

FitConfig = Callable[..., Path]
Scalars = Callable[[Path, str], dict[int, float]]

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 600
"""A run takes 15 s, with compiled blocks two minutes, on a busy machine thrice that; after this it hangs."""
LOSS_ATOL = 2e-5
"""Losses of 6 to 8 in float32 (5e-7 an ulp), summed in another order, after up to 8 optimizer steps."""
GRAD_NORM_RTOL = 1e-4
WEIGHT_ATOL = 1e-5
"""SGD without clipping: what a wrong scale of the gradient would change is not divided out again, as in Adam."""

SAVE_LAST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"save_last": True, "every_n_train_steps": 1},
}
EXPORT = {"class_path": "w2sr.callbacks.ExportStudent"}
TABLE = {"class_path": "w2sr.callbacks.FinalTable"}
RECORD = {"class_path": "step_recorder.StepRecorder"}


def run_cli(verb: str, config: Path, *extra: str, status: int = 0) -> str:
    """One command line in a process group of its own, as a user starts it; kills it where it hangs."""
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "W2SR_TRACEBACK": "" if status else "1"}
    command = [sys.executable, str(REPOSITORY / "lightning_cli.py"), verb, "--config", str(config), *extra]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            pytest.fail(f"hangs after {HANG_S} s:\n{process.communicate()[0][-3000:]}")
    assert process.returncode == status, output[-5000:]
    return output


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, fit_config: FitConfig, tiny_world: Any) -> Path:
    """The run folder of one process."""
    return fitted(tmp_path_factory.mktemp("one"), fit_config, tiny_world)


@pytest.fixture(scope="module", params=["ddp", "fsdp2", "fsdp2 compiled"])
def two_and_one(
    request: Any, tmp_path_factory: pytest.TempPathFactory, fit_config: FitConfig, tiny_world: Any, one: Path
) -> tuple[Path, Path]:
    """The run folders of two processes and of one."""
    strategy, *compiled = request.param.split()
    changes = {"trainer__devices": 2, "trainer__strategy": strategy, "model__kernels": {"compile": bool(compiled)}}
    return fitted(tmp_path_factory.mktemp(strategy), fit_config, tiny_world, **changes), one


def fitted(folder: Path, fit_config: FitConfig, tiny_world: Any, **changes: Any) -> Path:
    """The folder of a finished run. Rows of 120 tokens: a step has 1 to 4 of them."""
    config = fit_config(
        folder / "run",
        data__max_tokens=120,
        data__held_out_frac=0.2,
        data__validation={"five": {"path": str(tiny_world.validation)}},
        data__benchmarks={"six": {"path": str(tiny_world.benchmark)}},
        model__learning_rates={"sft": 0.02},
        model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
        model__clip_norm=0.0,
        trainer__callbacks=[SAVE_LAST, EXPORT, TABLE, RECORD],
        **changes,
    )
    run_cli("fit", config)
    return folder / "run"


def test_two_processes_have_the_loss_curve_of_one(two_and_one: tuple[Path, Path], scalars: Scalars) -> None:
    two, one = (scalars(folder, "train/loss") for folder in two_and_one)
    assert len(one) >= 6 and list(two) == list(one)
    assert two == pytest.approx(one, abs=LOSS_ATOL, rel=0)
    two, one = (scalars(folder, "train/grad_norm") for folder in two_and_one)
    assert two == pytest.approx(one, rel=GRAD_NORM_RTOL)
    two, one = (scalars(folder, "train/loss_tokens") for folder in two_and_one)
    assert two == one


def test_two_processes_end_with_the_weights_of_one(two_and_one: tuple[Path, Path], tiny_world: Any) -> None:
    two, one = (load_file(folder / "student" / "model.safetensors") for folder in two_and_one)
    before = load_file(tiny_world.student / "model.safetensors")
    torch.testing.assert_close(two, one, atol=WEIGHT_ATOL, rtol=0)
    assert all((one[name] - before[name]).abs().max() > 100 * WEIGHT_ATOL for name in one if one[name].ndim == 2)
    checkpoint = two_and_one[0] / "checkpoints" / "last.ckpt"
    assert checkpoint.is_dir() == ((two_and_one[0] / "config.yaml").read_text().count("strategy: fsdp2") == 1)
    whole = read_tensors(checkpoint) if checkpoint.is_dir() else torch.load(checkpoint, weights_only=True)
    saved = whole["state_dict"]
    for name, weight in two.items():
        torch.testing.assert_close(saved[f"policy.lm.{name}"], weight, atol=0, rtol=0)


def test_two_processes_validate_an_odd_number_of_problems_as_one(
    two_and_one: tuple[Path, Path], scalars: Scalars
) -> None:
    two, one = (scalars(folder, "val/loss") for folder in two_and_one)
    assert len(one) == 2 and two == pytest.approx(one, abs=LOSS_ATOL, rel=0)
    two, one = (scalars(folder, "val/pass@1") for folder in two_and_one)
    assert len(one) == 2 and two == one


def test_two_processes_write_the_final_table_of_one(two_and_one: tuple[Path, Path], tiny_world: Any) -> None:
    asked = [json.loads(line)["problem_id"] for line in tiny_world.benchmark.read_text().splitlines()]
    arms = [sorted(path.parent.name for path in (folder / "eval").glob("*/result.json")) for folder in two_and_one]
    assert len(arms[1]) == 3 and arms[0] == arms[1], "no teacher is named: three arms"
    for arm in arms[0]:
        texts = [(folder / "eval" / arm / "completions.jsonl").read_text() for folder in two_and_one]
        assert [json.loads(line)["problem_id"] for line in texts[0].splitlines()] == asked
        if arm.startswith("plain"):
            assert texts[0] == texts[1], "the same weights: what a problem gets does not depend on the rank"


def evaluation(folder: Path, tiny_world: Any, **module: Any) -> Path:
    """The configuration of a sharded test on 6 problems, beside its folder."""
    config = {
        "model": {
            "class_path": "w2sr.modules.EvalModule",
            "init_args": {"student": str(tiny_world.student), "sampling": {"max_new_tokens": 9}, **module},
        },
        "data": {
            "class_path": "w2sr.datamodules.ProblemDataModule",
            "init_args": {"benchmarks": {"six": {"path": str(tiny_world.benchmark)}}, "batch_problems": 4},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 2,
            "strategy": "fsdp2",
            "logger": False,
            "default_root_dir": str(folder),
            "callbacks": [{"class_path": "w2sr.callbacks.EvalWriter"}],
        },
    }
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_a_sharded_model_is_evaluated_as_a_whole_one(one: Path, tiny_world: Any, tmp_path: Path) -> None:
    run_cli("test", evaluation(tmp_path / "eval", tiny_world))
    alone = (one / "eval" / "plain-student" / "completions.jsonl").read_text()
    assert (tmp_path / "eval" / "completions.jsonl").read_text() == alone


def test_a_calculator_is_refused_where_the_model_is_sharded(tiny_world: Any, tmp_path: Path) -> None:
    letter = run_cli("test", evaluation(tmp_path / "eval", tiny_world, calculator={}), status=2)
    assert "error: model.calculator under trainer.strategy=fsdp2" in letter


def test_two_ranks_share_the_traces_of_one_and_have_unequal_shares(two_and_one: tuple[Path, Path]) -> None:
    """By what each rank was given: no trace twice or never, and one denominator. The shares differ, as they must for
    the tests above to show much."""
    two, one = two_and_one
    ranks, alone = [recorded(two, rank) for rank in (0, 1)], recorded(one, 0)
    assert len(ranks[0]) == len(ranks[1]) == len(alone) >= 6
    for first, second, whole in zip(*ranks, alone, strict=True):
        assert sorted(first["traces"] + second["traces"]) == sorted(whole["traces"])
        assert len(first["rows"]) == len(second["rows"]), "equally many micro-steps"
        assert sum(first["rows"]) + sum(second["rows"]) == sum(whole["rows"])
        assert first["step_tokens"] == second["step_tokens"] == whole["step_tokens"] == sum(whole["rows"])
    selection = json.loads((two / "selection.json").read_text())
    epoch = [name for step in alone[: len(alone) // 2] for name in step["traces"]]
    assert len(epoch) == len(set(epoch)) == selection["num_train_traces"] == 15 - selection["num_held_out_traces"]
    filled = [[sum(tokens > 0 for tokens in step["rows"]) for step in of_rank] for of_rank in ranks]
    assert sum(mine != other for mine, other in zip(*filled, strict=True)) >= 3, filled
    assert 0 in filled[1], "and in one step the second rank has no trace at all"


LOSE = """
import os, signal
from w2sr.cli import main
from w2sr.modules.sft import SFTModule
real = SFTModule.training_step
def step(self, *given):
    if self.trainer.global_step == 2 and self.global_rank == 1:
        os.kill(os.getpid(), getattr(signal, os.environ["LOSE_BY"]))
    return real(self, *given)
SFTModule.training_step = step
main()
"""
TIMEOUT = {"SIGKILL": "0:30:00", "SIGSTOP": "0:01:00"}
"""A rank that dies is noticed at once, without it. Ranks must also meet within it at the start, on a busy machine."""


DDP, FSDP2 = "lightning.pytorch.strategies.DDPStrategy", "w2sr.modules.fsdp2.FSDP2"


@pytest.mark.parametrize(
    ("strategy", "how", "reason"),
    [(DDP, "SIGKILL", "Connection"), (DDP, "SIGSTOP", "Timed out"), (FSDP2, "SIGKILL", "Connection")],
)
def test_a_lost_rank_ends_the_run_in_time(
    strategy: str, how: str, reason: str, tmp_path: Path, fit_config: FitConfig
) -> None:
    """One that is killed ends the other at once; one that hangs does so after the timeout, and not after 30 minutes."""
    (tmp_path / "lose.py").write_text(LOSE)
    config = fit_config(
        tmp_path / "run",
        trainer__devices=2,
        trainer__strategy={"class_path": strategy, "init_args": {"timeout": TIMEOUT[how]}},
        trainer__callbacks=[SAVE_LAST],
        data__max_tokens=120,
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "LOSE_BY": how}
    command = [sys.executable, str(tmp_path / "lose.py"), "fit", "--config", str(config)]
    with (tmp_path / "said").open("w") as said:  # a pipe would stay open as long as the process that hangs
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        assert process.wait(timeout=HANG_S) != 0
    finally:
        os.killpg(process.pid, 9)
    letter = (tmp_path / "said").read_text()
    assert re.search(rf"error: Rank 0 waits for another rank that died or hangs \(.*{reason}", letter), letter
    assert "trainer.strategy.init_args.timeout" in letter and "Traceback" not in letter
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    check_checkpoint(last)
    assert read_label(last) == Progress(2, 8, 0)
