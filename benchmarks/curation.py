"""Strategies of selection on real traces of seven teachers: what each keeps, how much of it is right, how it is built.

    python benchmarks/curation.py --data ../shared/data --out docs/results/curation.md

Reads `traces/zeroeval_gsm8k_weak_to_strong.jsonl.gz` and `tokenizers/qwen` under --data. Nothing is trained here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np

from w2sr.chat import Chat
from w2sr.scores import scores_for
from w2sr.selection import Selection, select
from w2sr.traces import read_traces
from w2sr.types import Trace
from w2sr.verify import Verifier
from w2sr.votes import By, Outcome, count_votes, judge_by_vote, precision

FILE = "zeroeval_gsm8k_weak_to_strong.jsonl.gz"
COLUMNS = {"problem_id": "id", "problem": "problem", "completion": "response", "reference_answer": "gold"}
COLUMNS["teacher"] = "model"
SCORES = ("structure", "num_steps", "connectives", "equation_validity", "num_self_checks", "difficulty")
GATES: dict[str, Any] = {"finish": "stop_or_unknown"}
N_THIRD = {"keep": "N", "top_frac": {"structure": 0.33}}
SHARES = {"Qwen2-7B-Instruct": 0.7, "Yi-1.5-9B-Chat": 0.3}

STRATEGIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("all", {"keep": "all"}),
    ("P", {"keep": "P"}),
    ("N", {"keep": "N"}),
    ("N_paper", {"keep": "N_paper"}),
    ("P, as many as N", {"keep": "P", "match_count_of": "N"}),
    ("P, one of each problem", {"keep": "P", "max_per_problem": 1}),
    ("P, shortest of each problem", {"keep": "P", "max_per_problem": 1, "choose": "shortest"}),
    ("all, 300,000 tokens", {"keep": "all", "num_tokens": 300_000}),
    ("all, 100 to 200 tokens", {"keep": "all", "min_tokens": 100, "max_tokens": 200}),
    ("all, difficulty 0.1 to 0.9", {"keep": "all", "score": {"difficulty": [0.1, 0.9]}}),
    ("all, best third by structure", {"keep": "all", "top_frac": {"structure": 0.33}}),
    ("all, best third of each problem", {"keep": "all", "top_frac": {"structure": 0.33}, "top_within": "problem"}),
    ("all, best third by equations", {"keep": "all", "top_frac": {"equation_validity": 0.33}}),
    ("P and the best third of N", {"keep": "all", "mix": [{"keep": "P"}, N_THIRD]}),
    ("ensemble vote", {"keep": "all", "ensemble": "vote"}),
    ("ensemble agreement", {"keep": "all", "ensemble": "agreement"}),
    ("ensemble agreement, 0.7", {"keep": "all", "ensemble": "agreement", "min_share": 0.7}),
    ("ensemble best by structure", {"keep": "all", "ensemble": "best"}),
    ("ensemble round robin", {"keep": "all", "ensemble": "round_robin"}),
    ("ensemble round robin, 7 to 3", {"keep": "all", "ensemble": "round_robin", "teacher_shares": SHARES}),
)
VOTES: tuple[tuple[By, float], ...] = (("teachers", 0.0), ("teachers", 0.5), ("teachers", 0.7), ("teachers", 1.0))


def main() -> None:
    args = common.parser(__doc__).parse_args()
    with Verifier(["json:answer"]) as verifier:
        traces = judged(args.data, verifier)
        print(f"{len(traces):,} traces verified", flush=True)
        votes = [vote_line(traces, verifier, by, min_share) for by, min_share in VOTES]
        print("voted", flush=True)
    scores, _ = scores_for(traces, [], SCORES, student="", hash_of=lambda: "")
    lines = []
    for name, options in STRATEGIES:
        began = time.perf_counter()
        selection = select(traces, scores=scores, **{**GATES, **options})
        lines.append(strategy_line(name, selection, scores))
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    mixture = select(traces, scores=scores, **{**GATES, **dict(STRATEGIES)["P and the best third of N"]})
    common.write(args.out, page(traces, scores, lines, votes, mixture))


def judged(data: Path, verifier: Verifier) -> list[Trace]:
    """The traces with verdicts by their references and with Qwen's numbers of tokens."""
    traces, _ = read_traces(data / "traces" / FILE, COLUMNS, source="gsm8k", stop_text=["</s>"])
    verdicts = verifier.verify_all([(trace.completion, trace.reference_answer) for trace in traces])
    chat = Chat.load(data / "tokenizers" / "qwen", template="qwen-base")
    return [
        replace(trace, answer=v.answer, verdict=v.label, grader=v.grader, num_tokens=num_tokens)
        for trace, v, num_tokens in zip(traces, verdicts, chat.count_tokens(traces), strict=True)
    ]


def strategy_line(name: str, selection: Selection, scores: dict[str, dict[str, float]]) -> list[str]:
    kept = selection.traces
    teachers = len({trace.teacher for trace in kept})
    means = [mean(scores[column][trace.trace_id] for trace in kept) for column in ("structure", "equation_validity")]
    return [
        name,
        f"{len(kept):,}",
        f"{selection.num_problems:,}",
        f"{right_frac(kept):.3f}",
        f"{mean(trace.num_tokens for trace in kept):.0f}",
        *(f"{value:.3f}" for value in means),
        str(teachers),
    ]


def right_frac(traces: Sequence[Trace]) -> float:
    return mean(trace.verdict == "correct" for trace in traces)


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are there: NaN is left out."""
    return float(np.nanmean(np.array(list(values), dtype=np.float64)))


def vote_line(traces: list[Trace], verifier: Verifier, by: By, min_share: float) -> list[str]:
    voted, ballots = judge_by_vote(traces, verifier, by=by, min_share=min_share)
    outcomes: Counter[Outcome] = Counter(ballot.outcome for ballot in ballots.values())
    found = precision(voted, traces)
    return [
        f"{min_share:g}",
        f"{outcomes['elected']:,}",
        f"{outcomes['tie']:,}",
        f"{outcomes['below min_share']:,}",
        f"{outcomes['below min_votes'] + outcomes['no answer']:,}",
        f"{found.num_elected:,}",
        f"{found.frac:.3f}",
    ]


def teacher_lines(traces: Sequence[Trace], scores: dict[str, dict[str, float]]) -> list[list[str]]:
    by_teacher: dict[str, list[Trace]] = {}
    for trace in traces:
        by_teacher.setdefault(trace.teacher, []).append(trace)
    lines = []
    for teacher, mine in sorted(by_teacher.items(), key=lambda pair: right_frac(pair[1])):
        means = [mean(scores[column][t.trace_id] for t in mine) for column in SCORES[:5]]
        tokens = f"{mean(t.num_tokens for t in mine):.0f}"
        lines.append([teacher, f"{right_frac(mine):.3f}", tokens, *(f"{value:.3f}" for value in means)])
    return lines


def right_and_wrong(traces: Sequence[Trace], scores: dict[str, dict[str, float]]) -> list[list[str]]:
    lines = []
    for column in SCORES[:5]:
        sides = [[t for t in traces if (t.verdict == "correct") == right] for right in (True, False)]
        lines.append([column, *(f"{mean(scores[column][t.trace_id] for t in side):.3f}" for side in sides)])
    return lines


def page(
    traces: Sequence[Trace],
    scores: dict[str, dict[str, float]],
    lines: Sequence[Sequence[str]],
    votes: Sequence[Sequence[str]],
    mixture: Selection,
) -> str:
    head = common.head(
        "Curation of real traces: what each strategy keeps",
        ("math-verify", "tokenizers", "pyarrow"),
        "No timings, and nothing was trained on these selections: the page says what they hold, not what they teach.",
    )
    teachers = {trace.teacher for trace in traces}
    mean_teacher = right_frac(traces)
    table = mixture.format_table().replace("\n", "\n    ")
    return f"""{head}
{len(traces):,} solutions of the {len({t.problem_id for t in traces}):,} problems of GSM8K's test set by {len(teachers)} teachers, one greedy sample each, as JSON with a
`reasoning` and an `answer`. Verdicts are by the reference answers. Seed 0; gates besides what is named: `finish: stop_or_unknown`,
`not_looping`, `dedupe`. Tokens are Qwen's. *Structure* is the heuristic of `w2sr/scores/structure.py`; *equations* is the mean share of written
equations that hold, over the traces that write some.

## Strategies

{common.table(["strategy", "traces", "problems", "right", "tokens", "structure", "equations", "teachers"], lines)}
The table of gates of *P and the best third of N*:

    {table}

## Verdicts without references

Each teacher has one vote (`vote STORE OUT --by teachers`). *Precision*: of the traces that gave the elected answer, the share that
is right by the reference. The mean teacher is right on {mean_teacher:.3f} of all problems. The comparison is not on equal terms: the teachers
answer every problem, and the vote leaves out those that it does not decide.

{common.table(["min_share", "elected", "tie", "below min_share", "too few votes", "traces called correct", "precision"], votes)}
{common_mistakes(traces)}
## Teachers

{common.table(["teacher", "right", "tokens", *SCORES[:5]], teacher_lines(traces, scores))}
## What tells right traces from wrong ones

Means over right and over other traces, without those that have no value. A score that differs little here is no filter for
correctness.

{common.table(["score", "right", "not right"], right_and_wrong(traces, scores))}"""


def common_mistakes(traces: Sequence[Trace]) -> str:
    """How many problems elect a wrong answer with all seven votes."""
    with Verifier() as verifier:
        ballots = count_votes(traces, verifier, by="teachers", min_share=1.0, min_votes=7)
    unanimous = [problem_id for problem_id, ballot in ballots.items() if ballot.elected]
    wrong = {t.problem_id for t in traces if t.verdict != "correct" and ballots[t.problem_id].elects(t)}
    return (
        f"All seven agree on {len(unanimous):,} problems, and on {len(wrong)} of them on an answer that the reference "
        "calls wrong: agreement is no truth.\n"
    )


if __name__ == "__main__":
    main()
