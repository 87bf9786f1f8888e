"""Which traces are trained on: problems that are held out, and problems that the run is measured by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from w2sr.chat import Chat
from w2sr.datamodules import TraceDataModule
from w2sr.decontaminate import Overlap
from w2sr.traces import read_store, write_store
from w2sr.types import DataFile, Segment, Trace

BEFORE = ("", "Step by step.\n", "In short.\n", "So twice.\n")
"""What the four traces of a problem begin with, in words that the student's tokenizer knows."""
SAMPLES = len(BEFORE)


@pytest.fixture(scope="module")
def traces(tiny_world: Any) -> list[Trace]:
    """Four right traces, of different texts, of each of 15 problems."""
    right = [trace for trace in read_store(tiny_world.traces) if trace.verdict == "correct"]
    return [
        replace(trace, sample_index=number, completion=text + trace.completion)
        for trace in right
        for number, text in enumerate(BEFORE)
    ]


def made_ready(folder: Path, tiny_world: Any, traces: list[Trace], **keys: Any) -> TraceDataModule:
    """The datamodule after `setup`, as the trainer of a student of the tiny world calls it."""
    write_store(folder / "traces", traces)
    data = TraceDataModule([DataFile(str(folder / "traces"))], cache_dir=str(folder / "tokens"), **keys)
    module = SimpleNamespace(
        chat=Chat.load(tiny_world.student), student=str(tiny_world.student), trust_remote_code=False
    )
    data.trainer = SimpleNamespace(lightning_module=module, default_root_dir=str(folder / "run"))  # type: ignore[assignment]
    data.setup("fit")
    return data


def problems_of(segments: list[Segment], traces: list[Trace]) -> list[str]:
    by_id = {trace.trace_id: trace.problem_id for trace in traces}
    return [by_id[segment.segment_id] for segment in segments]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_problem_is_both_trained_on_and_held_out(
    seed: int, tiny_world: Any, traces: list[Trace], tmp_path: Path
) -> None:
    """Half of 15 problems with four traces each: a split by traces would put nearly every problem on both sides."""
    data = made_ready(tmp_path, tiny_world, traces, held_out_frac=0.5, seed=seed)
    training, held_out = (problems_of(side, traces) for side in (data.train_segments, data.held_out_segments))
    assert len(training) + len(held_out) == len(traces) == 60, "every trace is on one side"
    assert training and held_out, "guard: both sides have problems"
    assert set(training).isdisjoint(held_out)
    assert {training.count(name) for name in training} == {held_out.count(name) for name in held_out} == {SAMPLES}


def test_what_is_held_out_depends_on_the_problem_and_the_seed_alone(
    tiny_world: Any, traces: list[Trace], tmp_path: Path
) -> None:
    def held_out(name: str, chosen: list[Trace], **keys: Any) -> set[str]:
        data = made_ready(tmp_path / name, tiny_world, chosen, held_out_frac=0.5, **keys)
        return set(problems_of(data.held_out_segments, chosen))

    everything, some = held_out("all", traces), traces[: len(traces) // 2]
    assert held_out("some", some) == everything & {trace.problem_id for trace in some}
    assert len({frozenset(held_out(f"seed {seed}", traces, seed=seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize("key", ["benchmarks", "validation"])
def test_traces_of_problems_that_the_run_is_measured_by_are_left_out(
    key: str, tiny_world: Any, traces: list[Trace], tmp_path: Path
) -> None:
    """Two of 15 problems are in the file, in other letters."""
    leaked = [traces[0], traces[5 * SAMPLES]]
    rows = [{"problem": trace.problem.upper(), "reference_answer": trace.reference_answer} for trace in leaked]
    (tmp_path / "measured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # the world's problems are of few words: only equal ones count here
    strict = Overlap(ngram=13, max_overlap=1.5)
    files = {key: {"measured": DataFile(str(tmp_path / "measured.jsonl"))}}
    data = made_ready(tmp_path, tiny_world, traces, decontaminate=strict, **files)
    trained = set(problems_of(data.train_segments, traces))
    assert trained == {trace.problem_id for trace in traces} - {trace.problem_id for trace in leaked}
    assert len(trained) == 13
