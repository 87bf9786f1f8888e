"""Audit of verdicts on traces: where two gradings disagree, which wrong answers may be right, what cannot be graded.

A verifier's mistakes become training data: a right answer that is called wrong leaves P and enters N. None of what is
found here is a mistake for certain; it is where a person should look first.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple, get_args

from w2sr.types import Kind, Trace, Verdict
from w2sr.verify import Verifier
from w2sr.verify.exact import normalize

BAD_REFERENCE = "bad_reference"
"""The label of a trace whose reference answer cannot be used."""

OTHER_RULES = ("boxed", "hash", "answer_tag", "after:answer is", "choice_letter", "yes_no", "last_number")
"""Extraction rules that are tried on answers that were judged wrong."""

TAIL_CHARS = 100
"""A completion ends with its last so many characters."""

MIN_ANSWERS = 3
"""So many answers to a problem make a majority possible."""


class Grading(NamedTuple):
    """One verdict a trace, and who gave them. None: the reference answer cannot be used."""

    name: str
    verdicts: list[Verdict | None]

    @property
    def labels(self) -> list[str]:
        return [BAD_REFERENCE if verdict is None else verdict.label for verdict in self.verdicts]


class Majority(NamedTuple):
    """A problem on which most answers agree, and were judged wrong."""

    problem_id: str
    reference_answer: str
    answer: str
    num_agreeing: int
    num_answers: int


def stored_grading(traces: Sequence[Trace]) -> Grading:
    """The verdicts that the traces bear.

    Raises:
        ValueError: one bears none.
    """
    verdicts: list[Verdict | None] = []
    for trace in traces:
        if not trace.verdict:
            raise ValueError(
                f"trace '{trace.trace_id}' bears no verdict, so that there is none to audit. Name rules or a kind to "
                "grade the traces by: --rules boxed."
            )
        decided_by = (trace.grader, trace.grader_version)
        verdicts.append(Verdict(trace.verdict, trace.answer, trace.answer_rule, trace.verdict_reason, *decided_by))
    return Grading("the stored verdicts", verdicts)


def fresh_grading(traces: Sequence[Trace], verifier: Verifier) -> Grading:
    """The verdicts that the verifier gives now."""
    usable = [_is_usable(verifier, trace.reference_answer) for trace in traces]
    pairs = [(t.completion, t.reference_answer) for t, can in zip(traces, usable, strict=True) if can]
    verdicts = iter(verifier.verify_all(pairs))
    name = f"rules {', '.join(rule.name for rule in verifier.rules)}; kind {verifier.kind}"
    return Grading(name, [next(verdicts) if can else None for can in usable])


def _is_usable(verifier: Verifier, reference_answer: str) -> bool:
    return not _complaint(verifier, reference_answer)


def _complaint(verifier: Verifier, reference_answer: str) -> str:
    try:
        verifier.check_reference(reference_answer)
    except ValueError as error:
        return str(error)
    return ""


def disagreements(first: Grading, second: Grading) -> list[int]:
    """Which traces the two label differently; those where only one says `correct` come first."""
    pairs = list(zip(first.labels, second.labels, strict=True))
    differ = [index for index, (one, other) in enumerate(pairs) if one != other]
    return sorted(differ, key=lambda index: "correct" not in pairs[index])


def judged_wrong(grading: Grading) -> list[int]:
    """Which traces have an answer that was judged wrong, or none."""
    return [index for index, label in enumerate(grading.labels) if label in ("incorrect", "no_answer")]


def other_readings(
    traces: Sequence[Trace], wrong: Sequence[int], base: Verifier, timeout_s: float
) -> dict[int, list[str]]:
    """For traces judged wrong, which other rule (with the kind of `base`), or kind (with its rules), would accept."""
    rules, kind = [rule.name for rule in base.rules], base.kind
    others: list[tuple[str, Sequence[str], Kind]] = [
        (f"rule {rule}", (rule,), kind) for rule in OTHER_RULES if [rule] != rules
    ]
    others += [(f"kind {other}", rules, other) for other in get_args(Kind) if other != kind]
    found: dict[int, list[str]] = defaultdict(list)
    for name, other_rules, other_kind in others:
        with Verifier(other_rules, other_kind, timeout_s, prompt_opens_think=base.prompt_opens_think) as verifier:
            usable = [index for index in wrong if _is_usable(verifier, traces[index].reference_answer)]
            verdicts = verifier.verify_all([(traces[i].completion, traces[i].reference_answer) for i in usable])
        for index, verdict in zip(usable, verdicts, strict=True):
            if verdict.is_correct:
                found[index].append(name)
    return dict(found)


def ends_with_reference(completion: str, reference_answer: str) -> bool:
    """Whether the reference stands by itself in the last TAIL_CHARS characters, whatever its case and spacing.

    >>> ends_with_reference("... so 12 + 6 = 18 eggs.", "18"), ends_with_reference("... so 180 or 1.18 eggs", "18")
    (True, False)
    """
    tail = " ".join(completion[-TAIL_CHARS:].casefold().split())
    wanted = re.escape(" ".join(reference_answer.casefold().split()))
    return bool(wanted) and re.search(rf"(?<![\w.]){wanted}(?!\w|[.,][0-9])", tail) is not None


def wrong_majorities(traces: Sequence[Trace], grading: Grading) -> list[Majority]:
    """The problems on which more than half of at least MIN_ANSWERS answers agree and were judged wrong, clearest first.

    Answers agree if they are equal by `kind: exact`.
    """
    by_problem: dict[str, list[int]] = defaultdict(list)
    for index, verdict in enumerate(grading.verdicts):
        if verdict is not None and verdict.answer:
            by_problem[traces[index].problem_id].append(index)
    found = []
    for problem_id, indices in by_problem.items():
        answers = {index: grading.verdicts[index].answer or "" for index in indices}  # type: ignore[union-attr]
        answer, count = Counter(normalize(text) for text in answers.values()).most_common(1)[0]
        agreeing = [index for index in indices if normalize(answers[index]) == answer]
        wrong = all(grading.labels[index] == "incorrect" for index in agreeing)
        if len(indices) >= MIN_ANSWERS and 2 * count > len(indices) and wrong:
            reference = traces[indices[0]].reference_answer
            found.append(Majority(problem_id, reference, answers[agreeing[0]], count, len(indices)))
    return sorted(found, key=lambda majority: (-majority.num_agreeing / majority.num_answers, -majority.num_answers))


def bad_references(traces: Sequence[Trace], verifier: Verifier) -> dict[str, str]:
    """Each problem whose reference answer cannot be used, and why."""
    references = {trace.problem_id: trace.reference_answer for trace in traces}
    return {name: why for name, reference in references.items() if (why := _complaint(verifier, reference))}


def unanswered(traces: Sequence[Trace], grading: Grading) -> Counter[str]:
    """How many traces have no answer, by how their completion ended."""
    return Counter(
        trace.finish_reason for trace, label in zip(traces, grading.labels, strict=True) if label == "no_answer"
    )
