"""Ranks that share a sharded policy generate in step: every forward pass of one is a forward pass of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from w2sr.attention import packed_layout
from w2sr.packing import boundaries
from w2sr.policy import Policy
from w2sr.rollouts.protocol import check_positions
from w2sr.runs import Stopped
from w2sr.sharding import is_sharded
from w2sr.stops import SIGNALS, STOP
from w2sr.types import PackedBatch, SampleRequest, Sampling


class Lockstep:
    """What keeps ranks in step. With a policy that is whole on its rank, every call answers for this rank alone.

    Each iteration of a generator asks `anybody`; a rank that is done before the others calls `accompany` in place of a
    forward pass of its own. So ranks may have different numbers of requests, also none, but all must ask for streams
    equally often and read each to its end: a rank that leaves keeps the others waiting. What asks again by what a model
    wrote (`ToolGenerator`) does not keep that rule.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.together = policy, is_sharded(policy)

    def anybody(self, busy: bool) -> bool:
        """Whether any rank is busy. Two numbers are exchanged. Raises `Stopped` on all ranks once one is to stop."""
        if not self.together:
            return busy
        mine = -1 if STOP.asked is None else SIGNALS.index(STOP.asked)
        flags = torch.tensor([int(busy), mine], device=self.policy.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        anybody_busy, asked = flags.tolist()
        if asked >= 0:
            raise Stopped(SIGNALS[asked])
        return bool(anybody_busy)

    @torch.no_grad()
    def accompany(self) -> None:
        """A forward pass of one token that nobody reads: this rank's part in gathering the weights."""
        device = self.policy.device
        token, cu_seqlens = torch.zeros(1, dtype=torch.int64, device=device), torch.tensor([0, 1], dtype=torch.int32)
        position_ids, max_seqlen = boundaries(cu_seqlens, 1)
        batch = PackedBatch(token, token, position_ids.to(device), cu_seqlens.to(device), max_seqlen)
        self.policy.next_logits(token, batch.position_ids, packed_layout(batch, self.policy.engine()), token)

    def check_positions(self, requests: Sequence[SampleRequest], sampling: Sampling) -> None:
        """`check_positions` against the model. Where it raises on one rank, it raises on all, with the same letter."""
        refusal: ValueError | None = None
        try:
            if requests:
                check_positions(requests, sampling, self.policy.max_positions)
        except ValueError as error:
            refusal = error
        letters: list[Any] = [refusal and str(refusal)]
        if self.together:
            letters *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(letters, letters[0])
        for letter in filter(None, letters):
            raise ValueError(letter) from refusal
