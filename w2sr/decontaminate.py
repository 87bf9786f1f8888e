"""Training problems against benchmark problems: which of the former a model must not be trained on.

Two gates, in this order:

exact    the two texts are equal after NFKC, case folding and collapsing white space (`w2sr.rows.problem_hash`).
         Operators and every other sign stay: "2 + 2" and "2 - 2" are two problems.
overlap  of the training problem's n-grams of words, the share that stands in *one* benchmark problem too is at least
         `max_overlap`. A word is a run of letters and digits, or one other sign. A problem of fewer than n words has no
         n-gram: only the exact gate sees it.

Both look up hashes in an index of the benchmarks, so the time is linear in the words of both sides.

Left out: paraphrases, translations, and problems with other numbers, which have other n-grams.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from w2sr.rows import problem_hash
from w2sr.types import Problem

_WORD = re.compile(r"\w+|[^\w\s]")
NUM_EXAMPLES = 2


@dataclass(frozen=True)
class Overlap:
    """When a training problem counts as one of a benchmark.

    Attributes:
        ngram: words of an n-gram.
        max_overlap: share of the training problem's n-grams that also stand in one benchmark problem, from which on it
            is removed; above 1 only equal texts are.
    """

    ngram: int = 13
    max_overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.ngram < 1 or self.max_overlap <= 0:
            raise ValueError(
                f"decontamination needs ngram >= 1 and max_overlap > 0; it has ngram={self.ngram}, "
                f"max_overlap={self.max_overlap}."
            )


class Match(NamedTuple):
    """A training problem and the benchmark problem that it is or is like; `share` of n-grams, 1 where equal."""

    problem: Problem
    benchmark: str
    other: Problem
    gate: Literal["exact", "overlap"]
    share: float


@dataclass(frozen=True)
class Decontamination:
    """What was found: the problems that may stay, and the matches of the others, in the order given."""

    overlap: Overlap
    clean: list[Problem]
    matches: list[Match]
    num_short: int

    @property
    def removed_ids(self) -> frozenset[str]:
        return frozenset(match.problem.problem_id for match in self.matches)

    def counts(self) -> dict[str, dict[str, int]]:
        """benchmark → gate → training problems that it took out. A problem counts once, where it is most alike."""
        table: dict[str, dict[str, int]] = defaultdict(lambda: {"exact": 0, "overlap": 0})
        for match in self.matches:
            table[match.benchmark][match.gate] += 1
        return dict(table)

    def format_table(self) -> str:
        """Counts by benchmark and gate, and examples, as plain text."""
        total = len(self.clean) + len(self.matches)
        lines = [f"decontamination: {len(self.matches):,} of {total:,} training problems are removed"]
        for benchmark, gates in self.counts().items():
            lines.append(f"  {benchmark}: {gates['exact']:,} exact, {gates['overlap']:,} by overlap")
        if self.num_short:
            lines.append(
                f"  {self.num_short:,} have fewer than {self.overlap.ngram} words: only the exact gate saw them"
            )
        for gate in ("exact", "overlap"):
            for match in [match for match in self.matches if match.gate == gate][:NUM_EXAMPLES]:
                lines.append(
                    f"  {gate} ({match.share:.2f}): {match.problem.problem_id}: {_short(match.problem.problem)}"
                )
                lines.append(f"    {match.benchmark}, {match.other.problem_id}: {_short(match.other.problem)}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The counts as JSON text, to be stored with a run."""
        return json.dumps(
            {
                "ngram": self.overlap.ngram,
                "max_overlap": self.overlap.max_overlap,
                "num_clean": len(self.clean),
                "num_short": self.num_short,
                "removed": self.counts(),
            }
        )


def words(text: str) -> list[str]:
    """Words and signs of a text in lower case; equal for texts that the exact gate calls equal.

    >>> words("If  $x+1 = 2$, what is X?")
    ['if', '$', 'x', '+', '1', '=', '2', '$', ',', 'what', 'is', 'x', '?']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(text: str, length: int) -> set[int]:
    """Hashes of the n-grams of a text. They differ between processes, so they are never stored."""
    found = words(text)
    return {hash(tuple(found[start : start + length])) for start in range(len(found) - length + 1)}


class BenchmarkIndex:
    """Benchmark problems by the hash of their text and by their n-grams.

    Args:
        benchmarks: name → its problems.
        overlap: when a problem counts as one of them.
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[Problem]], overlap: Overlap = Overlap()) -> None:
        self.overlap = overlap
        self.problems = [(name, problem) for name, problems in benchmarks.items() for problem in problems]
        self.by_text: dict[str, int] = {}
        self.by_ngram: dict[int, list[int]] = defaultdict(list)
        for at, (_, problem) in enumerate(self.problems):
            self.by_text.setdefault(problem_hash(problem.problem), at)
            for ngram in ngrams(problem.problem, overlap.ngram):
                self.by_ngram[ngram].append(at)

    def match(self, problem: Problem) -> Match | None:
        """The benchmark problem that a training problem equals, else the one most like it, if enough so."""
        equal = self.by_text.get(problem_hash(problem.problem))
        if equal is not None:
            return Match(problem, *self.problems[equal], "exact", 1.0)
        own = ngrams(problem.problem, self.overlap.ngram)
        shared = Counter(at for ngram in own for at in self.by_ngram.get(ngram, ()))
        if not shared:
            return None
        most = max(shared.values())
        at = min(at for at, count in shared.items() if count == most)
        share = most / len(own)
        return Match(problem, *self.problems[at], "overlap", share) if share >= self.overlap.max_overlap else None


def decontaminate(
    problems: Sequence[Problem], benchmarks: Mapping[str, Iterable[Problem]], overlap: Overlap = Overlap()
) -> Decontamination:
    """Tells the training problems that are in no benchmark from those that are, or are too like one."""
    index = BenchmarkIndex(benchmarks, overlap)
    clean: list[Problem] = []
    matches: list[Match] = []
    for problem in problems:
        match = index.match(problem)
        if match is None:
            clean.append(problem)
        else:
            matches.append(match)
    num_short = sum(len(words(problem.problem)) < overlap.ngram for problem in clean)
    return Decontamination(overlap, clean, matches, num_short)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."
