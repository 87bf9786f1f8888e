"""Training problems against benchmark problems: which of the former a model must not be trained on."""

from w2sr.decontaminate.match import BenchmarkIndex, Decontamination, Match, Overlap, decontaminate, same_problem
from w2sr.decontaminate.words import Words, words_of

__all__ = [
    "BenchmarkIndex",
    "Decontamination",
    "Match",
    "Overlap",
    "Words",
    "decontaminate",
    "same_problem",
    "words_of",
]
