"""What SLURM says of a job, and what a submission has to agree on with the trainer."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from w2sr.cli import main
from w2sr.slurm import check_tasks, is_requeued
from w2sr.verbs.submit import Allocation, allocate, check_engine, check_module, needs, verb_of

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sbatch"))
SRUN = 'while [[ $1 == -* ]]; do shift; done; exec "$@"'
STEP = {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0"}


def test_tasks_that_fit() -> None:
    check_tasks(2, 4, {**STEP, "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"})
    check_tasks(1, 1, {**STEP, "SLURM_NTASKS": "1"})


@pytest.mark.parametrize(
    ("num_nodes", "devices", "environ", "letter"),
    [
        (
            1,
            4,
            {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"},
            "SLURM started 8 tasks on 2 nodes, but trainer.num_nodes=1 and trainer.devices=4 make 4. Every device "
            "wants a task: set --trainer.num_nodes=2 --trainer.devices=4, or "
            "submit with --nodes=1 --ntasks-per-node=4.",
        ),
        (2, 4, {"SLURM_NTASKS": "7", "SLURM_NNODES": "2"}, "task: submit with --nodes=2 --ntasks-per-node=4."),
        (1, 2, {"SLURM_NTASKS": "2"}, "submitted with --ntasks=2, which does not say how they are dealt out"),
        (1, 2, {"SLURM_NTASKS": "2", "SLURM_STEP_ID": None}, "not started by srun: it would wait for 1 others"),
    ],
)
def test_tasks_that_do_not_fit(num_nodes: int, devices: int, environ: dict[str, Any], letter: str) -> None:
    given = {name: value for name, value in {**STEP, **environ}.items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(letter)):
        check_tasks(num_nodes, devices, given)


def test_devices_that_are_not_tasks_are_refused_before_the_trainer_is_built(
    tmp_path: Path, fit_config: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**STEP, "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(fit_config(tmp_path / "run"))])
    assert end.value.code == 2
    assert "SLURM started 2 tasks on 1 nodes, but trainer.num_nodes=1 and trainer.devices=1" in capfd.readouterr().err


def test_a_job_that_has_run_before() -> None:
    assert [is_requeued(environ) for environ in ({}, {"SLURM_RESTART_COUNT": "0"}, {"SLURM_RESTART_COUNT": "2"})] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("trainer", "asked", "expected"),
    [
        ({"devices": "auto"}, {"num_nodes": 2, "gpus": 8}, Allocation(2, 8, True)),
        ({"devices": 4, "num_nodes": 3}, {}, Allocation(3, 4, True)),
        ({"devices": [0, 1], "num_nodes": 1}, {"num_nodes": 2}, Allocation(2, 2, True)),
        ({"devices": "auto", "accelerator": "cpu"}, {"tasks": 2}, Allocation(1, 2, False)),
        ({"devices": 1, "accelerator": "cpu"}, {}, Allocation(1, 1, False)),
    ],
)
def test_one_number_follows_from_the_other(trainer: Any, asked: Any, expected: Allocation) -> None:
    assert allocate(trainer, **{"num_nodes": None, "gpus": None, **asked}) == expected


@pytest.mark.parametrize(
    ("trainer", "asked", "letter"),
    [
        ({"devices": 4}, {"gpus": 8}, "--gpus=8 are 8 tasks on a node, but trainer.devices=4."),
        ({"devices": 8, "num_nodes": 4}, {"num_nodes": 2}, "--nodes=2, but trainer.num_nodes=4."),
        ({"devices": "auto"}, {}, "trainer.devices=auto leaves the number open: add --gpus=NUMBER_ON_A_NODE."),
        ({"devices": "auto", "accelerator": "cpu"}, {"gpus": 2}, "--gpus=2, but trainer.accelerator=cpu."),
        ({"devices": "auto", "accelerator": "gpu"}, {"tasks": 2}, "--tasks=2 are tasks on CPUs, but"),
        ({"devices": "auto"}, {"gpus": 2, "tasks": 2}, "--gpus=2 and --tasks=2 are both numbers of tasks on a node."),
    ],
)
def test_two_numbers_that_differ_are_refused(trainer: Any, asked: Any, letter: str) -> None:
    with pytest.raises(ValueError, match=re.escape(letter)):
        allocate(trainer, **{"num_nodes": None, "gpus": None, **asked})


def test_a_dry_run_prints_the_script_and_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", str(REPOSITORY / "slurm/sft.sbatch"), "--nodes=2", "--gpus=8", "--time=30", "--dry-run", "--"]
    overlays = [f"--config={REPOSITORY}/configs/{name}.yaml" for name in ("w2sr_p", "model/qwen2.5-0.5b")]
    main([*words, *overlays, "--trainer.devices=auto", "--model.init_args.student=w2sr/miniature/student"])
    printed = capsys.readouterr().out
    command, *script = printed.splitlines()
    assert command.startswith("# sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --time=30 ")
    assert command.endswith("--trainer.devices=auto --model.init_args.student=w2sr/miniature/student")
    assert script[0] == "#!/bin/bash"
    assert script[-1].startswith("# Estimate, not measured (docs/scaling.md), on H100 SXM 80 GB")
    assert "model student, GPUs 16, strategy ddp, precision 32-true, checkpointing none" in script[-1]


@pytest.mark.parametrize(("value", "said"), [(False, "none"), ("selective", "selective"), (True, "full")])
def test_the_estimate_has_the_checkpointing_of_the_configuration(value: Any, said: str) -> None:
    model = {"student": "w2sr/miniature/student", "gradient_checkpointing": value}
    config = {"model": {"init_args": model}, "data": {"init_args": {}}, "trainer": {}}
    assert f", checkpointing {said}, " in needs(config, Allocation(1, 1, on_gpus=True))


def test_what_the_configuration_refuses_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["submit", str(REPOSITORY / "slurm/sft.sbatch"), "--gpus=1", "--", "--trainer.max_step=3"])
    assert "max_step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "letter"),
    [
        ("sft --gpus 1 -- --config a.yaml", "There is no script sft. Those of this repository: slurm/*.sbatch."),
        (
            "slurm/sft.sbatch --gpus 1 --config a.yaml",
            "are missing: they stand behind --, as in submit",
        ),
        ("slurm/sft.sbatch --gpus 0 -- --config a.yaml", "--gpus=0 must be at least 1."),
        ("slurm/sft.sbatch --gpus 4 -N2 -- --config a.yaml", "-N2: nodes and tasks are submit's own"),
        (
            "slurm/sft.sbatch --gpus 4 --ntasks-per-node=2 -- --config a.yaml",
            "--ntasks-per-node=2: nodes and",
        ),
        ("slurm/sft.sbatch --gpus 1 -- --config absent.yaml", "absent.yaml"),
    ],
)
def test_words_that_cannot_be_meant(
    words: str, letter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as end:
        main(["submit", *words.split()])
    assert end.value.code == 2 and letter in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "verb", "letter"),
    [
        (
            "SFTModule",
            "test",
            "slurm/x.sbatch runs test, and SFTModule has no test_step. Its script is sft.sbatch",
        ),
        ("DistillModule", "fit", "and DistillModule has no training_step. Its script is distill.sbatch."),
        ("EvalModule", "predict", "and EvalModule has no predict_step. Its script is eval.sbatch."),
    ],
)
def test_a_module_and_the_script_of_another_verb(name: str, verb: str, letter: str) -> None:
    with pytest.raises(ValueError, match=re.escape(letter)):
        check_module(f"w2sr.modules.{name}", verb, Path("slurm/x.sbatch"))
    (own,) = {"SFTModule": "fit", "DistillModule": "predict", "EvalModule": "test"}[name].split()
    check_module(f"w2sr.modules.{name}", own, Path("slurm/x.sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_gives_the_trainer_the_allocations_numbers(script: Path, tmp_path: Path) -> None:
    """With a `srun` that runs its words and a `python` that prints them: first as a new job, then as a requeued one."""
    assert len(SCRIPTS) == 4
    for name, text in {
        "srun": SRUN,
        "python": 'printf "%s\\n" "$@" "a task has $SRUN_CPUS_PER_TASK CPUs"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    job["SLURM_CPUS_PER_TASK"] = "8"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **job}

    def words(*given: str, **more: str) -> list[str]:
        done = subprocess.run(
            ["bash", str(script), *given], env={**environment, **more}, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    verb = verb_of(script.read_text(), script)
    new = words("--config=a b.yaml")
    assert new[:3] == ["lightning_cli.py", verb, "--config=a b.yaml"]
    assert (
        new[-3:] == ["--trainer.num_nodes=2", "--trainer.devices=4", "a task has 8 CPUs"]
        and "--ckpt_path=last" not in new
    )
    assert ("--ckpt_path=last" in words(SLURM_RESTART_COUNT="1")) == (verb == "fit")
    if verb != "predict":
        assert f"--trainer.default_root_dir=runs/{script.stem}/71" in new
        given = words("--trainer.default_root_dir=runs/mine")
        assert [word for word in given if "default_root_dir" in word] == ["--trainer.default_root_dir=runs/mine"]
    assert "#SBATCH --requeue\n" in script.read_text() and "#SBATCH --signal=USR1@" in script.read_text()


JOB_WITH_SERVER = {
    "SERVE": "some/model --dtype float32",
    "SLURM_JOB_ID": "71",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_JOB_NODELIST": "n[1-3]",
}


def grpo_beside_a_server(folder: Path, **stubs: str) -> subprocess.CompletedProcess[str]:
    """slurm/grpo.sbatch in a folder, with these programs. What each `srun` was told is in a file of its own."""
    programs = {
        "srun": f'printf "%s\\n" "$@" > {folder}/$$.srun; {SRUN}',
        "scontrol": 'printf "n1\\nn2\\nn3\\n"',
        "scancel": f'echo "$@" > {folder}/cancelled',
        "curl": "exit 0",
        **stubs,
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", **JOB_WITH_SERVER}
    command = ["bash", str(REPOSITORY / "slurm" / "grpo.sbatch"), "--config=a.yaml"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_grpo_beside_a_server_leaves_it_the_last_node(tmp_path: Path) -> None:
    """The server ignores the signal that SLURM sends to all steps, and the trainer is told of one node less."""
    stays = f"> {tmp_path}/up; exec > /dev/null 2>&1; until [ -e {tmp_path}/over ]; do sleep 0.1; done"
    done = grpo_beside_a_server(
        tmp_path,
        vllm=f'printf "%s\\n" "$VLLM_SERVER_DEV_MODE" "$@" > {tmp_path}/served; kill -USR1 $$; {stays}',
        python=f'until [ -e {tmp_path}/up ]; do sleep 0.1; done; printf "%s\\n" "$SLURM_NNODES" "$@"; exit 5',
    )
    (tmp_path / "over").touch()
    assert done.returncode == 5, "the trainer's status is the job's"
    told = done.stdout.splitlines()
    assert told[0] == "2" and told[-2:] == ["--trainer.num_nodes=2", "--trainer.devices=4"]
    assert "--model.init_args.engine.init_args.base_url=http://n3:20071/v1" in told
    assert f"--model.init_args.engine.init_args.sync_folder={tmp_path}/runs/grpo/71" in told
    served = (tmp_path / "served").read_text().splitlines()
    assert served[:5] == ["1", "serve", "some/model", "--dtype", "float32"]
    assert {"--port=20071", "--logprobs-mode=processed_logprobs"} <= set(served)
    told_sruns = [path.read_text().splitlines() for path in tmp_path.glob("*.srun")]
    server, trainer = sorted(told_sruns, key=lambda told: "python" in told)
    assert {"--nodelist=n3", "--ntasks=1", "--cpus-per-task=32"} <= set(server)
    assert {"--exclude=n3", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4"} <= set(trainer)
    assert not (tmp_path / "cancelled").exists()


def test_a_server_that_ends_first_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "runs/grpo/71").mkdir(parents=True)
    (tmp_path / "runs/grpo/71/server.log").write_text("much\n" * 50 + "out of memory\n")
    done = grpo_beside_a_server(
        tmp_path, vllm="exit 0", python=f"until [ -e {tmp_path}/cancelled ]; do sleep 0.1; done"
    )
    assert done.returncode == 1 and (tmp_path / "cancelled").read_text() == "--signal=KILL 71.1\n"
    folder = f"{tmp_path}/runs/grpo/71"
    assert done.stderr == (
        "error: the vLLM server on n3 ended before the trainer. Every checkpoint written so far is whole: submit again "
        f"with --trainer.default_root_dir={folder} --ckpt_path=last. Its log {folder}/server.log ends with:\n"
        + "much\n" * 19
        + "out of memory\n"
    )


def test_a_server_that_does_not_start_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "runs/grpo/71").mkdir(parents=True)
    (tmp_path / "runs/grpo/71/server.log").write_text("no such model\n")
    done = grpo_beside_a_server(tmp_path, curl="exit 7", vllm="exit 3", python="exit 0")
    assert done.returncode == 1
    assert done.stderr == (
        "error: the vLLM server on n3 ended before it could be asked. "
        f"Its log {tmp_path}/runs/grpo/71/server.log ends with:\nno such model\n"
    )


def test_a_server_wants_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JOB_WITH_SERVER, "SLURM_JOB_NUM_NODES", "1")
    done = grpo_beside_a_server(tmp_path)
    assert done.returncode == 1 and "SERVE wants a node for the server" in done.stderr
    with pytest.raises(ValueError, match=r"--nodes=1, but SERVE wants a node.* Ask for --nodes=2 or more"):
        allocate({"devices": 8}, 1, None, num_server_nodes=1)


@pytest.mark.parametrize(("asked", "num_nodes"), [(None, 3), (3, 3)])
def test_the_trainer_has_the_nodes_that_the_server_leaves(asked: int | None, num_nodes: int) -> None:
    assert allocate({"devices": 8, "num_nodes": 2}, asked, None, num_server_nodes=1) == Allocation(
        num_nodes, 8, True, 1
    )
    with pytest.raises(ValueError, match=r"--nodes=4, 1 of them the server's, but .* set --trainer.num_nodes=3\."):
        allocate({"devices": 8, "num_nodes": 2}, 4, None, num_server_nodes=1)


def server_config(base_url: str | None) -> dict[str, Any]:
    """Of a run whose engine is the server at that address, or the embedded one."""
    server = {"class_path": "w2sr.rollouts.OpenAIServer", "init_args": {"base_url": base_url}}
    engine = server if base_url else {"class_path": "w2sr.rollouts.Embedded", "init_args": {}}
    return {"model": {"init_args": {"engine": engine}}}


def test_engines_and_servers_that_are_meant_for_each_other() -> None:
    check_engine(server_config("http://127.0.0.1:8000/v1"), "some/model", can_serve=True)
    check_engine(server_config(None), "", can_serve=True)
    check_engine(server_config("http://n7:8000/v1"), "", can_serve=False)
    check_engine({"model": {"init_args": {}}}, "", can_serve=False)


@pytest.mark.parametrize(
    ("base_url", "serve", "can_serve", "letter"),
    [
        (
            None,
            "some/model",
            True,
            "engine is Embedded, which asks none. Add --config configs/engine/server.yaml",
        ),
        (
            "http://localhost:8000/v1",
            "",
            True,
            "no server runs there. Set SERVE=MODEL, and the job starts one, or",
        ),
        (
            "http://localhost:8000/v1",
            "",
            False,
            "no server runs there. Set base_url to a server that runs already",
        ),
    ],
)
def test_engines_and_servers_that_are_not(base_url: str | None, serve: str, can_serve: bool, letter: str) -> None:
    with pytest.raises(ValueError, match=re.escape(letter)):
        check_engine(server_config(base_url), serve, can_serve=can_serve)
