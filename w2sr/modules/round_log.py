"""What is known of every round: a line of JSON each, and a warning where rounds teach nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from w2sr.types import RolloutGroup

ROUNDS_FILE = "rounds.jsonl"


class RoundLog:
    """`rounds.jsonl` in the run directory: every watched value of every round, by its number.

    Args:
        folder: the run directory.
        begin: the first round to come. Lines of it and of later ones, which a stopped run left, are dropped.
        writes: False on all ranks but one.
    """

    def __init__(self, folder: Path, begin: int, writes: bool) -> None:
        self.path, self.writes = folder / ROUNDS_FILE, writes
        if writes and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines(keepends=True) if _number(line) in range(begin)]
            temporary = self.path.with_name(f".{ROUNDS_FILE}.tmp")
            temporary.write_text("".join(kept))
            temporary.replace(self.path)

    def add(self, number: int, metrics: Mapping[str, float]) -> None:
        """Appends round `number`. Values that are not finite become null."""
        if not self.writes:
            return
        line = {"round": number, **{k: v if math.isfinite(v) else None for k, v in metrics.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def summary(self) -> dict[str, Any]:
        """The number of rounds, the last one's values, and the seconds of each phase over all rounds."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        phases = {name for line in lines for name in line if name.startswith("seconds/")}
        seconds = {name: sum(line.get(name, 0.0) for line in lines) for name in sorted(phases)}
        return {"rounds": len(lines), "last_round": lines[-1] if lines else None, **seconds}


def _number(line: str) -> int:
    """The round of a line; -1 of one that a kill cut off."""
    try:
        return int(json.loads(line)["round"])
    except ValueError:
        return -1


def add_sums(total: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    """Adds `part` to `total`, name by name."""
    for name, value in part.items():
        total[name] = total[name] + value if name in total else value


def policy_metrics(sums: Mapping[str, float], num_steps: int) -> dict[str, float]:
    """Loss and gradient norm of a mean optimizer step, and means over the tokens that were trained on.

    Rollouts that are left out of a step (see `step_weights`) are not among these tokens. NaN where there were none.

    Args:
        sums: of `policy_loss`, with `loss` and `grad_norm`, over all rows, ranks and optimizer steps of a round.
        num_steps: optimizer steps of the round.
    """
    of_tokens = {name: value for name, value in sums.items() if name not in ("loss", "grad_norm", "tokens")}
    return {
        "train/loss": sums["loss"] / num_steps,
        "train/grad_norm": sums["grad_norm"] / num_steps,
        "train/loss_tokens": sums["tokens"],
        **{
            f"policy/{name}": value / sums["tokens"] if sums["tokens"] else math.nan
            for name, value in of_tokens.items()
        },
    }


class DeadRounds:
    """Warns once when `limit` rounds in a row had no group that teaches, and names the cause."""

    def __init__(self, limit: int) -> None:
        self.limit, self.num_in_a_row = limit, 0

    def add(self, groups: Sequence[RolloutGroup], dead_frac: float) -> None:
        """Counts a round, of which `dead_frac` of the groups have equal rewards."""
        self.num_in_a_row = self.num_in_a_row + 1 if dead_frac == 1 else 0
        if self.num_in_a_row != self.limit:
            return
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        labels = [rollout.verdict.label for rollout in rollouts]
        share = {label: labels.count(label) / len(labels) for label in ("correct", "no_answer", "timeout")}
        cut_off = sum(rollout.completion.finish_reason == "length" for rollout in rollouts) / len(rollouts)
        rank_zero_warn(
            f"In {self.limit} rounds in a row all rewards of every group were equal, so there is no gradient. "
            f"Of the last {len(rollouts):,} rollouts {share['correct']:.1%} are right, {share['no_answer']:.1%} have "
            f"no answer that can be extracted, {cut_off:.1%} were cut off at the limit. {_cause(share, cut_off)}"
        )


def _cause(share: Mapping[str, float], cut_off: float) -> str:
    if share["correct"] == 1:
        return "The problems are too easy: take harder ones."
    if cut_off > 0.5:
        return "Completions do not end: raise model.rollouts.max_new_tokens, or check model.stop_token."
    if share["no_answer"] > 0.5:
        return "Answers are not found: check data.problems.*.rules and model.template."
    if share["correct"] == 0:
        return (
            "The problems are too hard, or the verifier never agrees: take easier ones, or start from a W2SR student."
        )
    return "Rollouts of a problem do not differ: raise model.rollouts.temperature or model.group_size."
