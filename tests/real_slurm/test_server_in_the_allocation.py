"""GRPO beside a vLLM server, in one allocation of a real SLURM: a policy sharded over two tasks on one node, the server
on the other, both nodes on one machine."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from w2sr.chat import Chat
from w2sr.policy import load_policy

from .conftest import REPOSITORY, Slurm
from .test_real_slurm import SMALL, log

pytestmark = pytest.mark.slurm

PYTHON_OF_VLLM = REPOSITORY / ".venv-vllm" / "bin" / "python"
STUDENT = "w2sr/miniature/teacher"
"""Right now and then. The bonus for entropy below moves it in rounds without a right answer too."""
OPTIONS = (
    f"--dtype=float32 --enforce-eager --kv-cache-memory-bytes={2**28} --max-num-seqs=64 --no-enable-chunked-prefill"
)
"""Without the last one vLLM for CPUs dies of a prompt that is prefilled in parts: docs/engines.md."""
JOB_S = 1800
"""Nearly all of it is the server's start: 40 s on a quiet machine, ten times that on a busy one."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
NUM_ROUNDS = 3
SAME_KL = 1e-6
"""Nats a token between two engines with the same float32 weights; 4e-9 was seen."""
OVERLAY: dict[str, Any] = {
    "model": {
        "init_args": {
            "student": STUDENT,
            "group_size": 4,
            "learning_rates": {"grpo": 0.001},
            "objective": {"loss": "dapo", "entropy": 0.01},
            "warmup_frac": 0.0,
        }
    },
    "data": {"init_args": {"validation": None, "benchmarks": None, "step_problems": 4}},
    "trainer": {
        "strategy": "fsdp2",
        "devices": 2,
        "callbacks": [],
        "max_steps": NUM_ROUNDS,
        "val_check_interval": None,
    },
}
DIES_WHEN_ASKED = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): ...
    def do_GET(self):
        if self.path != "/health":  # it is the trainer
            print("out of memory", flush=True)
            os._exit(7)
        self.send_response(200)
        self.end_headers()
(port,) = (int(word.partition("=")[2]) for word in sys.argv if word.startswith("--port="))
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def submit(slurm: Slurm, run: Path, program: str, model: str) -> str:
    """The number of a job with a node for two ranks and one for the server, where `vllm` is this shell program."""
    file = run.with_name("vllm")
    file.write_text(f"#!/bin/bash\n{program}\n")
    file.chmod(0o755)
    overlay = run.with_suffix(".yaml")
    overlay.write_text(yaml.safe_dump(OVERLAY))
    configs = ["configs/grpo.yaml", "configs/engine/server.yaml", "configs/trainer/cpu.yaml", str(overlay)]
    words = ["submit", "slurm/grpo.sbatch", "--nodes=2", "--tasks=2", *SMALL, f"--output={run}-%j.log", "--"]
    words += [*(f"--config={config}" for config in configs), f"--trainer.default_root_dir={run}"]
    more = {"SERVE": model, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    path = f"{slurm.environment['PATH']}{os.pathsep}{run.parent}"
    done = slurm.run("python", "lightning_cli.py", *words, PATH=path, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if parent == pid:
            yield from family(int(stat.parent.name))


def rounds(run: Path) -> list[dict[str, Any]]:
    file = run / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.vllm
def test_every_round_is_sampled_by_the_policy_as_it_is(slurm: Slurm, tmp_path: Path) -> None:
    """A real vLLM. The trainer's two processes refuse rollouts of another version themselves (max_staleness=0)."""
    if not (PYTHON_OF_VLLM.parent.parent / ".ready").exists():
        pytest.skip(f"{PYTHON_OF_VLLM} is absent; make setup-vllm installs it")
    run, model = tmp_path / "run", tmp_path / "model"
    load_policy(STUDENT).save_untied(model)  # as a server on a CPU wants it
    Chat.load(STUDENT).save(model)
    # `vllm serve` of the CPU build finds no metadata of a package named vllm
    server = f"{PYTHON_OF_VLLM} -m vllm.entrypoints.openai.api_server"
    program = f'echo $$ > {tmp_path}/pid; [ "$1" = serve ] && exec {server} --model "${{@:2}}"'
    job = submit(slurm, run, program, f"{model} {OPTIONS}")
    slurm.wait(job, JOB_S, lambda state: bool(rounds(run)) or state["JobState"] in OVER)
    processes = list(family(int((tmp_path / "pid").read_text())))
    state = slurm.wait(job, JOB_S, lambda state: state["JobState"] in OVER)
    told = (run / "server.log").read_text()
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), log(run, job) + told[-3000:]

    lines = rounds(run)
    assert [line["round"] for line in lines] == [*range(NUM_ROUNDS)]
    assert all(line["train/grad_norm"] > 0 for line in lines), "guard: every round moves the policy"
    assert all(abs(line["policy/mismatch_kl"]) < SAME_KL for line in lines)
    assert told.count("POST /collective_rpc") == NUM_ROUNDS + 1, "weights came before the first round and after each"
    assert len(processes) > 1, "guard: vLLM has processes of its own"
    deadline = time.monotonic() + 60
    while alive := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"of the server {alive} live"
        time.sleep(0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "pid", "run", f"run-{job}.log", "run.yaml", "vllm"}
    assert not list(run.glob("*w2sr-weights-*"))


def test_a_server_that_dies_ends_the_job_at_once(slurm: Slurm, tmp_path: Path) -> None:
    """It answers that it is well, and dies of the trainer's first question. The trainer would wait for ten minutes."""
    (tmp_path / "server.py").write_text(DIES_WHEN_ASKED)
    run = tmp_path / "run"
    job = submit(slurm, run, f'exec python {tmp_path}/server.py "$@"', "some/model")
    state = slurm.wait(job, JOB_S, lambda state: state["JobState"] in OVER)
    said = log(run, job)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "1:0"), said
    assert re.findall(r"^error: .*\n.*\n", said, re.MULTILINE) == [
        "error: the vLLM server on localhost ended before the trainer. Every checkpoint written so far is whole: "
        f"submit again with --trainer.default_root_dir={run} --ckpt_path=last. Its log {run}/server.log ends with:\n"
        "out of memory\n"
    ]
    assert "Traceback" not in said
