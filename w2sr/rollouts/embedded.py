"""The embedded engine: continuous batching over a slot cache, with the policy's own packed attention.

A fixed number of slots decode together; whenever enough of them have finished, waiting prompts are packed into one row,
prefilled at once and take their places; equal prompts, as those of a group, are computed once. Nothing is padded but
the cache.

Legend: B slots, T packed tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from w2sr.attention import Decode, Engine, Prefill, SlotCache, packed_layout
from w2sr.chat import Chat
from w2sr.packing import boundaries
from w2sr.policy import DTypeName, Policy, check_model, load_policy
from w2sr.rollouts.lockstep import Lockstep
from w2sr.rollouts.protocol import Generator, PolicyGenerator, RolloutEngine
from w2sr.rollouts.sampling import choose_tokens, noise_key, sampled_logprobs, uniforms
from w2sr.rollouts.stop_text import StopText
from w2sr.stops import STOP
from w2sr.types import Completion, FinishReason, PackedBatch, SampleRequest, Sampling

REFILL_FRAC = 1 / 8
"""Prompts are prefilled when this share of the slots is free: fewer calls, at the price of that many idle slots."""
VISIBLE_STEP = 32
"""The part of the cache that a decode step reads grows in steps of this many tokens."""
RUN_SLOTS = 64
"""So many slots in a row read their caches equally far. Short prompts get the first free slots: like sits by like."""


@dataclass(frozen=True)
class Embedded(RolloutEngine):
    """transformers in this process, on the trainer's device.

    Attributes:
        dtype: dtype of the weights.
        attention: packed attention engine.
        num_slots: sequences that are generated together.
        trust_remote_code: allow code from the model's repository.
        check_model: compare the model with its own forward pass on a few packed tokens.
    """

    dtype: DTypeName = "float32"
    attention: Engine | Literal["auto"] = "auto"
    num_slots: int = 128
    trust_remote_code: bool = False
    check_model: bool = True

    @contextmanager
    def open(self, model: str, chat: Chat, device: torch.device) -> Iterator[Generator]:
        policy = load_policy(
            model,
            dtype=self.dtype,
            attention=self.attention,
            trust_remote_code=self.trust_remote_code,
            checked=False,
        ).to(device)
        if self.check_model:  # where it will run, with the attention engine of that device
            check_model(policy)
        chat.check_vocabulary(policy.vocab_size)
        yield EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode, num_slots=self.num_slots)

    @contextmanager
    def follow(self, policy: Policy, chat: Chat, device: torch.device) -> Iterator[PolicyGenerator]:
        """See `RolloutEngine.follow`. It is the live policy, with its own dtype and attention: nothing is copied."""
        yield EmbeddedGenerator(
            policy, chat.stop_token_ids, chat.decode, num_slots=self.num_slots, policy_version=-1, logprobs=True
        )


class EmbeddedGenerator:
    """Samples from a policy in this process.

    Args:
        policy: the model; it is put into eval mode while it generates, and back afterwards.
        stop_token_ids: tokens that end a completion.
        decode: token ids → text, without special tokens.
        num_slots: sequences that decode together. Memory: num_slots × longest sequence × layers × key/value width.
        max_prefill_tokens: prompt tokens of one prefill call.
        policy_version: stamp of the weights, one of the things that noise depends on.
        logprobs: completions bear the log-probability of each token.
    """

    def __init__(
        self,
        policy: Policy,
        stop_token_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        *,
        num_slots: int = 128,
        max_prefill_tokens: int = 16_384,
        policy_version: int = 0,
        logprobs: bool = False,
    ) -> None:
        if not stop_token_ids:
            raise ValueError("a generator needs at least one stop token id; without one no completion would end")
        if num_slots < 1:
            raise ValueError(f"num_slots={num_slots} must be at least 1: so many sequences decode together.")
        self.policy = policy
        self.stop_token_ids = np.array(sorted(stop_token_ids))
        self.decode = decode
        self.num_slots = num_slots
        self.max_prefill_tokens = max_prefill_tokens
        self.policy_version = policy_version
        self.logprobs = logprobs

    def update(self, version: int) -> None:
        """See `PolicyGenerator.update`. The weights are there already."""
        self.policy_version = version

    def rest(self) -> None:
        """See `PolicyGenerator.rest`. The cache of keys and values is gone at the end of every stream."""

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """See `Generator.stream`. Raises ValueError where prompt and completion exceed the model's positions.

        The ranks of a sharded policy stream together, each its own requests (see `Lockstep`).
        """
        ranks = Lockstep(self.policy)
        if not requests and not ranks.together:
            return
        ranks.check_positions(requests, sampling)
        prompt = max((len(request.prompt_ids) - request.num_done for request in requests), default=0)
        capacity, num_slots = prompt + sampling.max_new_tokens, min(self.num_slots, len(requests))
        was_training = self.policy.training
        self.policy.eval()
        try:
            with STOP.at_once(False) if ranks.together else nullcontext():  # they stop together
                yield from self._run(_Slots(self, capacity, num_slots, sampling), requests, ranks)
        finally:
            self.policy.train(was_training)

    def _run(self, slots: _Slots, requests: Sequence[SampleRequest], ranks: Lockstep) -> Iterator[Completion]:
        waiting = deque(requests)
        while ranks.anybody(bool(waiting or slots.num_active)):
            num_free = slots.num_slots - slots.num_active
            if not (waiting or slots.num_active):
                ranks.accompany()
            elif waiting and num_free >= max(1, slots.num_slots * REFILL_FRAC):
                slots.prefill(self._next_prompts(waiting, num_free))
            else:
                slots.decode_step()
            yield from slots.take_finished()
            if not waiting and 2 * slots.num_active <= slots.num_slots:
                slots.compact()

    def _next_prompts(self, waiting: deque[SampleRequest], limit: int) -> list[SampleRequest]:
        """Takes prompts from the queue: at most `limit`, and at most max_prefill_tokens in all (but at least one).

        Equal prompts count once.
        """
        taken: list[SampleRequest] = []
        prompts: set[tuple[int, ...]] = set()
        num_tokens = 0
        while waiting and len(taken) < limit:
            prompt = waiting[0].prompt_ids
            num_tokens += 0 if prompt in prompts else len(prompt)
            if taken and num_tokens > self.max_prefill_tokens:
                break
            prompts.add(prompt)
            taken.append(waiting.popleft())
        return taken


class _Slots:
    """The state of all slots: their requests, their tokens so far and their cache."""

    def __init__(self, generator: EmbeddedGenerator, capacity: int, num_slots: int, sampling: Sampling) -> None:
        self.generator, self.sampling, self.policy = generator, sampling, generator.policy
        self.num_slots, self.version = num_slots, generator.policy_version
        self.requests: list[SampleRequest | None] = [None] * num_slots
        self.keys = np.zeros(num_slots, dtype=np.uint64)
        self.tokens = np.zeros((num_slots, sampling.max_new_tokens), dtype=np.int64)
        self.logprobs = np.zeros(self.tokens.shape, dtype=np.float32) if generator.logprobs else None
        self.num_new = np.zeros(num_slots, dtype=np.int64)
        self.num_done = np.zeros(num_slots, dtype=np.int64)
        self.stop_text = StopText(sampling.stop_text, generator.decode)
        self.stored = np.zeros(num_slots, dtype=np.int64)
        self.cache = SlotCache(num_slots, capacity)

    @property
    def num_active(self) -> int:
        return sum(request is not None for request in self.requests)

    @torch.no_grad()
    def prefill(self, requests: Sequence[SampleRequest]) -> None:
        """Packs the prompts into one row, equal ones once, stores their keys and values in the slots of all who asked,
        and samples each first token."""
        requests = sorted(requests, key=lambda request: len(request.prompt_ids))
        free = [slot for slot, request in enumerate(self.requests) if request is None][: len(requests)]
        for slot, request in zip(free, requests, strict=True):
            self.requests[slot] = request
            self.keys[slot] = noise_key(self.sampling.seed, request.problem_id, request.sample_index, self.version)
            self.num_new[slot], self.num_done[slot] = 0, request.num_done
            self.stored[slot] = len(request.prompt_ids)
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        prompt_of = np.array([place[request.prompt_ids] for request in requests])
        ends = np.cumsum([len(prompt) for prompt in prompts])
        cu_seqlens = torch.tensor([0, *ends], dtype=torch.int32)
        position_ids, max_seqlen = boundaries(cu_seqlens, int(ends[-1]))
        device = self.policy.device
        input_ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        position_ids = position_ids.to(device)
        batch = PackedBatch(input_ids, input_ids, position_ids, cu_seqlens.to(device), max_seqlen)
        lengths = self.stored[free]
        source = np.concatenate(
            [np.arange(end - length, end) for end, length in zip(ends[prompt_of], lengths, strict=True)]
        )
        token_source, token_slot = (torch.tensor(x, device=device) for x in (source, np.repeat(free, lengths)))
        packed = packed_layout(batch, self.policy.engine())
        layout = Prefill(packed, self.cache, token_source, token_slot, position_ids[token_source])
        last = torch.tensor(ends[prompt_of] - 1, device=device)
        self._append(np.array(free), self.policy.next_logits(input_ids, position_ids, layout, last))

    @torch.no_grad()
    def decode_step(self) -> None:
        """Feeds every slot its newest token and samples the next one. Empty slots compute, and are not read."""
        device = self.policy.device
        rows = np.arange(self.num_slots)
        newest = torch.tensor(self.tokens[rows, np.maximum(self.num_new - 1, 0)], device=device)
        position = torch.tensor(self.stored, device=device)
        layout = Decode(self.cache, position, self._visible(position))
        active = np.array([slot for slot, request in enumerate(self.requests) if request is not None])
        self.stored[active] += 1
        wanted = torch.tensor(active, device=device)
        self._append(active, self.policy.next_logits(newest, position, layout, wanted))

    def _visible(self, position: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """For each run of slots, the part of the cache that its longest sequence needs, and what each slot may read."""
        stored = np.where([request is not None for request in self.requests], self.stored, 0)
        runs = []
        for start in range(0, self.num_slots, RUN_SLOTS):
            run = slice(start, start + RUN_SLOTS)
            num_visible = -(-(int(stored[run].max()) + 1) // VISIBLE_STEP) * VISIBLE_STEP
            read = torch.arange(min(num_visible, self.cache.capacity), device=position.device)
            runs.append((read <= position[run, None])[:, None, None, :])
        return tuple(runs)

    def _append(self, slots: np.ndarray, logits: torch.Tensor) -> None:
        positions = self.num_done[slots] + self.num_new[slots]
        noise = torch.from_numpy(uniforms(self.keys[slots], positions)).to(logits.device)
        chosen = choose_tokens(logits, noise, self.sampling.temperature, self.sampling.top_p)
        self.tokens[slots, self.num_new[slots]] = chosen.cpu().numpy()
        if self.logprobs is not None:
            logprobs = sampled_logprobs(logits, chosen, self.sampling.temperature)
            self.logprobs[slots, self.num_new[slots]] = logprobs.cpu().numpy()
        self.num_new[slots] += 1

    def take_finished(self) -> Iterator[Completion]:
        """Empties the slots whose completion has ended, and yields those completions."""
        newest = self.tokens[np.arange(self.num_slots), np.maximum(self.num_new - 1, 0)]
        stopped = np.isin(newest, self.generator.stop_token_ids)
        ended = stopped | (self.num_done + self.num_new >= self.sampling.max_new_tokens)
        for slot, request in enumerate(self.requests):
            if request is None:
                continue
            met_text = not stopped[slot] and self.stop_text.is_met(self.tokens[slot, : self.num_new[slot]])
            if not (ended[slot] or met_text):
                continue
            self.requests[slot] = None
            token_ids = tuple(self.tokens[slot, : self.num_new[slot]].tolist())
            text = self.generator.decode(token_ids[:-1] if stopped[slot] else token_ids)
            finish: FinishReason = "stop" if stopped[slot] or met_text else "length"
            logprobs = None if self.logprobs is None else tuple(self.logprobs[slot, : self.num_new[slot]].tolist())
            yield Completion(
                request.problem_id,
                request.sample_index,
                token_ids,
                text,
                finish,
                logprobs=logprobs,
                policy_version=self.version,
            )

    def compact(self) -> None:
        """Drops the empty slots: once no prompt waits, they would only cost time."""
        active = [slot for slot, request in enumerate(self.requests) if request is not None]
        if not active:
            return
        with torch.no_grad():
            self.cache = self.cache.keep(torch.tensor(active, device=self.policy.device))
        self.requests = [self.requests[slot] for slot in active]
        self.keys, self.tokens = self.keys[active], self.tokens[active]
        self.logprobs = None if self.logprobs is None else self.logprobs[active]
        self.num_new, self.num_done, self.stored = self.num_new[active], self.num_done[active], self.stored[active]
        self.num_slots = len(active)
