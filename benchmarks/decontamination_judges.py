"""How others decontaminate: five rules, each as an index of benchmark texts and a question about one training text.

half of the 13-grams   equal texts, or half of the training problem's 13-grams in one benchmark problem
open-r1      one shared 8-gram of words split at white space (huggingface/open-r1, scripts/decontaminate.py)
13-gram      one shared 13-gram of words without punctuation (GPT-3, arXiv 2005.14165, appendix C; lm-evaluation-harness)
Qwen2.5-Math one shared 13-gram, and a longest common subsequence of words of at least 0.6 of the shorter text
             (arXiv 2409.12122, and 2407.10671 for the formula)
Tülu 3       8-grams of the training text cover more than half of the benchmark's words (arXiv 2411.15124, section 3.2)
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

Judge = Callable[[str], int | None]
"""A training text → the place of the benchmark problem for which it is removed, or None."""


def plain_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def split_words(text: str) -> list[str]:
    return text.lower().split()


def signed_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold())


class Grams:
    """n-grams of benchmark texts, and the number of a text's n-grams that each of them shares."""

    def __init__(self, benchmark: Sequence[str], length: int, split: Callable[[str], list[str]]) -> None:
        self.length, self.split, self.words = length, split, [split(text) for text in benchmark]
        self.by_ngram: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for at, words in enumerate(self.words):
            for ngram in self.of(words):
                self.by_ngram[ngram].add(at)

    def of(self, words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[at : at + self.length]) for at in range(len(words) - self.length + 1)]

    def shared(self, words: list[str]) -> list[tuple[int, int]]:
        """(place, number of shared n-grams) of the texts that share one, the greatest number first."""
        counts = Counter(at for ngram in set(self.of(words)) for at in self.by_ngram.get(ngram, ()))
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def half_shared(benchmark: Sequence[str]) -> Judge:
    grams = Grams(benchmark, 13, signed_words)
    equal = {" ".join(unicodedata.normalize("NFKC", text).casefold().split()): at for at, text in enumerate(benchmark)}

    def judge(text: str) -> int | None:
        same = equal.get(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))
        if same is not None:
            return same
        words = grams.split(text)
        most = grams.shared(words)
        return most[0][0] if most and most[0][1] >= 0.5 * len(set(grams.of(words))) else None

    return judge


def one_shared(length: int, split: Callable[[str], list[str]]) -> Callable[[Sequence[str]], Judge]:
    def build(benchmark: Sequence[str]) -> Judge:
        grams = Grams(benchmark, length, split)

        def judge(text: str) -> int | None:
            most = grams.shared(grams.split(text))
            return most[0][0] if most else None

        return judge

    return build


def qwen(benchmark: Sequence[str]) -> Judge:
    grams = Grams(benchmark, 13, plain_words)

    def judge(text: str) -> int | None:
        words = grams.split(text)
        for at, _ in grams.shared(words):
            if common_subsequence(words, grams.words[at]) >= 0.6 * min(len(words), len(grams.words[at])):
                return at
        return None

    return judge


def common_subsequence(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence, 64 cells of its table at a time (Hyyrö 2004).

    >>> common_subsequence(list("abcbdab"), list("bdcaba"))
    4
    """
    places: dict[str, int] = defaultdict(int)
    for at, word in enumerate(one):
        places[word] |= 1 << at
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        hit = row & places[word]
        row = ((row + hit) | (row - hit)) & full
    return len(one) - row.bit_count()


def tulu(benchmark: Sequence[str]) -> Judge:
    grams = Grams(benchmark, 8, plain_words)

    def judge(text: str) -> int | None:
        own = set(grams.of(grams.split(text)))
        for at, _ in grams.shared(grams.split(text)):
            words = grams.words[at]
            covered = {place + by for place, ngram in enumerate(grams.of(words)) if ngram in own for by in range(8)}
            if len(covered) > 0.5 * len(words):
                return at
        return None

    return judge


PEERS: dict[str, Callable[[Sequence[str]], Judge]] = {
    "half of the 13-grams": half_shared,
    "open-r1, an 8-gram": one_shared(8, split_words),
    "GPT-3, a 13-gram": one_shared(13, plain_words),
    "Qwen2.5-Math": qwen,
    "Tülu 3": tulu,
}
