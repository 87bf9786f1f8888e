"""Runs in the environment that has vLLM: python drive.py JOBS.json ANSWERS.json. One engine answers all jobs.

A job is {"requests": [[problem_id, sample_index, prompt_ids, num_done], ...], "sampling": {...}, "take": number or
null}; its answer is what came, in the order in which it came: [[problem_id, sample_index, token_ids, text,
finish_reason], ...], or the text of a ValueError. `take` walks away after so many completions.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from w2sr.chat import Chat
from w2sr.rollouts import VLLM, Generator
from w2sr.types import SampleRequest, Sampling


def main() -> None:
    jobs_path, answers_path = map(Path, sys.argv[1:])
    spec = json.loads(jobs_path.read_text())
    chat = Chat.load(spec["model"])
    with VLLM(**spec["engine"]).open(spec["model"], chat, torch.device("cpu")) as generator:
        answers = [answer(generator, job) for job in spec["jobs"]]
    answers_path.write_text(json.dumps(answers))


def answer(generator: Generator, job: dict[str, Any]) -> list[list[Any]] | str:
    requests = [SampleRequest(problem_id, index, tuple(ids), done) for problem_id, index, ids, done in job["requests"]]
    sampling = Sampling(**{**job["sampling"], "stop_text": tuple(job["sampling"]["stop_text"])})
    stream = generator.stream(requests, sampling)
    try:
        taken = list(itertools.islice(stream, job.get("take")))
    except ValueError as error:
        return str(error)
    stream.close()  # type: ignore[attr-defined]
    return [[c.problem_id, c.sample_index, c.token_ids, c.text, c.finish_reason] for c in taken]


if __name__ == "__main__":  # vLLM's own processes import this file
    main()
