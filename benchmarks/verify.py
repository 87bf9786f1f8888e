r"""Verification: answers a second of our Verifier beside serial math-verify, with every verdict that differs.

    OMP_NUM_THREADS=1 python benchmarks/verify.py --data ../shared/data --out docs/results/verify.md

Every run is a process of its own on the same cores. The peer is tried in every setting of `PEERS` once; then its
fastest one and ours alternate, on one core and on two, with and without the start of their processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import common
from verdicts_apart import disagreements

AIM = 4.0
TIMEOUT_S = 5
"""math-verify's default for reading and for comparing, and ours for both together."""

OURS = "w2sr"
LARGEST_GPT3 = "GPT-3 175b_verification"
WARM_UP = [(rf"\boxed{{|x+{n}|}}", f"|{n}+x|") for n in range(4)]
"""Pairs that our fast path leaves to math-verify, so that a process of ours has started too."""


class Answer(NamedTuple):
    """What is verified: a completion, the answer that our rules find in it ("" for none), and the reference."""

    completion: str
    answer: str
    reference: str


class Job(NamedTuple):
    """Answers grouped by problem, and the rules that find them."""

    name: str
    about: str
    rules: list[str]
    problems: list[list[Answer]]

    @property
    def answers(self) -> list[Answer]:
        return [answer for problem in self.problems for answer in problem]


def load_job(name: str, data: Path, side: str = "") -> Job:
    """Reads one of `JOBS`, with the answers already found for every side but ours, which finds them itself."""
    if name == OLYMPIAD:
        return _olympiad(data)
    files, about, rules = JOBS[name]
    find = (lambda completion: "") if side == OURS else _finder(rules)
    problems: dict[str, list[Answer]] = defaultdict(list)
    for file in files:
        for row in common.rows(data / "traces" / f"{file}.jsonl.gz"):
            if "openai" in file and row["model"] != LARGEST_GPT3:
                continue
            problems[row["problem"]].append(Answer(row["response"], find(row["response"]), str(row["gold"])))
    return Job(name, about, rules, list(problems.values()))


def _olympiad(data: Path) -> Job:
    """Each reference as it stands, with another spelling of its fractions, and in place of another problem's."""
    texts = [str(row["answer"]) for row in common.rows(data / "problems" / "olympiadbench_math_en_text.jsonl.gz")]
    problems = []
    for index, text in enumerate(texts):
        answers = (text, text.replace(r"\frac", r"\dfrac").replace(",", ", "), f"x={text}", texts[index - 1])
        problems.append([Answer(rf"$\boxed{{{answer}}}$", answer, text) for answer in answers])
    return Job(OLYMPIAD, JOBS[OLYMPIAD][1], ["boxed"], problems)


def _finder(names: list[str]) -> Callable[[str], str]:
    from w2sr.verify import extract, parse_rules

    rules = parse_rules(names)
    return lambda completion: extract(completion, rules).answer or ""


OLYMPIAD = "OlympiadBench"
JOBS: dict[str, tuple[list[str], str, list[str]]] = {
    "MATH": (["qwen25math_example_math100"], "100 problems, 8 samples of Qwen2.5-Math each", ["boxed"]),
    "GSM8K": (
        ["zeroeval_gsm8k_weak_to_strong", "openai_gsm8k_example_model_solutions"],
        "1,319 problems, one answer of each of eight models",
        ["json:answer", "after:A:"],
    ),
    OLYMPIAD: ([], "675 references: each alone, re-spelled twice, and the next problem's as a wrong answer", ["boxed"]),
    "reasoning-gym": (
        ["rgym_math_mistral-small-24b"],
        "2,489 problems, about two samples each; polynomials, integrals, complex numbers in Python's notation",
        ["answer_tag"],
    ),
}


def _peer_parts(setting: str) -> tuple[Callable[[Answer], Any], Callable[[str], Any], int | None]:
    """How a setting reads an answer and a reference, and its time limit."""
    from math_verify import LatexExtractionConfig, parse

    from w2sr.verify.spelling import canonical

    limit = None if "no limit" in setting else TIMEOUT_S
    boxed = (LatexExtractionConfig(boxed_match_priority=0),)

    def gold(text: str) -> Any:
        return parse(text if "$" in text else f"${text}$", parsing_timeout=limit)

    readers: dict[str, Callable[[Answer], Any]] = {
        "completion": lambda one: parse(one.completion, parsing_timeout=limit),
        "answer": lambda one: parse(one.answer, parsing_timeout=limit),
        "$answer$": lambda one: parse(f"${one.answer}$", parsing_timeout=limit),
        r"\boxed{answer}": lambda one: parse(rf"\boxed{{{one.answer}}}", boxed, parsing_timeout=limit),
        "our LaTeX": lambda one: parse(rf"\boxed{{{canonical(one.answer)}}}", boxed, parsing_timeout=limit),
    }
    name = setting.partition(", ")[0]
    if name == "our LaTeX":
        return readers[name], lambda text: parse(rf"\boxed{{{canonical(text)}}}", boxed), limit
    return readers[name], gold, limit


PEERS = [
    "completion",
    "answer",
    "$answer$",
    r"\boxed{answer}",
    "our LaTeX",
    "completion, no limit",
    "answer, no limit",
    "$answer$, no limit",
    r"\boxed{answer}, no limit",
]


def grade_problem(setting: str, problem: Sequence[Answer]) -> list[bool]:
    """What a user of math-verify writes: the reference read once, every answer read and compared."""
    from math_verify import verify

    read, read_reference, limit = _READERS.get(setting) or _READERS.setdefault(setting, _peer_parts(setting))
    gold = read_reference(problem[0].reference)
    return [verify(gold, read(one), timeout_seconds=limit) for one in problem]


_READERS: dict[str, Any] = {}


def _grade_in_pool(task: tuple[str, list[Answer]]) -> list[bool]:
    return grade_problem(*task)


class Clock:
    """Wall and CPU seconds from its making to `stop`; the CPU seconds of living children before that do not count."""

    def __init__(self, children: Sequence[int] = ()) -> None:
        self._before = sum(map(_cpu_of, children))
        self._self, self._children = _used(resource.RUSAGE_SELF), _used(resource.RUSAGE_CHILDREN)
        self._begin = time.perf_counter()
        self.wall_s = self.cpu_s = 0.0

    def stop_wall(self) -> None:
        self.wall_s = time.perf_counter() - self._begin

    def stop_cpu(self) -> None:
        """To be called when the children have ended."""
        children = _used(resource.RUSAGE_CHILDREN) - self._children - self._before
        self.cpu_s = _used(resource.RUSAGE_SELF) - self._self + children


def _used(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(job: Job, side: str, cores: int, warm: bool) -> dict[str, Any]:
    """Runs one side in this process, on so many cores, and returns its times and decisions."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    clock = Clock()
    if side == OURS:
        return _measure_ours(job, cores, warm, clock)
    import logging

    import math_verify  # noqa: F401  (its import belongs to a start)

    logging.disable(logging.CRITICAL)
    pool = multiprocessing.get_context("fork").Pool(cores) if cores > 1 else None
    if warm:
        tasks = [(side, [Answer(f"${text}$", text[7:-1], gold)]) for text, gold in WARM_UP]
        decisions = pool.map(_grade_in_pool, tasks * 8, chunksize=1) if pool else list(map(_grade_in_pool, tasks))
        clock = Clock([process.pid for process in cast(Any, pool)._pool] if pool else [])
    tasks = [(side, problem) for problem in job.problems]
    decisions = pool.map(_grade_in_pool, tasks, chunksize=8) if pool else list(map(_grade_in_pool, tasks))
    clock.stop_wall()
    if pool:
        pool.close()
        pool.join()
    clock.stop_cpu()
    flat = [equal for problem in decisions for equal in problem]
    return {"wall_s": clock.wall_s, "cpu_s": clock.cpu_s, "equal": flat, "slow": 0}


def _measure_ours(job: Job, cores: int, warm: bool, clock: Clock) -> dict[str, Any]:
    from w2sr.verify import Verifier

    with Verifier(job.rules, timeout_s=TIMEOUT_S, num_workers=cores) as verifier:
        if warm:
            with_boxes = Verifier(["boxed"], timeout_s=TIMEOUT_S, num_workers=cores)
            with_boxes._pool = verifier._pool  # the rules of a job need not read boxes
            with_boxes.verify_all(WARM_UP)
            clock = Clock([worker.process.pid for worker in verifier._pool._workers])
        verdicts = verifier.verify_all((one.completion, one.reference) for one in job.answers)
        clock.stop_wall()
    clock.stop_cpu()
    slow = len({key for key, verdict in zip(job.answers, verdicts, strict=True) if "math-verify:" in verdict.reason})
    return {
        "wall_s": clock.wall_s,
        "cpu_s": clock.cpu_s,
        "equal": [verdict.is_correct for verdict in verdicts],
        "reasons": [verdict.reason for verdict in verdicts],
        "slow": slow,
    }


def run(data: Path, job: str, side: str, cores: int, warm: bool) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--data", str(data), "--out", "-", "--child", job, side, str(cores), str(warm)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    print(
        f"{job}: {side}, {cores} core(s), warm={warm}: CPU {result['cpu_s']:.2f} s, {result['wall_s']:.2f} s",
        flush=True,
    )
    return result


def section(data: Path, name: str, rounds: int) -> tuple[str, list[Any]]:
    """Measures one job and returns its part of the page and the pairs on which the verdicts differ."""
    job = load_job(name, data)
    tried = {setting: run(data, name, setting, 1, True) for setting in PEERS}
    best = min(tried, key=lambda setting: float(tried[setting]["cpu_s"]))
    lines = []
    ratios = []
    ours: dict[str, Any] = {}
    for warm in (True, False):
        for cores in (1, 2):
            both: dict[str, list[dict[str, Any]]] = {OURS: [], best: []}
            for _ in range(rounds):
                for side, runs in both.items():
                    runs.append(run(data, name, side, cores, warm))
            ours = both[OURS][0]
            cpu, wall = (
                {side: median(one[unit] for one in runs) for side, runs in both.items()} for unit in ("cpu_s", "wall_s")
            )
            ratios.append((warm, cpu[best] / cpu[OURS], wall[best] / wall[OURS]))
            lines += [_line(job, side, warm, cores, runs, cpu[best], wall[best]) for side, runs in both.items()]
    settings = [
        [f"`{setting}`", f"{one['cpu_s']:.2f}", f"{len(one['equal']) / one['cpu_s']:,.0f}", f"{sum(one['equal']):,}"]
        for setting, one in tried.items()
    ]
    least = {
        (warm, column): min(ratio[column] for ratio in ratios if ratio[0] is warm)
        for warm in (True, False)
        for column in (1, 2)
    }
    text = f"""## {job.name}

{job.about}: {len(job.answers):,} answers, {len({(one.answer, one.reference) for one in job.answers}):,} distinct pairs.
Ours handed {ours["slow"]:,} of them to math-verify and called {sum(ours["equal"]):,} answers correct. math-verify's fastest setting is `{best}`.
**At least {AIM:g}×, processes running: {_reached(least[True, 1])} by CPU seconds, {_reached(least[True, 2])} by wall time;
with their start: {_reached(least[False, 1])} by CPU seconds, {_reached(least[False, 2])} by wall time.** Each is the lesser of one and two cores.

{common.table(["side", "processes", "cores", "CPU s", "wall s", "answers / CPU s", "ratio", "answers / s", "ratio, wall"], lines)}
math-verify in every setting, one core, processes running, once each:

{common.table(["what it reads", "CPU s", "answers / CPU s", "correct"], settings)}"""
    theirs = tried["our LaTeX"]["equal"]
    pairs = zip(job.answers, ours["equal"], ours["reasons"], theirs, strict=True)
    return text, [(one, mine, reason, other) for one, mine, reason, other in pairs if mine != other and one.answer]


def _reached(ratio: float) -> str:
    return f"{'reached' if ratio >= AIM else 'NOT reached'} ({ratio:.1f}×)"


def _line(
    job: Job, side: str, warm: bool, cores: int, runs: list[dict[str, Any]], peer_cpu: float, peer_wall: float
) -> list[str]:
    cpu, wall = median(one["cpu_s"] for one in runs), median(one["wall_s"] for one in runs)
    count = len(job.answers)
    return [
        side if side == OURS else f"math-verify, `{side}`",
        "running" if warm else "started",
        str(cores),
        f"{cpu:.2f}",
        f"{wall:.2f}",
        f"{count / cpu:,.0f}",
        f"{peer_cpu / cpu:.1f}×",
        f"{count / wall:,.0f}",
        f"{peer_wall / wall:.1f}×",
    ]


def grader_pairs(data: Path) -> list[Any]:
    """Verdicts that differ on the real pairs of other graders."""
    from w2sr.verify import Verifier

    differing = []
    for file in ("math_verify_pairs", "qwen_math_eval_real_pairs"):
        pairs = dict.fromkeys(
            (str(row["prediction"]), str(row["gold"])) for row in common.rows(data / "grader" / f"{file}.jsonl.gz")
        )
        answers = [Answer("", answer, reference) for answer, reference in pairs]
        with Verifier(["boxed"], timeout_s=TIMEOUT_S) as verifier:
            extracted = [(rf"\boxed{{{one.answer}}}", one.reference) for one in answers]
            verdicts = verifier.verify_all(extracted)
        for one, mine in zip(answers, verdicts, strict=True):
            if mine.answer is not None:
                whole = one._replace(answer=mine.answer)
                other = grade_problem("our LaTeX", [whole])[0]
                if other != mine.is_correct:
                    differing.append((whole, mine.is_correct, mine.reason, other))
    return differing


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours and of the peer's fastest, alternating")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--child", nargs=4, metavar=("JOB", "SIDE", "CORES", "WARM"), help="one run, as JSON")
    args = parser.parse_args()
    if args.child:
        name, side, cores, warm = args.child
        print(json.dumps(measure(load_job(name, args.data, side), side, int(cores), warm == "True")))
        return
    sections, differing = [], []
    for name in args.jobs:
        text, pairs = section(args.data, name, args.rounds)
        sections.append(text)
        differing += pairs
    differing += grader_pairs(args.data)
    common.write(args.out, page(sections, differing, args.rounds))


def page(sections: list[str], differing: list[Any], rounds: int) -> str:
    note = f"{rounds} round{'s' * (rounds > 1)}, the two sides in turns; the load average was {os.getloadavg()[0]:.1f} at the end."
    body = "\n".join(sections)
    return f"""{common.head("Verification beside math-verify", ("math-verify", "sympy"), note)}
- *Ours* finds the answer in the completion, decides what it can exactly, and gives the rest to math-verify in killable
  processes, one a core. *math-verify* runs in one process, or in a `multiprocessing.Pool` of two on two cores, with its
  default limit of {TIMEOUT_S} s; it reads each reference once. Where it reads an answer and not the completion, finding
  that answer costs it nothing here.
- *Ratios are of CPU seconds*, children included: other processes may share the machine, which stretches wall time.
- *Running*: the clock starts after imports, with processes started and four answers behind them, and with no decision
  remembered. *Started*: it starts before the import of either package. Ours imports sympy only in a grading process,
  and starts one only where an answer needs it: that start costs about as much as math-verify's.
- Each setting of math-verify is what it reads. `our LaTeX` is the text that our grading processes read, in one process.

{body}
{REMAINING}
## Verdicts that differ

Ours beside math-verify on the same text (`our LaTeX`), over all answers above
and {GRADER_NOTE}. Every pair is listed once.

{disagreements(differing)}
Not run: other graders, more than two cores.
"""


REMAINING = r"""## Classes that remain

The rules are listed in `w2sr/verify/comparison.py`, `plain_numbers.py` and `units.py`; verdicts on pairs with known
answers are in [verify_pairs](verify_pairs.md). What the rules do not decide is math-verify's verdict, asked in both
orders; the two must agree. Known limits:

- `1,234` is 1234, so `1,234` for the list `1, 234` is incorrect; between brackets a comma always separates elements.
  A comma is never a decimal point (`0,5`), and a space joins no digits (`1 000`).
- A bare p equals p% and a p% equals p/100, so that `1%` equals both `1` and `0.01`, whichever side is the reference.
- Units are not converted, and an unknown unit is ignored. A single letter behind a space (`5 N`) is a unit; without
  the space (`5m`) it is a variable.
- A decimal with fewer than six significant digits equals no value that rounds to it (`3.14` for `\pi`).
- `x+y=7` is not `7`, even where the problem asks for x+y. `x = 5` is `5`, `x = 5` is not `y = 5`.
- A list without brackets equals a tuple `(a,b)` in the same order; it equals no interval and no set of another size.
- A numeral with a base equals one without where the digits are the same (`4210_5` and `4210`).
- Letters know no case, unless one side uses a letter in both cases (`R/r`), and unless the pair goes to math-verify.
- `|x| < 3` for `-3 < x < 3`, a column vector for a tuple, and an implicit equation for a solved one are math-verify's.
- Prose is not searched unless it holds formulas; math-verify then looks for one.
"""

GRADER_NOTE = "the 3,414 pairs of two other graders (`grader/` of the data)"


if __name__ == "__main__":
    main()
