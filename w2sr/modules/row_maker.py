"""Rollouts to packed rows on this rank's device, and their log-probabilities by a frozen policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import numpy as np
import torch

from w2sr.groups import Experience, deal_rows, policy_row, rollout_values
from w2sr.policy import Policy
from w2sr.ranks import on_all_ranks
from w2sr.types import PolicyRow, Rollout


@dataclass
class RowMaker:
    """Packs rollouts for the ranks of a trainer.

    Attributes:
        trainer: knows the ranks and the device.
        temperature: of sampling; log-probabilities are at the same.
        max_tokens: of a row.
        ranks: their process group.
    """

    trainer: L.Trainer
    temperature: float
    max_tokens: int
    ranks: Any

    def of_rank(self, experience: Experience, weights_R: np.ndarray, used: np.ndarray) -> list[PolicyRow]:
        """This rank's rows of the rollouts `used`; a row that weighs nothing where there are none."""
        rollouts = [experience.rollouts[member] for member in used]
        return [self._on_device(policy_row(experience, weights_R, used[places])) for places in self._dealt(rollouts)]

    @torch.no_grad()
    def logprobs(self, policy: Policy, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Log-probabilities of each rollout's tokens in nats, float32, on every rank; each rank computes its rows."""
        counts = np.array([len(rollout.completion.token_ids) for rollout in rollouts])
        nothing_R = np.zeros(len(rollouts))
        values: dict[int, np.ndarray] = {}
        was_training = policy.training
        policy.eval()
        for members in self._dealt(rollouts):
            row = self._on_device(policy_row(Experience(rollouts, nothing_R), nothing_R, members))
            logprobs_T = policy(row.packed, self.temperature)
            values.update(zip(members.tolist(), rollout_values(logprobs_T, row, counts[members]), strict=True))
        policy.train(was_training)
        everything = {place: value for part in on_all_ranks(values, self.ranks) for place, value in part.items()}
        return [everything[place] for place in range(len(rollouts))]

    def _dealt(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        return deal_rows(rollouts, self.max_tokens, self.trainer.global_rank, self.trainer.world_size)

    def _on_device(self, row: PolicyRow) -> PolicyRow:
        return cast(PolicyRow, self.trainer.strategy.batch_to_device(row, self.trainer.strategy.root_device))
