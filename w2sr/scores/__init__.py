"""Scores of traces, as columns that a selection can use: structure, the student's likelihood, difficulty."""

from w2sr.scores.arithmetic import equation_validity, equations
from w2sr.scores.difficulty import difficulty_scores
from w2sr.scores.joined import scores_for, stored_table
from w2sr.scores.likelihood import likelihoods, load_student, student_hash
from w2sr.scores.rules import COLUMNS, difficulty_score, likelihood_score, score_of_column, structure_score
from w2sr.scores.sidecars import Provenance, Score, compute_missing, stored_values
from w2sr.scores.structure import structure_scores

__all__ = [
    "COLUMNS",
    "Provenance",
    "Score",
    "compute_missing",
    "difficulty_score",
    "difficulty_scores",
    "equation_validity",
    "equations",
    "likelihood_score",
    "likelihoods",
    "load_student",
    "score_of_column",
    "scores_for",
    "stored_table",
    "stored_values",
    "structure_score",
    "structure_scores",
    "student_hash",
]
