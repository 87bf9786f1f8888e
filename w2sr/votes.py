"""Verdicts without a reference answer: the answer that most samples, or most teachers, agree on.

An answer class is a set of answers that the verifier calls equal, closed transitively: equal text, else the verifier on
every pair of a problem's distinct answers, in one direction or the other. A vote on a problem:

- by samples, every trace is a voter; by teachers, every teacher is one, and its vote is the answer class that most of
  its own traces give.
- A trace without an answer abstains, and so does a teacher whose traces have none or are tied. Who abstains is counted
  among the voters all the same: "5 of 8 samples" are 5 of 8, also where 2 of the 8 say nothing.
- An answer class is elected if it has more votes than any other, at least `min_share` of the voters, and at least
  `min_votes` voters cast a vote at all. Else the problem is undecided.

Source: self-consistency, Wang et al., arXiv 2203.11171. Not here: weights by probability. Agreement is no truth: a
mistake that all teachers make is elected too, and the precision against references, where some exist, says how often.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from w2sr.types import LABEL_FREE, Trace
from w2sr.verify import Verifier

By = Literal["samples", "teachers"]
Outcome = Literal["elected", "tie", "below min_share", "below min_votes", "no answer"]
RULE_VERSION = 1
"""Raised by one with every change that can change an election; stored with every verdict."""

MAX_SHOWN_CHARS = 40
ROUNDING = 1e-9
"""A share that is met exactly must not fail by the rounding of its product with the number of voters."""


def has_answer(trace: Trace) -> bool:
    """Whether the trace gave an answer."""
    return trace.verdict != "no_answer" and trace.answer is not None


@dataclass(frozen=True, slots=True)
class Ballot:
    """The vote on one problem.

    `elected` are the answers of the class that won, empty where the problem is undecided; `reason` says in numbers how
    it went: "5 of 8 samples", "2 answers with 3 of 8 samples each".
    """

    elected: frozenset[str]
    outcome: Outcome
    reason: str

    def elects(self, trace: Trace) -> bool:
        """Whether the trace gave the elected answer."""
        return has_answer(trace) and trace.answer in self.elected


def count_votes(
    traces: Iterable[Trace], verifier: Verifier, *, by: By, min_share: float, min_votes: int
) -> dict[str, Ballot]:
    """problem_id → the vote on it; see the top of this file. Looks at answers only, never at references or verdicts."""
    problems: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        problems[trace.problem_id].append(trace)
    answers = {
        problem_id: [str(trace.answer) for trace in group if has_answer(trace)]
        for problem_id, group in problems.items()
    }
    classes = answer_classes(answers, verifier)
    return {
        problem_id: _ballot(_votes(group, classes[problem_id], by), classes[problem_id], by, min_share, min_votes)
        for problem_id, group in problems.items()
    }


def answer_classes(answers: Mapping[str, Iterable[str]], verifier: Verifier) -> dict[str, dict[str, str]]:
    """problem_id → answer → the name of its class, which is the shortest answer of the class.

    Pairs of all problems are compared together, so that the verifier's processes work side by side.
    """
    distinct = {problem_id: sorted(set(texts), key=lambda t: (len(t), t)) for problem_id, texts in answers.items()}
    parents = {problem_id: {text: text for text in texts} for problem_id, texts in distinct.items()}
    pairs = [(problem_id, *pair) for problem_id, texts in distinct.items() for pair in combinations(texts, 2)]
    one_way = verifier.equal_all([(one, other) for _, one, other in pairs])
    # equality of an answer to a reference is not symmetric: "2, 3" may be read as the set that a reference spells out
    unequal = [pair for pair, equal in zip(pairs, one_way, strict=True) if not equal]
    other_way = verifier.equal_all([(other, one) for _, one, other in unequal])
    joined = [pair for pair, equal in zip(pairs, one_way, strict=True) if equal]
    joined += [pair for pair, equal in zip(unequal, other_way, strict=True) if equal]
    for problem_id, one, other in joined:
        roots = sorted((_root(parents[problem_id], text) for text in (one, other)), key=lambda t: (len(t), t))
        parents[problem_id][roots[1]] = roots[0]
    return {problem_id: {text: _root(tree, text) for text in tree} for problem_id, tree in parents.items()}


def _root(parents: dict[str, str], text: str) -> str:
    while parents[text] != text:
        text = parents[text]
    return text


def _votes(group: Sequence[Trace], classes: Mapping[str, str], by: By) -> list[str | None]:
    """One entry a voter: the answer class, or None for who abstains."""
    said = [(trace.teacher, classes[str(trace.answer)] if has_answer(trace) else None) for trace in group]
    if by == "samples":
        return [answer for _, answer in said]
    by_teacher: dict[str, list[str | None]] = defaultdict(list)
    for teacher, answer in said:
        by_teacher[teacher].append(answer)
    return [_plurality(answers) for answers in by_teacher.values()]


def _plurality(answers: Iterable[str | None]) -> str | None:
    ranked = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _ballot(
    votes: Sequence[str | None], classes: Mapping[str, str], by: By, min_share: float, min_votes: int
) -> Ballot:
    counts = Counter(vote for vote in votes if vote is not None)
    num_cast, most = sum(counts.values()), max(counts.values(), default=0)
    first = [answer for answer, count in counts.items() if count == most]
    if not counts:
        return Ballot(frozenset(), "no answer", f"none of {len(votes)} {by}")
    if num_cast < min_votes:
        return Ballot(frozenset(), "below min_votes", f"{num_cast} of {len(votes)} {by} cast a vote")
    if len(first) > 1:
        return Ballot(frozenset(), "tie", f"{len(first)} answers with {most} of {len(votes)} {by} each")
    if most < min_share * len(votes) - ROUNDING:
        return Ballot(frozenset(), "below min_share", f"{most} of {len(votes)} {by}")
    elected = frozenset(text for text, name in classes.items() if name == first[0])
    return Ballot(elected, "elected", f"{most} of {len(votes)} {by}")


def judge_by_vote(
    traces: Iterable[Trace], verifier: Verifier, *, by: By = "samples", min_share: float = 0.5, min_votes: int = 3
) -> tuple[list[Trace], dict[str, Ballot]]:
    """The traces of decided problems with label-free verdicts, and every problem's ballot.

    Who gave the elected answer is `correct`, who gave another one `incorrect`, who gave none `no_answer`. The grader
    is `label-free:vote` or, by teachers, `label-free:agreement`. The traces of undecided problems are left out: nothing
    is known of them.

    Raises:
        ValueError: min_share or min_votes is out of its range.
    """
    if not 0 <= min_share <= 1 or min_votes < 1:
        raise ValueError(f"min_share={min_share} must be in [0, 1], and min_votes={min_votes} at least 1.")
    traces = list(traces)
    ballots = count_votes(traces, verifier, by=by, min_share=min_share, min_votes=min_votes)
    grader = LABEL_FREE + ("vote" if by == "samples" else "agreement")
    version = f"rule {RULE_VERSION}, min_share {min_share:g}, min_votes {min_votes}, {verifier.version}"
    return [
        _judged(trace, ballots[trace.problem_id], grader, version)
        for trace in traces
        if ballots[trace.problem_id].elected
    ], ballots


def _judged(trace: Trace, ballot: Ballot, grader: str, version: str) -> Trace:
    if not has_answer(trace):
        named = replace(trace, verdict="no_answer", verdict_reason=f"no answer; {ballot.reason} agree")
    elif ballot.elects(trace):
        named = replace(trace, verdict="correct", verdict_reason=ballot.reason)
    else:
        answer = min(ballot.elected, key=lambda text: (len(text), text))[:MAX_SHOWN_CHARS]
        named = replace(trace, verdict="incorrect", verdict_reason=f"{ballot.reason} say {answer!r}")
    return replace(named, grader=grader, grader_version=version)


@dataclass(frozen=True, slots=True)
class Precision:
    """How often the traces that a vote calls correct are correct by their reference answers."""

    num_correct: int
    num_elected: int

    @property
    def frac(self) -> float:
        """In [0, 1]; NaN where no elected trace has a verdict from a reference."""
        return self.num_correct / self.num_elected if self.num_elected else float("nan")


def precision(judged: Iterable[Trace], references: Iterable[Trace]) -> Precision:
    """Precision of the verdict `correct` of label-free traces against verdicts of the same traces from references.

    Traces that `references` lacks, leaves unverified or has from a vote too are not counted.
    """
    known = {trace.trace_id: trace.verdict for trace in references if trace.verdict and not trace.is_label_free}
    said = [known[trace.trace_id] for trace in judged if trace.verdict == "correct" and trace.trace_id in known]
    return Precision(said.count("correct"), len(said))
