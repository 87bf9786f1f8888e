"""Which training problems are benchmark problems. Two gates, in this order:

exact    the two texts are equal after folding characters that mean the same, case and white space
         (`w2sr.rows.problem_hash`). Operators and every other sign stay: "2 + 2" and "2 - 2" are two problems.
overlap  one of the two problems stands in the other one as a whole, with all its words in order (see
         `w2sr.decontaminate.words`): a benchmark problem between a preamble and an instruction, or a training problem
         that lacks the instruction of the benchmark. A misspelled word counts as that word; any other word, number or
         sign that differs makes it another problem, because that is what twins differ in: "What is the least ...",
         "What is the greatest ...".

n-grams of words only find the candidates of the second gate: of the benchmark problem's n-grams, or of the training
problem's, at least the share `max_overlap` stands in the other one. A problem that stands in another one has the share
1, a misspelled word takes up to n of its n-grams away. All lookups are of hashes, so the time is linear in the words.

Left out: paraphrases, translations, and problems with other numbers or another question about the same facts.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

from w2sr.decontaminate.words import Words, with_sorted_options, words_of
from w2sr.rows import problem_hash
from w2sr.types import Problem

NUM_EXAMPLES = 2
MIN_WORDS = 5
"""A benchmark problem of fewer words and without a number, such as "Find $x + y$.", must stand at the beginning of the
training problem: as its last sentence it is a question about something else."""
MIN_WORDS_INSIDE = 10
"""A problem of so many words may begin without a break behind a word: behind a preamble that has no full stop."""
MIN_SHARE_OF_BENCHMARK = 0.5
"""Of the words of a benchmark problem, the share that a training problem that stands in it must have."""
MIN_LETTERS = 5
"""A word of fewer letters is never a misspelling of another one."""
MAX_MISSPELLED = 0.1
"""Share of the words."""
NUMERALS = frozenset(
    "three seven eight eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty "
    "fifty sixty seventy eighty ninety hundred thousand million billion trillion first second third fourth fifth sixth "
    "seventh eighth ninth tenth".split()
)


@dataclass(frozen=True)
class Overlap:
    """When a training problem counts as one of a benchmark.

    Attributes:
        ngram: words of an n-gram.
        max_overlap: share of the n-grams of either problem that also stand in the other one, from which on the two are
            compared; above 1 only equal texts are removed.
    """

    ngram: int = 5
    max_overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.ngram < 1 or self.max_overlap <= 0:
            raise ValueError(
                f"decontamination needs ngram >= 1 and max_overlap > 0; it has ngram={self.ngram}, "
                f"max_overlap={self.max_overlap}."
            )


class Match(NamedTuple):
    """A training problem and the benchmark problem that it is; `share` is the greater of the two shares of n-grams."""

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
                "removed": self.counts(),
            }
        )


class BenchmarkIndex:
    """Benchmark problems by the hash of their text and by their n-grams.

    Args:
        benchmarks: name → its problems.
        overlap: when a training problem is compared with one of them.
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[Problem]], overlap: Overlap = Overlap()) -> None:
        self.overlap = overlap
        self.problems = [(name, problem) for name, problems in benchmarks.items() for problem in problems]
        self.by_text: dict[str, int] = {}
        # the place of a problem, the words of one of its texts, and how many n-grams these have
        self.texts: list[tuple[int, Words, int]] = []
        self.by_ngram: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for at, (_, problem) in enumerate(self.problems):
            self.by_text.setdefault(problem_hash(problem.problem), at)
            for words in _texts(problem.problem):
                ngrams = words.ngrams(overlap.ngram)
                for ngram in ngrams:
                    self.by_ngram[ngram].append(len(self.texts))
                self.texts.append((at, words, len(ngrams)))
        self._short_lengths = sorted({len(words) for _, words, _ in self.texts if 0 < len(words) < overlap.ngram})

    def match(self, problem: Problem) -> Match | None:
        """The benchmark problem that a training problem is, if it is one; of several the one most like it."""
        equal = self.by_text.get(problem_hash(problem.problem))
        if equal is not None:
            return Match(problem, *self.problems[equal], "exact", 1.0)
        for words in _texts(problem.problem):
            for share, text in self._candidates(words):
                at, benchmark, _ = self.texts[text]
                if same_problem(words, benchmark):
                    return Match(problem, *self.problems[at], "overlap", share)
        return None

    def _candidates(self, words: Words) -> list[tuple[float, int]]:
        """Texts that share enough n-grams, with the greater of the two shares, the greatest first."""
        own = words.ngrams(self.overlap.ngram)
        num_own = max(1, len(own))
        own |= {ngram for length in self._short_lengths for ngram in words.ngrams(length)}
        shared = Counter(text for ngram in own for text in self.by_ngram.get(ngram, ()))
        shares = ((count / min(num_own, self.texts[text][2]), text) for text, count in shared.items())
        enough = [pair for pair in shares if pair[0] >= self.overlap.max_overlap]
        return sorted(enough, key=lambda pair: (-pair[0], pair[1]))


def _texts(problem: str) -> list[Words]:
    """The words of a problem, and of one with options those with sorted options too."""
    other = with_sorted_options(problem)
    return [words_of(problem)] if other is None else [words_of(problem), words_of(other)]


def same_problem(training: Words, benchmark: Words) -> bool:
    """Whether the benchmark problem stands in the training problem, or the latter in the former as its greater part.

    >>> same_problem(words_of("Here it is: what is 2 + 2? Think first."), words_of("Find $2+2$."))
    True
    >>> same_problem(words_of("What is 2 + 2 + 3?"), words_of("Find $2+2$."))
    False
    """
    start = _position(benchmark, training)
    if start is not None:
        has_number = any(character.isdigit() for word in benchmark.words for character in word)
        return start == 0 or has_number or len(benchmark) >= MIN_WORDS
    return len(training) >= MIN_SHARE_OF_BENCHMARK * len(benchmark) and _position(training, benchmark) is not None


def _position(inner: Words, outer: Words) -> int | None:
    """Where all words of one problem stand in another one, from break to break."""
    length = len(inner)
    if not 0 < length <= len(outer):
        return None
    missing = Counter(inner.words) - Counter(outer.words)
    if not missing:
        places = (at for at in range(len(outer) - length + 1) if outer.words[at : at + length] == inner.words)
        return next((at for at in places if _is_whole(outer, at, length)), None)
    if missing.total() > MAX_MISSPELLED * length or not all(map(_can_be_misspelled, missing)):
        return None
    blocks = SequenceMatcher(None, inner.words, outer.words, autojunk=False).get_matching_blocks()
    start = blocks[0].b - blocks[0].a
    if not 0 <= start <= len(outer) - length or not _is_whole(outer, start, length):
        return None
    pairs = zip(inner.words, outer.words[start : start + length], strict=True)
    return start if all(one == other or _is_misspelled(one, other) for one, other in pairs) else None


def _is_whole(outer: Words, start: int, length: int) -> bool:
    """Whether sentences begin before and end behind a run of words."""
    behind_word = start > 0 and len(outer.words[start - 1]) > 1 and outer.words[start - 1].isalpha()
    begins = outer.breaks[start] or (length >= MIN_WORDS_INSIDE and behind_word)
    return begins and outer.breaks[start + length]


def _can_be_misspelled(word: str) -> bool:
    return word.isalpha() and len(word) >= MIN_LETTERS and word not in NUMERALS


def _is_misspelled(one: str, other: str) -> bool:
    """Whether two words differ by one letter, added, left out or replaced, or by two neighbours swapped.

    >>> [_is_misspelled("centers", other) for other in ("centres", "center", "cinters", "corners")]
    [True, True, True, False]
    """
    if not _can_be_misspelled(one) or not _can_be_misspelled(other):
        return False
    head = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    left, right = one[head:], other[head:]
    swapped = left[:2] == right[1::-1] and left[2:] == right[2:]
    return swapped or left[1:] == right[1:] or left[1:] == right or left == right[1:]


def decontaminate(
    problems: Sequence[Problem], benchmarks: Mapping[str, Iterable[Problem]], overlap: Overlap = Overlap()
) -> Decontamination:
    """Tells the training problems that are in no benchmark from those that are."""
    index = BenchmarkIndex(benchmarks, overlap)
    clean: list[Problem] = []
    matches: list[Match] = []
    for problem in problems:
        match = index.match(problem)
        if match is None:
            clean.append(problem)
        else:
            matches.append(match)
    return Decontamination(overlap, clean, matches)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."
