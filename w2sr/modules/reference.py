"""The reference policy: what the policy was before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from w2sr.modules.fsdp2 import sharding_of
from w2sr.modules.students import frozen_policy
from w2sr.policy import Policy


class Reference:
    """A frozen policy for a KL term.

    With LoRA it is the policy itself without its adapters (`copy` None). Otherwise it is a second copy of the weights,
    sharded as the policy is; a whole one waits in the host's memory between two uses where `offload` says so.
    """

    def __init__(self, policy: Policy, copy: Policy | None, *, offload: bool = False) -> None:
        self.policy, self.copy, self.offload = policy, copy, offload

    @contextmanager
    def ready(self) -> Iterator[Policy]:
        """The reference policy, on the policy's device, for as long as the `with` block lasts."""
        if self.copy is None:
            with self.policy.adapters_off():
                yield self.policy
            return
        if not self.offload:
            yield self.copy
            return
        self.copy.to(self.policy.device)
        try:
            yield self.copy
        finally:
            self.copy.to(torch.device("cpu"))


def load_reference(module: Any, policy: Policy, name: str | None, *, offload: bool) -> Reference:
    """The reference policy of a module that trains `policy`.

    Args:
        module: its dtype and placement are the reference's.
        policy: what is trained.
        name: directory or hub name of the reference; None for the policy without its adapters.
        offload: see `Reference`.

    Raises:
        ValueError: it has another vocabulary, or is sharded and to be offloaded.
    """
    if name is None:
        return Reference(policy, None)
    if offload and sharding_of(module) is not None:
        raise ValueError(
            "model.offload_reference=true under trainer.strategy=fsdp2: the reference policy is sharded like the "
            "student already, and stays where its shards are. Leave the key out."
        )
    copy = frozen_policy(module, name, module.chat, dtype=module.dtype_name, trust_remote_code=module.trust_remote_code)
    if policy.vocab_size != copy.vocab_size:
        raise ValueError(
            f"The reference policy {name!r} has a vocabulary of {copy.vocab_size:,} tokens, the student one of "
            f"{policy.vocab_size:,}: their log-probabilities are of different tokens. Set model.reference to a model "
            "with the student's tokenizer, or leave it out for the student as it was before training."
        )
    return Reference(policy, copy, offload=offload)
