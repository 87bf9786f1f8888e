"""The parts of distillation: what fits, the stream of traces, the gate, the counts, and what is said of them."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from w2sr.chat import Chat
from w2sr.distillation import (
    FormatGate,
    Stamp,
    Tally,
    TraceProgress,
    Work,
    distill,
    make_recipe,
    problems_that_fit,
    summary,
)
from w2sr.distillation import stream as stream_room
from w2sr.shards import WHOLE, Shard
from w2sr.types import Completion, DataFile, Problem, SampleRequest, Sampling, Trace
from w2sr.verify import Verifier

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=77, seed=5)
PROBLEMS = {f"p{n}": Problem(f"p{n}", "sums" if n % 2 else "words", f"{n} + 1?", str(n + 1)) for n in range(40)}
TRACE = Trace("p1", "sums", "1 + 1?", "2", "weak", "\\boxed{2}", "stop", num_tokens=10, answer="2", verdict="correct")
LOST = replace(TRACE, completion="no", answer=None, verdict="no_answer", finish_reason="length", num_tokens=30)


class Fixed:
    """Answers every request right, after a pause."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            time.sleep(self.pause_s)
            text = f"\\boxed{{{PROBLEMS[request.problem_id].reference_answer}}}"
            yield Completion(request.problem_id, request.sample_index, (1, 2, 3), text, "stop", ((0, 2),))


@pytest.fixture
def verifiers() -> Iterator[dict[str, Verifier]]:
    with Verifier(num_workers=1) as sums, Verifier(kind="exact") as words:
        yield {"sums": sums, "words": words}


def traces_of(generator: Fixed, verifiers: dict[str, Verifier], count: int) -> list[Trace]:
    requests = [SampleRequest(name, 3, (7,)) for name in list(PROBLEMS)[:count]]
    return list(distill(requests, PROBLEMS, generator, verifiers, SAMPLING, Stamp("weak", "hash", "engine 1")))


def test_a_trace_says_where_it_comes_from(verifiers: dict[str, Verifier]) -> None:
    first, second, *_ = sorted(traces_of(Fixed(), verifiers, 2), key=lambda trace: trace.problem_id)
    assert (first.source, second.source) == ("words", "sums")
    assert (second.problem, second.reference_answer, second.completion) == ("1 + 1?", "2", "\\boxed{2}")
    assert (second.teacher, second.template_hash, second.engine, second.seed) == ("weak", "hash", "engine 1", 5)
    assert second.sampling == '{"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 77, "seed": 5, "stop_text": []}'
    assert (second.sample_index, second.num_tokens, second.finish_reason) == (3, 3, "stop")
    assert (second.answer, second.answer_rule, second.verdict) == ("2", "boxed", "correct")
    assert first.grader == "exact" and second.grader.startswith("math") and second.grader_version
    assert second.no_loss_spans == "[[0, 2]]"
    unset = {name for name in Trace.__slots__ if getattr(second, name) in ("", None, -1, -1.0)}
    assert unset == {"corruption"}


def test_every_completion_becomes_one_trace_and_seconds_sum_to_the_time(verifiers: dict[str, Verifier]) -> None:
    traces = traces_of(Fixed(pause_s=0.001), verifiers, 39)
    assert sorted(trace.problem_id for trace in traces) == sorted(list(PROBLEMS)[:39])
    assert sum(trace.seconds for trace in traces) >= 39 * 0.001


def test_a_late_completion_waits_for_no_other(verifiers: dict[str, Verifier], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that steps 0.3 s a look, a chunk ends when a second has passed; in no time, when 16 wait."""
    clock = iter(0.3 * tick for tick in range(1000))
    completions = [Completion(f"p{n}", 0, (1,), "x", "stop") for n in range(33)]
    with monkeypatch.context() as patch:
        patch.setattr(stream_room.time, "perf_counter", lambda: next(clock))
        chunks = [(len(chunk), seconds) for chunk, seconds in stream_room._chunks(iter(completions))]
    assert [size for size, _ in chunks] == [4] * 8 + [1]
    # four looks of 0.3 s, shared by four; the last one is alone, and its end is a look of its own
    assert [seconds for _, seconds in chunks] == pytest.approx([0.3] * 8 + [0.6])
    with monkeypatch.context() as patch:
        patch.setattr(stream_room.time, "perf_counter", lambda: 1.0)
        assert [len(chunk) for chunk, _ in stream_room._chunks(iter(completions))] == [16, 16, 1]


def test_the_gate_stops_at_its_number_and_shows_three_escaped() -> None:
    gate = FormatGate(5, 0.5, "Change the template.")
    nasty = replace(LOST, completion="\x1b[2J\x9b\u202e\nanswer " + "y" * 500)
    for trace in (TRACE, TRACE, LOST, nasty):
        gate.add(trace)
        gate.check()
    gate.add(LOST)
    with pytest.raises(ValueError, match=r"Of the first 5 traces 2 \(40.0 %\) have an answer") as stop:
        gate.check()
    said = str(stop.value)
    assert "gate_min_answers=0.5 asks for 50 %. 3 were cut off." in said and said.endswith("\nChange the template.")
    assert said.count("'p1@weak#0', 30 tokens, finish reason length: ") == 3
    assert "'\\x1b[2J\\x9b\\u202e\\nanswer yyy" in said and "characters more" in said
    assert not any(c in said for c in "\x1b\x9b\u202e")


def test_the_gate_looks_once() -> None:
    gate = FormatGate(2, 0.5, "")
    for trace in (TRACE, LOST, LOST, LOST, LOST):
        gate.add(trace)
        gate.check()
    assert gate.has_passed
    FormatGate(1, 0.0, "").check()
    with pytest.raises(ValueError, match=r"gate_traces=0 must be at least 1 and model.gate_min_answers=0.5"):
        FormatGate(0, 0.5, "")


def test_counts_and_their_line() -> None:
    tally = Tally([TRACE, TRACE, LOST])
    assert (tally.num_traces, tally.num_tokens, tally.num_cut_off, tally.longest) == (3, 50, 1, 30)
    assert tally.verdict_text() == "correct 2 (66.7 %), no answer 1 (33.3 %)"
    empty = Tally()
    assert empty.verdict_text() == "" and str(empty.mean_tokens) == "nan"


def test_progress_is_a_line_now_and_then_in_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("w2sr.distillation.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    with TraceProgress(4, 20, "rank 0 of 2: ", every_s=30, console=Console(file=out)) as progress:
        for trace in (TRACE, TRACE, LOST, TRACE, TRACE):
            now[0] += 10
            progress.add(trace)
    # after 30 s: 3 traces with 10 + 10 + 30 tokens
    assert out.getvalue() == "rank 0 of 2: 7 of 20 traces, 0.1/s, 2 tokens/s, 67 % correct, 33 % cut off\n"


def test_progress_is_whole_on_a_narrow_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, legacy_windows=False)
    with TraceProgress(8000, 9000, console=console) as progress:
        progress.add(TRACE)
    assert re.search(r"8,001 of 9,000 traces, [\d,.]+/s, [\d,]+ tokens/s, 100 % correct, 0 % cut off", out.getvalue())


def test_the_summary_names_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lightning_cli.py"])
    text = summary(Path("a b"), WHOLE, "weak", 3, [TRACE, TRACE, LOST], [Work(2, 20, 4.0), Work(1, 30, 5.0)])
    assert text.splitlines() == [
        "a b: 3 traces of 3 problems by weak",
        "  correct 2 (66.7 %), no answer 1 (33.3 %)",
        "  cut off at the token limit: 1 (33.3 %); tokens of a trace: 16.7 on average, 30 at most",
        "  this run: 3 traces in 5.0 s, 0.6 traces/s, 10 tokens/s",
        "Next: python lightning_cli.py fit --config configs/w2sr_p.yaml --data.init_args.traces='[{path: a b}]'",
    ]
    nothing = summary(Path("s"), Shard(2, 4), "weak", 0, [], [Work(0, 0, 0.0)])
    assert "shard 2/4, 0 traces of 0 problems" in nothing and "complete already: nothing was sampled" in nothing
    assert nothing.endswith("When all 4 shards are done: python lightning_cli.py merge s")


def test_a_problem_longer_than_the_context_is_named() -> None:
    chat = Chat.load("w2sr/miniature/teacher")
    long = PROBLEMS["p1"]._replace(problem_id="long", problem="Tom has 8 more than Mia. " * 20)
    num_tokens = len(chat.prompt_ids(long.problem))
    problems = [*list(PROBLEMS.values())[:3], long]
    assert problems_that_fit(problems, chat, num_tokens + 9, 9) == (problems, "")
    fitting, said = problems_that_fit(problems, chat, num_tokens + 8, 9)
    assert fitting == problems[:3]
    assert said == (
        f"1 of 4 problems are too long for the teacher's context of {num_tokens + 8} tokens with "
        f"sampling.max_new_tokens=9; the longest is 'long' with a prompt of {num_tokens} tokens"
    )
    assert problems_that_fit(problems, chat, None, 9) == (problems, "")


def test_the_recipe_changes_with_a_problem_and_not_with_their_order() -> None:
    chat, files = Chat.load("w2sr/miniature/teacher"), {"sums": DataFile("a"), "words": DataFile("b")}
    problems = list(PROBLEMS.values())

    def recipe(asked: list[Problem]) -> object:
        return make_recipe("t", "E", chat, SAMPLING, 1, files, asked, 3).problems

    assert recipe(problems) == recipe(problems[::-1])
    assert recipe(problems) != recipe([problems[0]._replace(reference_answer="7"), *problems[1:]])
