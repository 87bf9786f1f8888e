"""Real traces of other people's models through reading, verification, selection, chat and packing: the counts.

    python benchmarks/real_traces.py --data ../shared/data --out docs/results/real_traces.md

Reads `traces/*.jsonl.gz` and `tokenizers/*` under --data and writes one Markdown page. Uses public names of w2sr only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import common
import numpy as np

from w2sr.chat import Chat
from w2sr.packing import handle_overlong, plan_epoch
from w2sr.selection import GateRow, Selection, select
from w2sr.traces import read_traces
from w2sr.types import Keep, Problem, Trace, VerdictLabel
from w2sr.verify import Verifier, usable_references

COLUMNS = {"problem": "problem", "completion": "response", "reference_answer": "gold", "teacher": "model"}
GATES: dict[str, Any] = {"finish": "stop_or_unknown", "not_looping": True, "dedupe": True}
TOKENIZERS = {"Qwen": "qwen", "SmolLM2": "smollm2-135m-instruct"}
ROWS = (4096, 8192)
WINDOWS = (1, 8)
STEP_SEQUENCES = 128
PACKED: tuple[Keep, ...] = ("P", "N", "all")


@dataclass(frozen=True)
class TraceFile:
    """A file, and what has to be said about it: its columns, how answers are found, where a teacher should stop."""

    name: str
    file: str
    rules: tuple[str, ...]
    columns: dict[str, str] = field(default_factory=dict)
    stop_text: tuple[str, ...] = ()
    prompt_opens_think: bool = False


FILES = (
    TraceFile(
        "GSM8K, seven models",
        "zeroeval_gsm8k_weak_to_strong.jsonl.gz",
        ("json:answer",),
        {"problem_id": "id"},
        stop_text=("</s>",),
    ),
    TraceFile("GSM8K, GPT-3", "openai_gsm8k_example_model_solutions.jsonl.gz", ("after:A:",)),
    TraceFile(
        "MATH, R1 distillation",
        "r1_distill_longcot_with_token_ids.jsonl.gz",
        ("boxed",),
        {"finish_reason": "finished"},
        prompt_opens_think=True,
    ),
    TraceFile("reasoning-gym, Mistral", "rgym_math_mistral-small-24b.jsonl.gz", ("answer_tag",)),
    TraceFile("MATH, Qwen2.5-Math", "qwen25math_example_math100.jsonl.gz", ("boxed",)),
)


@dataclass
class Result:
    """What one file gave. Seconds are wall time."""

    file: TraceFile
    traces: list[Trace]
    read_s: float
    verify_s: float
    selections: dict[Keep, Selection]


def main() -> None:
    args = common.parser(__doc__).parse_args()
    results = []
    for file in FILES:
        results.append(judged(file, args.data / "traces" / file.file))
        print(f"{file.name}: {len(results[-1].traces):,} traces verified in {results[-1].verify_s:.1f} s", flush=True)
    packing = [row for name in TOKENIZERS for row in packing_rows(name, args.data, results)]
    common.write(args.out, page(results, packing))


def judged(file: TraceFile, path: Path) -> Result:
    """Reads, verifies and selects one file."""
    began = time.perf_counter()
    traces, _ = read_traces(path, {**COLUMNS, **file.columns}, source=file.name, stop_text=file.stop_text)
    read_s = time.perf_counter() - began
    began = time.perf_counter()
    with Verifier(file.rules, prompt_opens_think=file.prompt_opens_think) as verifier:
        usable_references([problem_of(trace) for trace in traces], verifier, "error")
        verdicts = verifier.verify_all([(trace.completion, trace.reference_answer) for trace in traces])
    verify_s = time.perf_counter() - began
    traces = [trace.judged(verdict) for trace, verdict in zip(traces, verdicts, strict=True)]
    selections = {keep: selected(traces, keep) for keep in get_args(Keep)}
    return Result(file, traces, read_s, verify_s, selections)


def problem_of(trace: Trace) -> Problem:
    return Problem(trace.problem_id, trace.source, trace.problem, trace.reference_answer)


def selected(traces: list[Trace], keep: Keep) -> Selection:
    """The selection; an empty one where no verdict is what `keep` asks for, which `select` refuses."""
    wanted = {"P": {"correct"}, "N": {"incorrect"}}.get(keep)
    if wanted and not any(trace.verdict in wanted for trace in traces):
        return Selection([], [GateRow(f"keep={keep}", len(traces), len(traces), 0)])
    return select(traces, keep=keep, **GATES)


def packing_rows(tokenizer: str, data: Path, results: Sequence[Result]) -> list[list[str]]:
    """One line for each file and filter: traces, tokens, longest, seconds, and for each row length what it holds."""
    chat = Chat.load(data / "tokenizers" / TOKENIZERS[tokenizer], template="qwen-base")
    lines = []
    for result in results:
        began = time.perf_counter()
        segments = {segment.segment_id: segment for segment in chat.segments(result.selections["all"].traces)}
        seconds = time.perf_counter() - began
        for keep in PACKED:
            kept = [segments[trace.trace_id] for trace in result.selections[keep].traces]
            if not kept:
                continue
            lengths = [len(segment) for segment in kept]
            line = [result.file.name, tokenizer, keep, f"{len(kept):,}", f"{sum(lengths):,}", f"{max(lengths):,}"]
            line.append(f"{seconds:.1f}" if keep == "all" else "")
            for max_tokens in ROWS:
                fitting, report = handle_overlong(kept, max_tokens, "drop")
                fills = [fill([len(segment) for segment in fitting], max_tokens, window) for window in WINDOWS]
                line += [f"{report.num_overlong:,}", *(f"{share:.3f}" for share in fills)]
            lines.append(line)
        print(f"{result.file.name}: tokenised by {tokenizer} in {seconds:.1f} s", flush=True)
    return lines


def fill(lengths: Sequence[int], max_tokens: int, window: int) -> float:
    """Share of the row capacity of the first epoch that holds tokens."""
    plan = plan_epoch(
        np.array(lengths), seed=0, epoch=0, max_tokens=max_tokens, step_sequences=STEP_SEQUENCES, window=window
    )
    return plan.fill()


def page(results: Sequence[Result], packing: Sequence[Sequence[str]]) -> str:
    """The Markdown page."""
    head = common.head(
        "Real traces: the counts",
        ("torch", "transformers", "tokenizers", "math-verify", "pyarrow"),
        "Seconds are wall time on a machine that does other work too. Nothing is left out beyond what a table says.",
    )
    gates = ", ".join(f"`{name}: {value}`" for name, value in GATES.items())
    fills = [
        f"T={length:,}: {what}" for length in ROWS for what in ("overlong", *(f"fill, window {w}" for w in WINDOWS))
    ]
    by_teacher = [line for result in results for line in teachers(result)]
    return f"""{head}
## Read and verified

The rules say where a file keeps its answers; every reference answer can be used, and no row is bad (either would end
this script). A `timeout` is 5 s of wall time spent on one answer (here integrals of powers of sines and cosines), so a
busy machine counts some more of them, taken from `incorrect`.

{common.table(["file", "rules", "read", *get_args(VerdictLabel), "read s", "verify s"], map(verdict_line, results))}
{"".join(map(cut_off, results))}## By teacher

{common.table(["file", "teacher", "traces", "correct", "share"], by_teacher)}
## Selected

Gates: {gates}.
`N` asks for a wrong answer; `N_paper` is everything that is not correct. The columns in between count what each gate
removed.

{common.table(["file", "keep", "in", *gate_names(results), "kept", "problems"], selection_lines(results))}
## Packed

Prompts by template `qwen-base`, {STEP_SEQUENCES} traces an optimizer step, first epoch of seed 0. *Tokens* are those of
prompts, completions and stop tokens; *fill* is the share of the rows' capacity that holds them, with the steps of one
*window* packed together; *overlong* traces do not fit a row of T tokens (and are dropped here); *seconds* are those of
tokenising the line `all`. A file that keeps nothing under a filter has no line.

{common.table(["file", "tokenizer", "keep", "traces", "tokens", "longest", "seconds", *fills], packing)}"""


def verdict_line(result: Result) -> list[str]:
    counts = Counter(trace.verdict for trace in result.traces)
    verdicts = [f"{counts[label]:,}" for label in get_args(VerdictLabel)]
    rules = ", ".join(f"`{rule}`" for rule in result.file.rules)
    said = [f"stop text `{text}`" for text in result.file.stop_text]
    said += ["the prompt opens `<think>`"] * result.file.prompt_opens_think
    seconds = [f"{result.read_s:.1f}", f"{result.verify_s:.1f}"]
    return [result.file.name, "; ".join([rules, *said]), f"{len(result.traces):,}", *verdicts, *seconds]


def cut_off(result: Result) -> str:
    """Where a file says how its completions ended: how many were cut off, also of those that it calls finished."""
    if "finish_reason" not in result.file.columns:
        return ""
    cut = sum(trace.finish_reason == "length" for trace in result.traces)
    silent = sum(trace.finish_reason == "stop" and trace.answer is None for trace in result.traces)
    return (
        f"*{result.file.name}*: {cut:,} of {len(result.traces):,} traces are marked as cut off; {silent:,} of those "
        "marked as finished\nhave no answer after their thinking. The gate `has_answer` leaves such traces out.\n\n"
    )


def teachers(result: Result) -> list[list[str]]:
    read = Counter(trace.teacher for trace in result.traces)
    right = Counter(trace.teacher for trace in result.traces if trace.verdict == "correct")
    by_share = sorted(read, key=lambda teacher: right[teacher] / read[teacher])
    return [
        [result.file.name, name, f"{read[name]:,}", f"{right[name]:,}", f"{right[name] / read[name]:.3f}"]
        for name in by_share
    ]


def gate_names(results: Sequence[Result]) -> list[str]:
    return ["keep", *(row.gate for row in results[0].selections["all"].table[1:])]


def selection_lines(results: Sequence[Result]) -> Iterable[list[str]]:
    for result in results:
        for keep, selection in result.selections.items():
            removed = [f"{row.num_removed:,}" for row in selection.table]
            removed += ["0"] * (len(results[0].selections["all"].table) - len(removed))
            kept = [f"{len(selection.traces):,}", f"{selection.num_problems:,}"]
            yield [result.file.name, keep, f"{len(result.traces):,}", *removed, *kept]


if __name__ == "__main__":
    main()
