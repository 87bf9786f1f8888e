"""What a student's model card says of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def sft_card(selection: Mapping[str, Any]) -> tuple[str, str]:
    """Title and text for a student of traces, from the run's `selection.json`."""
    gates = "\n".join(
        f"| {row['gate']} | {row['num_in']:,} | {row['num_removed']:,} | {row['num_out']:,} |"
        for row in selection["table"]["gates"]
    )
    title = f"Student of {', '.join(selection['teachers'])}"
    return (
        title,
        f"""Fine-tuned on chain-of-thought traces of a weaker teacher (arXiv 2505.20072).

- Teacher: {", ".join(f"`{teacher}`" for teacher in selection["teachers"])}
- Filter: `keep: {selection["keep"]}`
- Traces: {selection["num_train_traces"]:,}, with {selection["num_train_tokens"]:,} tokens

| gate | in | removed | out |
|---|---:|---:|---:|
{gates}

The student inherits the terms of its base model and of the teacher's traces.""",
    )


def grpo_card(
    *, sources: Sequence[str], num_problems: int, rewards: Mapping[str, float], loss: str, group_size: int, rounds: int
) -> tuple[str, str]:
    """Title and text for a student of its own rewards. `rewards`: name → weight."""
    terms = ", ".join(f"{name} (weight {weight:g})" for name, weight in rewards.items())
    return (
        f"Trained by {loss} on {', '.join(sources)}",
        f"""Trained by reinforcement learning with verifiable rewards.

- Problems: {num_problems:,} of {", ".join(sources)}
- Rewards: {terms}
- Loss: {loss}, {group_size} rollouts a problem
- Rounds: {rounds:,}

The student inherits the terms of its base model.""",
    )
