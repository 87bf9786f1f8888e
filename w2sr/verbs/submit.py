"""`submit SCRIPT --nodes N --gpus G -- ...`: a script of `slurm/`, if its allocation fits the configuration."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import yaml
from lightning import LightningModule
from transformers import AutoConfig

from w2sr.locations import locate_model
from w2sr.rollouts.openai_server import LOCAL_HOSTS
from w2sr.scaling import H100, HEADER, Checkpointing, Plan, Precision, Shape, estimate

TRACE_TOKENS = 2048
"""What the estimate takes for the length of a trace: that of the data is not known before it is read."""
CHECKPOINTING: dict[bool | str, Checkpointing] = {False: "none", "selective": "selective", True: "full"}
"""`model.gradient_checkpointing` → what the estimate calls it."""
ALL = ("auto", "-1", -1)
"""What `trainer.devices` says where it takes what is there."""


class Allocation(NamedTuple):
    """What the job asks for: nodes, tasks on each of them, and whether a task has a GPU. A task is a device.

    `num_server_nodes` of the nodes are a vLLM server's: the trainer has the others.
    """

    num_nodes: int
    tasks_per_node: int
    on_gpus: bool
    num_server_nodes: int = 0

    def options(self) -> list[str]:
        """The options of `sbatch`."""
        gpus = self.tasks_per_node if self.on_gpus else 0
        named = {"nodes": self.num_nodes, "ntasks-per-node": self.tasks_per_node, "gpus-per-node": gpus}
        return [f"--{name}={number}" for name, number in named.items()]


def main(argv: Sequence[str]) -> None:
    """`submit SCRIPT --nodes N --gpus G -- ...`: a script of `slurm/`, if its allocation fits the configuration."""
    parser = argparse.ArgumentParser(
        prog="submit",
        usage="submit SCRIPT [--nodes N] [--gpus G] [--tasks T] [--dry-run] [options of sbatch] -- --config FILE ...",
        description="Submits a script of slurm/. What is after -- are the words of fit, test or predict.",
        allow_abbrev=False,
    )
    parser.add_argument("script", type=Path)
    parser.add_argument("--nodes", type=int, help="trainer.num_nodes without it")
    parser.add_argument("--gpus", type=int, help="of each node, a task each; trainer.devices without it")
    parser.add_argument("--tasks", type=int, help="of each node, on CPUs: instead of --gpus")
    parser.add_argument("--dry-run", action="store_true", help="print the script and what it would need")
    ours, after = _split(argv)
    args, options = parser.parse_known_args(ours)
    check_words(args, options, after)

    script = args.script.read_text()
    verb = verb_of(script, args.script)
    config = configuration(verb, after)
    check_module(config["model"]["class_path"], verb, args.script)
    can_serve = "${SERVE" in script
    serve = os.environ.get("SERVE", "") if can_serve else ""
    check_engine(config, serve, can_serve=can_serve)
    allocation = allocate(config["trainer"], args.nodes, args.gpus, args.tasks, num_server_nodes=1 if serve else 0)
    command = ["sbatch", *allocation.options(), *options, str(args.script), *after]
    if args.dry_run:
        before = f"SERVE={shlex.quote(serve)} " if serve else ""
        print(f"# {before}{shlex.join(command)}\n{script}\n# {needs(config, allocation)}")
        return
    if shutil.which(command[0]) is None:
        raise ValueError("There is no sbatch here. Submit where the cluster's programs are, or add --dry-run.")
    done = subprocess.run(command)
    if done.returncode:
        raise ValueError(f"sbatch refuses the job (exit status {done.returncode}): {shlex.join(command)}")


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    at = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def check_words(args: argparse.Namespace, options: Sequence[str], after: Sequence[str]) -> None:
    """Raises a ValueError for words that cannot be meant.

    Args:
        args: our own options.
        options: those that are handed on to sbatch.
        after: the words behind `--`.
    """
    if not args.script.is_file():
        raise ValueError(f"There is no script {args.script}. Those of this repository: slurm/*.sbatch.")
    if not after:
        raise ValueError(
            f"The words of fit, test or predict are missing: they stand behind --, as in submit {args.script} --gpus 1 "
            "-- --config FILE."
        )
    for name in ("nodes", "gpus", "tasks"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise ValueError(f"--{name}={number} must be at least 1.")
    for word in options:
        if re.match(r"-[NnG]|--ntasks\b", word):
            raise ValueError(
                f"{word}: nodes and tasks are submit's own, so that they are the trainer's devices. Say --nodes=N with "
                "--gpus=G or --tasks=T instead."
            )


def check_module(class_path: str, verb: str, script: Path) -> None:
    """Raises a ValueError where a module cannot do what the script runs."""
    steps = {"fit": "training_step", "test": "test_step", "predict": "predict_step"}
    package, _, name = class_path.rpartition(".")
    module = getattr(importlib.import_module(package), name)
    can = [other for other, step in steps.items() if getattr(module, step) is not getattr(LightningModule, step)]
    if verb not in can:
        scripts = {"fit": "sft.sbatch or grpo.sbatch", "test": "eval.sbatch", "predict": "distill.sbatch"}
        fitting = ", ".join(scripts[other] for other in can)
        raise ValueError(f"{script} runs {verb}, and {name} has no {steps[verb]}. Its script is {fitting}.")


def verb_of(script: str, name: Path) -> str:
    """What a script runs: fit, test or predict.

    Raises:
        ValueError: it runs none of them.
    """
    found = re.search(r"lightning_cli\.py (fit|test|predict)\b", script)
    if found is None:
        raise ValueError(f"{name} does not run lightning_cli.py with fit, test or predict: it cannot be checked.")
    return found[1]


def configuration(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The whole configuration that the job will read, by the program that reads it. What it refuses is refused here."""
    program = [sys.executable, "-c", "from w2sr.cli import main; main()", verb]
    done = subprocess.run([*program, *words, "--print_config"], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.rpartition("error: ")[2].strip())
    config: dict[str, Any] = yaml.safe_load(done.stdout)
    return config


def check_engine(config: Mapping[str, Any], serve: str, *, can_serve: bool) -> None:
    """Whether the engine and a server in the allocation are meant for each other.

    Args:
        config: the whole configuration.
        serve: the words of `vllm serve`; empty for no server.
        can_serve: whether the script starts a server where it is told to.

    Raises:
        ValueError: a server that nobody would ask, or one that is asked and is not there.
    """
    engine = config["model"]["init_args"].get("engine") or {}
    name = str(engine.get("class_path", "w2sr.rollouts.Embedded")).rpartition(".")[2]
    if serve and name != "OpenAIServer":
        raise ValueError(
            f"SERVE={serve!r} starts a vLLM server, but model.init_args.engine is {name}, which asks none. Add "
            "--config configs/engine/server.yaml behind the other engine settings, or unset SERVE."
        )
    if not serve and name == "OpenAIServer" and urlsplit(engine["init_args"]["base_url"]).hostname in LOCAL_HOSTS:
        raise ValueError(
            f"model.init_args.engine.init_args.base_url={engine['init_args']['base_url']} is the job's own node, and "
            f"no server runs there. {'Set SERVE=MODEL, and the job starts one, or set' if can_serve else 'Set'} "
            "base_url to a server that runs already."
        )


def allocate(
    trainer: Mapping[str, Any],
    num_nodes: int | None,
    gpus: int | None,
    tasks: int | None = None,
    num_server_nodes: int = 0,
) -> Allocation:
    """What to ask for, so that every device of the trainer is a task.

    Args:
        trainer: the configuration's `trainer`.
        num_nodes, gpus, tasks: as asked for; None for as many as the configuration says. The scripts give the trainer
            the numbers of the allocation, so what the configuration leaves open (one node, `devices: auto`) is free.
        num_server_nodes: how many of the nodes are not the trainer's.

    Raises:
        ValueError: both say a number, and they differ; or neither does.
    """
    if gpus and tasks:
        raise ValueError(f"--gpus={gpus} and --tasks={tasks} are both numbers of tasks on a node. Leave one out.")
    on_cpus = trainer.get("accelerator") == "cpu"
    if gpus and on_cpus:
        raise ValueError(
            f"--gpus={gpus}, but trainer.accelerator=cpu. Add --config configs/trainer/gpu.yaml (or ddp.yaml, "
            f"fsdp2.yaml), or ask for --tasks={gpus}."
        )
    if tasks and trainer.get("accelerator") in ("gpu", "cuda"):
        raise ValueError(
            f"--tasks={tasks} are tasks on CPUs, but trainer.accelerator={trainer['accelerator']}. "
            f"Ask for --gpus={tasks}."
        )
    asked, option = (tasks, "--tasks") if tasks or on_cpus else (gpus, "--gpus")
    set_devices, set_nodes = _count(trainer.get("devices", "auto")), int(trainer.get("num_nodes") or 1)
    if asked is None and set_devices is None:
        raise ValueError(f"trainer.devices={trainer['devices']} leaves the number open: add {option}=NUMBER_ON_A_NODE.")
    if asked is not None and set_devices not in (None, asked):
        raise ValueError(
            f"{option}={asked} are {asked} tasks on a node, but trainer.devices={set_devices}. Every device wants a "
            f"task: leave {option} out, or set --trainer.devices={asked} (ddp.yaml and fsdp2.yaml of configs/trainer/ "
            "take all there are)."
        )
    if num_nodes is not None and num_nodes <= num_server_nodes:
        raise ValueError(
            f"--nodes={num_nodes}, but SERVE wants a node for the server, beside those of the trainer. Ask for "
            f"--nodes={num_server_nodes + set_nodes} or more, or unset SERVE."
        )
    if num_nodes is not None and set_nodes not in (1, num_nodes - num_server_nodes):
        beside = f", {num_server_nodes} of them the server's" if num_server_nodes else ""
        raise ValueError(
            f"--nodes={num_nodes}{beside}, but trainer.num_nodes={set_nodes}. Leave --nodes out, or set "
            f"--trainer.num_nodes={num_nodes - num_server_nodes}."
        )
    return Allocation(
        num_nodes or set_nodes + num_server_nodes, asked or set_devices or 1, option == "--gpus", num_server_nodes
    )


def needs(config: Mapping[str, Any], allocation: Allocation) -> str:
    """One line: what the job's training asks of memory and time by `w2sr.scaling`, or why that is not known."""
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    if "gradient_checkpointing" not in model:
        return "No estimate: this job does not train."
    student = locate_model(model["student"])
    try:
        shape = Shape.of(AutoConfig.from_pretrained(student).to_dict())
    except (OSError, ValueError) as error:
        return f"No estimate of {student}: {str(error).splitlines()[0]}"
    strategy, precision = trainer.get("strategy"), trainer.get("precision")
    segment = min(TRACE_TOKENS, data.get("max_tokens") or TRACE_TOKENS)
    plan = Plan(
        num_gpus=(allocation.num_nodes - allocation.num_server_nodes) * allocation.tasks_per_node,
        sharded=strategy == "fsdp2",
        precision=precision if precision in get_args(Precision) else "32-true",
        checkpointing=CHECKPOINTING[model["gradient_checkpointing"]],
        row_tokens=data.get("max_tokens") or Plan._field_defaults["row_tokens"],
        step_tokens=data.get("step_tokens") or (data.get("step_sequences") or 128) * segment,
        segment_tokens=segment,
    )
    said = dict(zip(HEADER, estimate(Path(student).name, shape, plan), strict=True))
    lora = "; all weights trained, without adapters" if model.get("lora") else ""
    return (
        f"Estimate, not measured (docs/scaling.md), on {H100.name}, traces of {segment:,} tokens{lora}: "
        + ", ".join(f"{name} {value}" for name, value in said.items())
        + "."
    )


def _count(devices: Any) -> int | None:
    """The number of devices that `trainer.devices` names; None where it takes what is there."""
    if isinstance(devices, list):
        return len(devices)
    return None if devices in ALL else int(devices)
