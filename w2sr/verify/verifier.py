"""The verifier: completion × reference answer → Verdict."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, get_args

from w2sr.types import Kind, Problem, Tolerance, Verdict, VerdictLabel
from w2sr.verify import choice, exact, logic, mathematics, number, yes_no
from w2sr.verify.comparison import Decision, Pair, open_pairs, settle
from w2sr.verify.extraction import extract, parse_rules
from w2sr.verify.workers import GradeTask, Outcome, WorkerPool

GRADER_REVISION = 3
"""Raised by one with every change that can change a verdict; stored with every trace."""

MAX_REMEMBERED = 100_000
"""So many decisions of math-verify are remembered: models repeat answers."""

_NUM_EXAMPLES = 3
_PURE = {"exact": exact, "choice": choice, "yes_no": yes_no, "number": number, "logic": logic}
"""The kinds that are decided in this process, each a module with `grade` and `check_reference`."""


class Verifier:
    """Verifies completions by rules of extraction and one kind of comparison.

    `kind="math"`: exact rules in this process, then math-verify for what they leave open, in `num_workers` killable
    processes with `timeout_s` seconds an answer. `kind="exact"`: equal text up to case and markup round the answer.
    `choice`, `yes_no`, `number` (within `tolerance`) and `logic`: see the modules of these names. An unusable
    completion gets a verdict, never an exception. One Verifier serves one source; close it, or use it in `with`.

    >>> Verifier(rules=["boxed"], num_workers=1).verify(r"so it is \\boxed{0.50}", "1/2").label
    'correct'
    """

    def __init__(
        self,
        rules: Sequence[str] = ("boxed",),
        kind: Kind = "math",
        timeout_s: float = 5.0,
        num_workers: int = 2,
        prompt_opens_think: bool = False,
        tolerance: Tolerance = number.EXACT,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"Unknown kind of verification {kind!r}: use one of {', '.join(get_args(Kind))}.")
        if kind != "number" and tolerance != number.EXACT:
            raise ValueError(f"kind '{kind}' has no tolerance, but {tolerance} is set. Set kind: number, or remove it.")
        self._settings = (tuple(rules), kind, timeout_s, num_workers, prompt_opens_think, tolerance)
        self.rules = parse_rules(rules)
        self.kind = kind
        self.prompt_opens_think = prompt_opens_think
        self.grader = "math-verify+exact" if kind == "math" else kind
        self._grade = _grader(kind, tolerance)
        self.version = f"w2sr {GRADER_REVISION}" + (f", math-verify {_math_verify_version()}" if kind == "math" else "")
        self._pool = WorkerPool(num_workers, timeout_s)
        self._remembered: dict[GradeTask, Outcome] = {}

    def verify(self, completion: str, reference_answer: str) -> Verdict:
        """The verdict on one completion. Many are faster through `verify_all`."""
        return self.verify_all([(completion, reference_answer)])[0]

    def verify_all(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """One verdict a (completion, reference_answer), in their order.

        Equal pairs of answer and reference are graded once.
        """
        extracted = [
            (extract(completion, self.rules, prompt_opens_think=self.prompt_opens_think), reference)
            for completion, reference in pairs
        ]
        decided = self._decide((extraction.answer, reference) for extraction, reference in extracted)
        verdicts = []
        for extraction, reference in extracted:
            label, reason = decided[extraction.answer, reference]
            verdicts.append(Verdict(label, extraction.answer, extraction.rule, reason, self.grader, self.version))
        return verdicts

    def equal_all(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """Whether the answers of each pair are equal, the second read as a reference. A timeout is not equal."""
        pairs = list(pairs)
        decided = self._decide(pairs)
        return [decided[pair][0] == "correct" for pair in pairs]

    def _decide(
        self, pairs: Iterable[tuple[str | None, str]]
    ) -> dict[tuple[str | None, str], tuple[VerdictLabel, str]]:
        """Label and reason of each distinct (answer, reference)."""
        quick = {pair: self._quick(*pair) for pair in dict.fromkeys(pairs)}
        slow = self._grade_slowly([task for decision, _ in quick.values() if (task := _task(decision)).pairs])
        return {
            pair: ("no_answer", reason) if pair[0] is None else _settled(decision, reason, slow)
            for pair, (decision, reason) in quick.items()
        }

    def _quick(self, answer: str | None, reference: str) -> tuple[Decision, str]:
        """The decision of this process; for mathematics it may hold pairs for math-verify."""
        if answer is None:
            return False, f"no answer by {', '.join(rule.name for rule in self.rules)}"
        return self._grade(answer, reference)

    def _grade_slowly(self, tasks: Sequence[GradeTask]) -> dict[GradeTask, Outcome]:
        decided = {task: self._remembered[task] for task in tasks if task in self._remembered}
        new = [task for task in dict.fromkeys(tasks) if task not in decided]
        outcomes = dict(zip(new, self._pool.run(new), strict=True)) if new else {}
        if len(self._remembered) + len(outcomes) > MAX_REMEMBERED:
            self._remembered.clear()
        # A timeout may be the fault of a busy machine: it is not remembered beyond this call.
        self._remembered.update((task, outcome) for task, outcome in outcomes.items() if outcome.equal is not None)
        return decided | outcomes

    def check_reference(self, reference_answer: str) -> None:
        """Raises ValueError, saying why, where no answer could be graded against the reference. Takes microseconds."""
        _PURE.get(self.kind, mathematics).check_reference(reference_answer)

    def close(self) -> None:
        """Ends the grading processes."""
        self._pool.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Verifier, self._settings  # processes do not travel: a copy in another process starts its own


def _grader(kind: Kind, tolerance: Tolerance) -> Callable[[str, str], tuple[Decision, str]]:
    """What decides in this process; only mathematics leaves pairs open."""
    if kind == "number":
        return partial(number.grade, tolerance=tolerance)
    return mathematics.grade if kind == "math" else _PURE[kind].grade


def _task(decision: Decision) -> GradeTask:
    """What a decision leaves to math-verify; no pairs where it is decided."""
    return GradeTask(tuple(dict.fromkeys((pair.first, pair.second) for pair in open_pairs(decision))))


def _settled(decision: Decision, reason: str, slow: Mapping[GradeTask, Outcome]) -> tuple[VerdictLabel, str]:
    """Label and reason, where `slow` holds the outcome of every open decision."""
    task = _task(decision)
    if task.pairs:
        outcome = slow[task]
        if outcome.equal is None:
            return "timeout", outcome.reason
        equal = {Pair(*pair): pair_equal for pair, pair_equal in zip(task.pairs, outcome.equal, strict=True)}
        return "correct" if settle(decision, equal) else "incorrect", outcome.reason
    return "correct" if decision else "incorrect", reason


def _math_verify_version() -> str:
    try:
        return importlib.metadata.version("math-verify")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            "Verification of kind 'math' needs the package math-verify, which is not installed here. "
            "Run `pip install math-verify`, or set kind to 'exact' for equality of text."
        ) from error


def usable_references(
    problems: Iterable[Problem], verifier: Verifier, on_bad_reference: Literal["error", "skip"]
) -> tuple[list[Problem], list[str]]:
    """The problems whose reference answers can be used, and for each reason why others cannot a sentence.

    A sentence counts the problems of its reason and names the first three, with their references where the reason
    quotes them.

    Raises:
        ValueError: there is an unusable reference and `on_bad_reference` is "error"; the reasons are named.
    """
    if on_bad_reference not in ("error", "skip"):
        raise ValueError(f"on_bad_reference={on_bad_reference!r}: use 'error' or 'skip'.")
    usable: list[Problem] = []
    bad: dict[str, list[str]] = {}
    for problem in problems:
        try:
            verifier.check_reference(problem.reference_answer)
        except ValueError as error:
            quoted = f" {problem.reference_answer!r}", f" {problem.reference_answer[:80]!r}"
            reason = str(error).replace(quoted[0], "").replace(quoted[1], "")
            shown = problem.problem_id if reason == str(error) else problem.problem_id + quoted[1]
            bad.setdefault(reason, []).append(shown)
        else:
            usable.append(problem)
    complaints = [_complaint(reason, shown) for reason, shown in bad.items()]
    num_bad = sum(map(len, bad.values()))
    if bad and on_bad_reference == "error":
        raise ValueError(
            f"{num_bad:,} of {len(usable) + num_bad:,} problems have a reference answer that cannot be used: "
            f"{'; '.join(complaints)}. Correct these rows, or set on_bad_reference=skip to leave them out."
        )
    return usable, complaints


def _complaint(reason: str, shown: list[str]) -> str:
    more = len(shown) - _NUM_EXAMPLES
    examples = ", ".join(shown[:_NUM_EXAMPLES]) + (f" and {more:,} more" if more > 0 else "")
    return f"{reason} ({len(shown):,} of them: {examples})"
