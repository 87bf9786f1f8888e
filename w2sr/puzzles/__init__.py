"""Generated logic puzzles: exactly one solution each, a derivation of it in words, and an answer that can be graded."""

from __future__ import annotations

from w2sr.puzzles.generate import Puzzle, generate_puzzles

__all__ = ["Puzzle", "generate_puzzles"]
