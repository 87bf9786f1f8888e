"""`predict` on the tiny world: a whole store whatever kills it, its shards, and each fault with its message."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import distributed

from w2sr.chat import Chat
from w2sr.cli import main
from w2sr.miniature.world import problems
from w2sr.rollouts import Embedded, EmbeddedGenerator
from w2sr.traces import TraceWriter, read_manifest, read_store, trace_key
from w2sr.types import IGNORE_INDEX, Completion, SampleRequest, Sampling, Trace

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLED = {"temperature": 1.0, "max_new_tokens": 9, "seed": 4}
Config = Callable[..., Path]


@pytest.fixture
def distill_config(tmp_path: Path, tiny_world: Any) -> Config:
    """Writes a configuration: 6 + 5 problems, two samples each of at most 9 tokens. Changes as in `fit_config`."""

    def write(folder: Path | None = None, **changes: Any) -> Path:
        folder = folder or tmp_path / "store"
        config: dict[str, Any] = {
            "model": {
                "class_path": "w2sr.modules.DistillModule",
                "init_args": {"teacher": str(tiny_world.teacher), "sampling": SAMPLED, "num_samples": 2},
            },
            "data": {
                "class_path": "w2sr.datamodules.ProblemDataModule",
                "init_args": {
                    "problems": {
                        "quiz": {"path": str(tiny_world.benchmark)},
                        "more": {"path": str(tiny_world.validation), "kind": "exact"},
                    }
                },
            },
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "default_root_dir": str(folder),
                "logger": False,
                "enable_progress_bar": False,
                "use_distributed_sampler": False,
            },
        }
        for key, value in changes.items():
            top, name = key.split("__")
            (config[top] if top == "trainer" else config[top]["init_args"])[name] = value
        file = folder.parent / f"{folder.name}.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    return write


@pytest.fixture
def refused(distill_config: Config, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The message of a `predict` that is refused, without `error: `."""

    def message(**changes: Any) -> str:
        with pytest.raises(SystemExit) as end:
            main(["predict", "--config", str(distill_config(**changes))])
        assert end.value.code == 2
        printed = capsys.readouterr().err
        assert printed.count("error: ") == 1 and "Traceback" not in printed, printed
        return printed.partition("error: ")[2]

    return message


def test_a_strategy_that_shards_is_refused(refused: Callable[..., str]) -> None:
    """Lightning's own message is a TypeError about hooks."""
    try:
        letter = refused(trainer__strategy="fsdp2")
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    assert letter.startswith("trainer.strategy=fsdp2 shards a model over the processes, and `predict` gives each")
    assert "Set trainer.strategy=auto." in letter and "tensor_parallel_size" in letter


def content(store: Path) -> list[Trace]:
    """What must be equal whatever happened on the way: everything but the seconds, in the order of the keys."""
    return sorted((replace(trace, seconds=0.0) for trace in read_store(store)), key=trace_key)


def predict(config: Path, *words: str) -> None:
    main(["predict", "--config", str(config), *words])


def run_script(script: Path, config: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), "predict", "--config", str(config)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)


# --- the store


def test_every_sample_is_in_the_store_with_its_provenance(
    distill_config: Config, tmp_path: Path, tiny_world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(distill_config())
    traces = content(tmp_path / "store")
    asked = [json.loads(line) for file in (tiny_world.benchmark, tiny_world.validation) for line in file.open()]
    wanted = [(row["problem_id"], str(tiny_world.teacher), index) for row in asked for index in range(2)]
    assert [trace_key(trace) for trace in traces] == sorted(wanted) and len(wanted) == 22
    assert {trace.source for trace in traces} == {"quiz", "more"}
    assert {trace.grader for trace in traces if trace.source == "more"} == {"exact"}
    assert {(trace.seed, json.loads(trace.sampling)["max_new_tokens"]) for trace in traces} == {(4, 9)}
    assert all(re.fullmatch(r"Embedded, w2sr .*, torch .*, transformers .*", trace.engine) for trace in traces)
    assert all(len(trace.template_hash) == 16 and 0 < trace.num_tokens <= 9 for trace in traces)
    assert all(trace.seconds > 0 for trace in read_store(tmp_path / "store"))
    pairs = {trace.problem_id: trace.completion for trace in traces if trace.sample_index == 0}
    assert any(pairs[trace.problem_id] != trace.completion for trace in traces), "samples differ"
    assert read_manifest(tmp_path / "store").num_traces == 22 and (tmp_path / "store" / "config.yaml").is_file()
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'store'}: 22 traces of 11 problems by {tiny_world.teacher}" in printed
    assert "no answer 22 (100.0 %)" in printed and "this run: 22 traces in" in printed


KILL = """
import os, signal, sys
from w2sr.chat import Chat
from w2sr.cli import main
from w2sr.traces import TraceWriter
append = TraceWriter.append
def killing(self, trace):
    append(self, trace)
    if len(self.done()) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
TraceWriter.append = killing
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_and_ends_with_the_store_of_an_uninterrupted_one(
    distill_config: Config, tmp_path: Path
) -> None:
    config = distill_config(tmp_path / "killed")
    (tmp_path / "kill.py").write_text(KILL)
    assert run_script(tmp_path / "kill.py", config).returncode == -signal.SIGKILL
    assert len(read_store(tmp_path / "killed")) == 7
    predict(config)
    predict(distill_config(tmp_path / "whole"))
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert [part.num_traces for part in read_manifest(tmp_path / "killed").parts] == [22]


def test_only_what_is_missing_is_sampled(
    distill_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    stream = EmbeddedGenerator.stream

    def counting(self: Any, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        asked.append(len(requests))
        for number, completion in enumerate(stream(self, requests, sampling)):
            if number == 18 and len(asked) == 1:
                raise RuntimeError("the machine went away")
            yield completion

    monkeypatch.setattr(EmbeddedGenerator, "stream", counting)
    config = distill_config()
    with pytest.raises(RuntimeError, match="went away"):
        predict(config)
    predict(config)
    assert asked == [22, 6], "16 were verified together and written; two more were in flight"
    assert len(content(tmp_path / "store")) == 22


def test_a_complete_store_is_left_alone(
    distill_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distill_config()
    predict(config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*.parquet")}
    capsys.readouterr()
    monkeypatch.setattr(Embedded, "open", lambda *_: pytest.fail("no model is loaded"))
    predict(config)
    printed = capsys.readouterr().out
    assert "22 traces of 11 problems" in printed and "It was complete already: nothing was sampled." in printed
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*.parquet")} == before


def test_another_configuration_on_the_same_store_is_refused(
    distill_config: Config, tmp_path: Path, tiny_world: Any, refused: Callable[..., str]
) -> None:
    predict(distill_config())
    before, config = content(tmp_path / "store"), (tmp_path / "store" / "config.yaml").read_bytes()
    letter = refused(model__teacher=str(tiny_world.student))
    assert f"teacher: there '{tiny_world.teacher}', here '{tiny_world.student}'" in letter
    assert "write to another trainer.default_root_dir" in letter
    assert "sampling.seed: there 4, here 5" in refused(model__sampling={**SAMPLED, "seed": 5})
    letter = refused(model__instruction=" Think.")
    assert "instruction: there '', here ' Think.'" in letter and "template_hash: there" in letter
    letter = refused(data__problems={"quiz": {"path": str(tiny_world.benchmark)}})
    assert "problems.more.num_problems: there 5, here None" in letter
    assert content(tmp_path / "store") == before
    assert (tmp_path / "store" / "config.yaml").read_bytes() == config, "it says how the traces were made"


def test_two_processes_write_the_store_of_one(distill_config: Config, tmp_path: Path) -> None:
    two = distill_config(tmp_path / "two", trainer__devices=2, trainer__strategy="ddp")
    done = run_script(REPOSITORY / "lightning_cli.py", two)
    assert done.returncode == 0, done.stderr[-3000:]
    predict(distill_config(tmp_path / "one"))
    assert content(tmp_path / "two") == content(tmp_path / "one")
    parts = {part.writer: part.num_traces for part in read_manifest(tmp_path / "two").parts}
    assert parts == {"main": 12, "main_rank1": 10}
    assert "two: 22 traces of 11 problems" in done.stdout and "this run: 22 traces" in done.stdout


# --- shards


def test_shards_are_merged_when_all_are_there(
    distill_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards 1 and 3 in one store, as an array writes them; 2 in another."""
    config, other = distill_config(tmp_path / "array"), distill_config(tmp_path / "other")
    for number in (1, 3):
        predict(config, f"--data.init_args.shard={number}/3")
    assert f"merge {tmp_path / 'array'}" in capsys.readouterr().out
    letter = merge_refused(capsys, tmp_path / "array")
    assert "1 of 3 shards lack traces." in letter
    (line,) = [line for line in letter.splitlines() if line.startswith("  shard 2/3: ")]
    command = line.partition("problems. ")[2]
    assert command.endswith(f"predict --config {tmp_path / 'array' / 'config.yaml'} --data.init_args.shard=2/3")
    assert "SHARDS=3 sbatch --array=2 slurm/distill.sbatch" in letter

    predict(other, "--data.init_args.shard=2/3")
    out = tmp_path / "out"
    main(["merge", str(tmp_path / "array"), str(other.with_suffix("")), "--out", str(out)])
    assert "complete: 22 traces of 11 problems, 3 of 3 shards" in capsys.readouterr().out
    predict(distill_config(tmp_path / "whole"))
    assert content(out) == content(tmp_path / "whole")
    assert [replace(trace, seconds=0.0) for trace in read_store(out)] == content(out), "in the order of the ids"
    assert "exists already" in merge_refused(capsys, tmp_path / "array", "--out", out)
    letter = merge_refused(capsys, tmp_path / "array", tmp_path / "array")
    assert "traces are there more than once" in letter
    assert "number of shards: 3 and 1" in merge_refused(capsys, tmp_path / "array", tmp_path / "whole")

    main(shlex.split(command)[2:])  # the command that the letter named, without `python lightning_cli.py`
    main(["merge", str(tmp_path / "array")])
    assert "complete: 22 traces" in capsys.readouterr().out


def merge_refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["merge", *map(str, words)])
    return capsys.readouterr().err


def test_a_trace_that_was_lost_from_a_shard_is_found(
    distill_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(distill_config())
    (part,) = (tmp_path / "store").glob("*.parquet")
    traces = content(tmp_path / "store")
    for path in (part, tmp_path / "store" / "manifest.json"):
        path.unlink()
    with TraceWriter(tmp_path / "store") as writer:
        for trace in traces[1:]:
            writer.append(trace)
    letter = merge_refused(capsys, tmp_path / "store")
    assert "1 of 1 shards lack traces" in letter and "shard 1/1: 1 traces of 1 of its 11 problems" in letter


def test_the_job_array_runs_every_shard_once(tmp_path: Path) -> None:
    """The script's own command line, with a `srun` and a `python` that only say what they were given."""
    script = REPOSITORY / "slurm" / "distill.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    for name, text in {"srun": 'shift; exec "$@"', "python": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (first, last) = re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", script.read_text(), re.MULTILINE)[0]
    shards = []
    for number in range(int(first), int(last) + 1):
        job = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **job}
        done = subprocess.run(
            ["bash", str(script), "--config", "a b.yaml"], env=environment, capture_output=True, text=True, check=True
        )
        words = done.stdout.splitlines()
        assert words[:4] == ["lightning_cli.py", "predict", "--config", "a b.yaml"]
        shards += [word.partition("=")[2] for word in words if word.startswith("--data.init_args.shard=")]
    assert shards == [f"{number}/16" for number in range(1, 17)]


# --- faults


def test_a_problem_longer_than_the_context(
    distill_config: Config,
    tmp_path: Path,
    tiny_world: Any,
    refused: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = {"problem_id": "endless", "source": "x", "problem": "Tom has 8 more. " * 99, "reference_answer": "1"}
    file = tmp_path / "long.jsonl"
    file.write_text(tiny_world.benchmark.read_text() + json.dumps(row) + "\n")
    changes = {"data__problems": {"quiz": {"path": str(file)}}}
    letter = refused(**changes)
    assert "1 of 7 problems are too long for the teacher's context of 256 tokens" in letter
    assert "the longest is 'endless'" in letter and "set model.on_long_problem=skip" in letter
    assert not (tmp_path / "store").exists()
    with caplog.at_level("INFO"):
        predict(distill_config(**changes, model__on_long_problem="skip"))
    assert "1 of 7 problems are too long" in caplog.text and "They are left out" in caplog.text
    assert len(content(tmp_path / "store")) == 12


def test_a_teacher_whose_answers_cannot_be_found_is_stopped(
    distill_config: Config, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(self: Any, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        for number, request in enumerate(requests):
            text = "\\boxed{1}" if number == 1 else "\x1b[31mI am\na model\x07" + "!" * 400
            yield Completion(request.problem_id, request.sample_index, (1, 2), text, "stop")

    monkeypatch.setattr(EmbeddedGenerator, "stream", nonsense)
    letter = refused(model__gate_traces=4, model__gate_min_answers=0.3)
    assert "Of the first 4 traces 1 (25.0 %) have an answer that can be extracted" in letter
    assert letter.count("'\\x1b[31mI am\\na model\\x07!!!") == 3 and "\x1b" not in letter and "\x07" not in letter
    assert "model.template=auto" in letter and "model.gate_min_answers=0 and run again" in letter
    assert len(content(tmp_path / "store")) == 4
    again = refused(model__gate_traces=4, model__gate_min_answers=0.3)
    assert "Of the first 4 traces 1 (25.0 %)" in again, "the store is looked at, and nothing more is sampled"
    predict(distill_config(model__gate_traces=4, model__gate_min_answers=0.0))
    assert len(content(tmp_path / "store")) == 22


def test_a_full_disk_keeps_what_was_written(distill_config: Config, tmp_path: Path) -> None:
    """In a process in which no file grows beyond 6 KiB: a journal of some traces."""
    predict(distill_config(tmp_path / "whole"))
    command = f"ulimit -f 6; exec {sys.executable} -B lightning_cli.py predict --config {distill_config()}"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
    letter = done.stderr.partition("error: ")[2]
    assert done.returncode == 2, done.stderr
    kept = len(read_store(tmp_path / "store"))
    assert 2 <= kept < 22
    assert letter.startswith(
        f"The trace store {tmp_path / 'store'} cannot be written: File too large. The {kept} traces"
    )
    assert "run the same command again" in letter
    predict(distill_config())
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_two_runs_on_one_store(distill_config: Config, tmp_path: Path, refused: Callable[..., str]) -> None:
    with TraceWriter(tmp_path / "other"):
        pass
    predict(distill_config())
    with TraceWriter(tmp_path / "store"):
        letter = refused()
    assert letter.startswith(f"{tmp_path / 'store'} is being written by pid {os.getpid()} on ")
    assert "Wait for it or stop it" in letter


def test_no_problems(tmp_path: Path, refused: Callable[..., str], tiny_world: Any) -> None:
    assert "data.problems names no file, so there is nothing to ask" in refused(data__problems={})
    (tmp_path / "none.jsonl").write_text("")
    letter = refused(data__problems={"none": {"path": str(tmp_path / "none.jsonl")}})
    assert "none.jsonl is empty: it holds no rows" in letter
    twice = {name: {"path": str(tiny_world.benchmark)} for name in ("one", "two")}
    assert "6 problem ids are in more than one of one, two" in refused(data__problems=twice)


def test_greedy_samples_of_one_problem(refused: Callable[..., str]) -> None:
    letter = refused(model__sampling={"temperature": 0.0})
    assert letter == (
        "model.num_samples=2 at temperature 0: it must be at least 1, and greedy samples of one problem are all equal. "
        "Set model.sampling.temperature, or num_samples=1.\n"
    )


# --- the miniature


def test_the_shipped_configuration_ends_in_a_command_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(p._asdict()) + "\n" for p in problems("train", 24, seed=3)))
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["lightning_cli.py"])
    problem_key = "--data.init_args.problems={miniature: {path: " + str(file) + "}}"
    predict(Path("configs/distill.yaml"), f"--trainer.default_root_dir={tmp_path / 'traces'}", problem_key)
    (command,) = re.findall(r"^Next: python lightning_cli.py (.*)$", capsys.readouterr().out, re.MULTILINE)
    small = ["--trainer.max_steps=2", "--trainer.callbacks=[]", "--data.init_args.step_sequences=4"]
    small += ["--trainer.limit_val_batches=0", f"--trainer.default_root_dir={tmp_path / 'fit'}"]
    main([*shlex.split(command), *small])
    selection = json.loads((tmp_path / "fit" / "selection.json").read_text())
    assert selection["teachers"] == ["w2sr/miniature/teacher"] and selection["num_train_traces"] > 8


EQUATIONS = '{open: "", close: " = ", result: "{}"}'


def test_a_calculator_puts_results_right_and_they_teach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped teacher on 24 problems: more right answers, and no loss on any number behind an equals sign."""
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(p._asdict()) + "\n" for p in problems("train", 24, seed=3)))
    monkeypatch.chdir(REPOSITORY)
    problem_key = "--data.init_args.problems={miniature: {path: " + str(file) + "}}"
    stores = {}
    for name, extra in (("alone", []), ("helped", [f"--model.init_args.calculator={EQUATIONS}"])):
        predict(Path("configs/distill.yaml"), f"--trainer.default_root_dir={tmp_path / name}", problem_key, *extra)
        stores[name] = read_store(tmp_path / name)
    right = {name: sum(trace.verdict == "correct" for trace in traces) for name, traces in stores.items()}
    assert right["helped"] >= right["alone"] + 4
    assert not any(trace.no_loss_spans for trace in stores["alone"])
    chat = Chat.load(REPOSITORY / "w2sr/miniature/student")
    for trace, segment in zip(stores["helped"], chat.segments(stores["helped"]), strict=True):
        spans = json.loads(trace.no_loss_spans)
        results = [trace.completion[start:end] for start, end in spans]
        assert results == re.findall(r" = (\d+)", trace.completion)[: len(results)]
        taught = [int(label) for label in segment.labels if label != IGNORE_INDEX]
        assert len(taught) == trace.num_tokens - len(results), "each result is one token here"
        assert " = ." in chat.decode(taught)
    with pytest.raises(SystemExit):
        predict(Path("configs/distill.yaml"), f"--trainer.default_root_dir={tmp_path / 'helped'}", problem_key)
    assert "calculator.close: there ' = ', here None" in capsys.readouterr().err


def test_evaluation_knows_the_calculator_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(p._asdict()) + "\n" for p in problems("test", 24, seed=3)))
    monkeypatch.chdir(REPOSITORY)
    scores = {}
    for name, extra in (("alone", []), ("helped", [f"--model.init_args.calculator={EQUATIONS}"])):
        words = ["--model.init_args.student=w2sr/miniature/teacher", "--data.init_args.benchmarks={miniature: {path: "]
        words[1] += str(file) + "}}"
        main(["test", "--config=configs/eval.yaml", *words, f"--trainer.default_root_dir={tmp_path / name}", *extra])
        lines = (tmp_path / name / "completions.jsonl").read_text().splitlines()
        scores[name] = sum(json.loads(line)["correct"] for line in lines)
    assert scores["helped"] >= scores["alone"] + 4
