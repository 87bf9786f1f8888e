"""Starts what the tests of this folder talk to: vLLM's server, and scripts in the environment that has vLLM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
TEACHER = REPOSITORY / "w2sr" / "miniature" / "teacher"
ENGINE = {"enforce_eager": True, "engine_args": {"kv_cache_memory_bytes": 2**28, "max_num_seqs": 64}}
SERVER = ["--dtype=float32", "--enforce-eager", f"--kv-cache-memory-bytes={2**28}", "--max-num-seqs=64"]
START_S = 420.0
"""What a start may take on a machine that has much else to do."""


class Server(NamedTuple):
    """A server that runs, or is about to."""

    process: subprocess.Popen[bytes]
    url: str

    def kill(self) -> None:
        """Ends it and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def skip_without_vllm() -> None:
    """Skips the test where `make setup-vllm` was not run."""
    if not (PYTHON.parent.parent / ".ready").exists():
        pytest.skip(f"{PYTHON} is absent; make setup-vllm installs it")


def environment(**more: str) -> dict[str, str]:
    """Of every process that has a vLLM."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **more}


@contextmanager
def serving(model: Path, folder: Path, *more: str, **variables: str) -> Iterator[Server]:
    """vLLM's server with this model; its log is in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", f"--model={model}", "--host=127.0.0.1"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--port={port}", *SERVER, *more],
            cwd=folder,
            env=environment(**variables),
            stdout=log,
            stderr=log,
            start_new_session=True,  # a group of its own, to be killed as one
        )
        server = Server(process, f"http://127.0.0.1:{port}/v1")
        try:
            yield server
        finally:
            server.kill()


def run_script(name: str, spec: dict[str, Any], folder: Path) -> Any:
    """What a script of this folder answers to a JSON object: python NAME SPEC.json ANSWERS.json."""
    spec_path, answers = folder / "spec.json", folder / "answers.json"
    spec_path.write_text(json.dumps(spec))
    script = Path(__file__).with_name(name)
    with (folder / "script.log").open("wb") as log:
        done = subprocess.run(
            [PYTHON, script, spec_path, answers],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            timeout=START_S,
        )
    assert done.returncode == 0, (folder / "script.log").read_text()[-3000:]
    return json.loads(answers.read_text())
