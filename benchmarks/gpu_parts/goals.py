"""What the numbers are held against, and whether they reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gpu_parts.bench import Row
from w2sr.scaling import GIB

PUBLISHED = 25_486
"""Tokens a second of prime-rl, SFT of Qwen3-0.6B on one H100, rows of 16,384, every block computed again."""
FULL = "Qwen3-0.6B, 16,384, full rows"


class Goal(NamedTuple):
    """A column of one line of a part, and the value that it must have at least, or at most.

    Of lines that differ in options alone (compile, fsdp2) the best counts. `beside` is a line of the part `peers`: the
    value is then the quotient of the two.
    """

    name: str
    part: str
    what: str
    column: str
    bound: float
    at_most: bool = False
    beside: str | None = None

    def judged(self, results: Mapping[str, Sequence[Row]]) -> Row:
        """The goal with what was found: reached, NOT reached, or not measured."""
        found, line = _best(results, self.part, self.what, self.column, least=self.at_most)
        if self.beside is not None:
            peer, _ = _best(results, "peers", self.beside, self.column)
            found = None if found is None or peer is None else found / peer
        if found is None:
            return {"goal": self.name, "bound": self.bound, "found": "", "by": "", "result": "not measured"}
        reached = found <= self.bound if self.at_most else found >= self.bound
        return {
            "goal": self.name,
            "bound": self.bound,
            "found": found,
            "by": line,
            "result": "reached" if reached else "NOT reached",
        }


def _best(
    results: Mapping[str, Sequence[Row]], part: str, what: str, column: str, least: bool = False
) -> tuple[float | None, str]:
    """The best value of a line and its options, and the line."""
    lines = [row for row in results.get(part, []) if column in row and f"{row['what']}, ".startswith(f"{what}, ")]
    if not lines:
        return None, ""
    row = (min if least else max)(lines, key=lambda row: row[column])
    return row[column], row["what"]


GOALS = (
    Goal("one H200: MFU of the 7B shape", "sft-7b", "Qwen2.5-7B, 8,192, real lengths", "MFU of measured peak", 0.60),
    Goal(
        f"one H200: 1.3 × {PUBLISHED:,} tokens/s, published for an H100", "sft-0.6b", FULL, "tokens/s", 1.3 * PUBLISHED
    ),
    Goal("tokens/s beside TRL", "sft-0.6b", FULL, "tokens/s", 1.3, beside=f"TRL: {FULL}"),
    Goal("tokens/s beside plain transformers", "sft-0.6b", FULL, "tokens/s", 1.0, beside=f"transformers: {FULL}"),
    Goal("rows of 65,536 in 80 GB", "sft-0.6b", "Qwen3-0.6B, 65,536, full rows", "peak GiB", 80e9 / GIB, at_most=True),
)


def judged(results: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Every goal, with what was found."""
    return [goal.judged(results) for goal in GOALS]
