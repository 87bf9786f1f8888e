"""What the policy writes while it is trained, as text in TensorBoard."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from w2sr.types import RolloutGroup


class RolloutText(L.Callback):
    """Shows the rollouts of one group with rewards that differ, beside its problem, every few rounds.

    Args:
        every: rounds between two texts.
        num_rollouts: how many of the group, those with the highest and the lowest rewards.
    """

    def __init__(self, every: int = 10, num_rollouts: int = 4) -> None:
        self.every, self.num_rollouts = every, num_rollouts

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        number = pl_module.policy_version - 1
        collected = pl_module.last_collected
        if number % self.every or collected is None:
            return
        rewards_NG = collected.rewards.total
        chosen = int(rewards_NG.std(axis=1).argmax())
        text = group_text(collected.groups[chosen], rewards_NG[chosen].tolist(), self.num_rollouts)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("rollouts/samples", text, number)


def group_text(group: RolloutGroup, rewards: list[float], num_rollouts: int) -> str:
    """Markdown of a group: its problem, and the rollouts with the highest and the lowest rewards."""
    ranked = sorted(zip(rewards, group.rollouts, strict=True), key=lambda pair: -pair[0])
    shown = (
        ranked if len(ranked) <= num_rollouts else [*ranked[: -(-num_rollouts // 2)], *ranked[-(num_rollouts // 2) :]]
    )
    parts = [
        f"**{group.problem.problem_id}**, reference {group.problem.reference_answer}",
        _quoted(group.problem.problem),
    ]
    for reward, rollout in shown:
        completion = rollout.completion
        length = f"{len(completion.token_ids):,} tokens, {completion.finish_reason}"
        parts.append(f"reward {reward:g}, {rollout.verdict.label}, {length}")
        parts.append(_quoted(completion.text))
    return "\n\n".join(parts)


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
