"""The embedded engine against a loop that feeds the whole sequence again for every token."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from transformers import Qwen2Config

from w2sr.attention import Layout, Prefill, packed_layout
from w2sr.chat import Chat
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.rollouts import Embedded, EmbeddedGenerator, PolicyGenerator
from w2sr.rollouts.sampling import choose_tokens, noise_key, uniforms
from w2sr.types import IGNORE_INDEX, Completion, SampleRequest, Sampling, Segment

VOCAB, STOP = 23, 7


def sharp_policy() -> Policy:
    """Random weights, scaled up so that distributions are uneven and a stop token comes at differing times."""
    torch.manual_seed(11)
    policy = new_policy(
        Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            max_position_embeddings=128,
        )
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return policy


def requests(count: int = 11) -> list[SampleRequest]:
    rng = np.random.default_rng(2)
    return [
        SampleRequest(f"p{i}", i % 3, tuple(rng.integers(0, VOCAB, rng.integers(1, 14)).tolist())) for i in range(count)
    ]


def slow(policy: Policy, request: SampleRequest, sampling: Sampling) -> tuple[int, ...]:
    """The obvious way: no cache, no batch, the noise of (seed, problem, sample, position)."""
    ids = list(request.prompt_ids)
    new: list[int] = []
    key = np.array([noise_key(sampling.seed, request.problem_id, request.sample_index)], dtype=np.uint64)
    while len(new) < sampling.max_new_tokens and (not new or new[-1] != STOP):
        row = pack_row([Segment("", np.array(ids + new), np.full(len(ids + new), IGNORE_INDEX))])
        with torch.no_grad():
            hidden = policy.hidden(row.input_ids, row.position_ids, packed_layout(row, "sdpa"))
            logits = policy.logits(hidden[-1:])
        noise = torch.from_numpy(uniforms(key, np.array([len(new)])))
        new.append(int(choose_tokens(logits, noise, sampling.temperature, sampling.top_p)))
    return tuple(new)


def run(policy: Policy, asked: list[SampleRequest], sampling: Sampling, num_slots: int) -> dict[str, Completion]:
    generator = EmbeddedGenerator(policy, [STOP], lambda ids: " ".join(map(str, ids)), num_slots=num_slots)
    return {completion.problem_id: completion for completion in generator.stream(asked, sampling)}


@pytest.mark.parametrize("num_slots", [1, 3, 64])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.3, 1.0), (0.9, 0.8)])
def test_every_completion_equals_the_slow_loop(temperature: float, top_p: float, num_slots: int) -> None:
    policy, asked = sharp_policy(), requests()
    sampling = Sampling(temperature, top_p, max_new_tokens=17, seed=4)
    got = run(policy, asked, sampling, num_slots)
    assert sorted(got) == sorted(request.problem_id for request in asked)
    for request in asked:
        assert got[request.problem_id].token_ids == slow(policy, request, sampling), request.problem_id
    lengths = {len(completion.token_ids) for completion in got.values()}
    assert len(lengths) > 1, "completions must end at different times, or refilling is not tested"


@pytest.mark.parametrize("num_slots", [3, 7, 64])
def test_equal_prompts_are_computed_once_and_sampled_apart(num_slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of four, also where the slots part a group; two prompts are of equal length."""
    policy, sampling = sharp_policy(), Sampling(1.3, max_new_tokens=11, seed=4)
    prompts = [(3, 1, 4, 1, 5), (9, 2), (6, 5, 3, 5, 8), (9,)]
    asked = [SampleRequest(f"p{i}", sample, prompt) for i, prompt in enumerate(prompts) for sample in range(4)]
    prefilled: list[list[int]] = []
    hidden = policy.hidden

    def watched(input_ids: torch.Tensor, position_ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        if isinstance(layout, Prefill):
            prefilled.append(input_ids.tolist())
        return hidden(input_ids, position_ids, layout)

    monkeypatch.setattr(policy, "hidden", watched)
    generator = EmbeddedGenerator(policy, [STOP], str, num_slots=num_slots)
    got = {(done.problem_id, done.sample_index): done.token_ids for done in generator.stream(asked, sampling)}
    monkeypatch.undo()
    assert got == {(one.problem_id, one.sample_index): slow(policy, one, sampling) for one in asked}
    assert len(set(got.values())) > len(prompts), "samples of a group must differ"
    if num_slots == 64:
        assert prefilled == [[9, 9, 2, 3, 1, 4, 1, 5, 6, 5, 3, 5, 8]]
    elif num_slots == 3:
        assert prefilled[0] == [3, 1, 4, 1, 5] and sum(map(len, prefilled)) < sum(len(one.prompt_ids) for one in asked)


def test_prefill_counts_equal_prompts_once() -> None:
    """Of prompts of 5, 5, 5 (equal) and 5 tokens a limit of 9 takes three."""
    generator = EmbeddedGenerator(sharp_policy(), [STOP], str, max_prefill_tokens=9)
    waiting = deque(SampleRequest("a", sample, (1, 2, 3, 4, 5)) for sample in range(3))
    waiting.append(SampleRequest("b", 0, (5, 4, 3, 2, 1)))
    assert len(generator._next_prompts(waiting, 10)) == 3 and len(waiting) == 1


def test_finish_reason_and_text() -> None:
    policy, asked = sharp_policy(), requests()
    got = run(policy, asked, Sampling(1.3, 1.0, max_new_tokens=9, seed=4), 4)
    assert {completion.finish_reason for completion in got.values()} == {"stop", "length"}
    for completion in got.values():
        stopped = completion.token_ids[-1] == STOP
        assert (completion.finish_reason == "stop") == stopped
        written = completion.token_ids[:-1] if stopped else completion.token_ids
        assert completion.text == " ".join(map(str, written))


def test_noise_depends_on_each_of_its_parts() -> None:
    base = noise_key(1, "a", 2, 3)
    assert (
        len({base, noise_key(2, "a", 2, 3), noise_key(1, "b", 2, 3), noise_key(1, "a", 3, 3), noise_key(1, "a", 2, 4)})
        == 5
    )
    positions = uniforms(np.full(1000, base, dtype=np.uint64), np.arange(1000))
    assert len(set(positions.tolist())) == 1000
    # the mean of 1000 uniforms has standard deviation 0.0091
    assert abs(positions.mean() - 0.5) < 0.04


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(40_000, 4)
    noise = torch.from_numpy(uniforms(np.arange(40_000, dtype=np.uint64), np.zeros(40_000, dtype=np.int64)))
    share = choose_tokens(logits, noise, 2.0, 1.0).bincount(minlength=4) / 40_000
    # exp(0, .5, 1, 1.5) = 1, 1.649, 2.718, 4.482, sum 9.849; five standard deviations are 0.0125
    torch.testing.assert_close(share, torch.tensor([0.1015, 0.1674, 0.2760, 0.4551]), atol=0.0125, rtol=0)


def test_top_p_keeps_the_token_that_crosses_the_line_and_no_more() -> None:
    # probabilities .1015 .1674 .2760 .4551: the two likeliest reach .7311
    logits = torch.tensor([[0.0, 0.5, 1.0, 1.5]]).expand(5000, 4)
    noise = torch.from_numpy(np.linspace(0, 1, 5000, endpoint=False))
    assert set(choose_tokens(logits, noise, 1.0, 0.46).tolist()) == {2, 3}
    assert set(choose_tokens(logits, noise, 1.0, 0.45).tolist()) == {3}
    assert set(choose_tokens(logits, noise, 1.0, 0.74).tolist()) == {1, 2, 3}


def test_a_prompt_beyond_the_model_is_named() -> None:
    asked = [SampleRequest("long/9", 0, tuple([1] * 120))]
    with pytest.raises(ValueError, match=r"problem 'long/9' has a prompt of 120 tokens; with max_new_tokens=20"):
        run(sharp_policy(), asked, Sampling(max_new_tokens=20), 2)


def test_no_requests_give_nothing() -> None:
    assert run(sharp_policy(), [], Sampling(), 2) == {}


LOGPROB_TOLERANCE = 2e-5
"""Float32 sums over 23 tokens of logits near 10, once with a cache of keys and values and once without."""


def following(policy: Policy, num_slots: int = 4) -> PolicyGenerator:
    chat = SimpleNamespace(stop_token_ids=(STOP,), decode=str)
    generator = Embedded(num_slots=num_slots).follow(policy, cast(Chat, chat), torch.device("cpu")).__enter__()
    generator.update(0)
    return generator


def trainer_logprobs(policy: Policy, request: SampleRequest, completion: Completion, temperature: float) -> np.ndarray:
    """The completion's log-probabilities as training sees them: one packed row, no cache."""
    ids = np.array([*request.prompt_ids, *completion.token_ids])
    labels = np.full(len(ids), IGNORE_INDEX)
    labels[len(request.prompt_ids) - 1 : -1] = completion.token_ids
    with torch.no_grad():
        logprobs = policy(pack_row([Segment("", ids, labels)]), temperature)
    return logprobs[torch.from_numpy(labels != IGNORE_INDEX)].numpy()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, max_new_tokens=9, seed=3),
        Sampling(temperature=1.3, top_p=0.6, max_new_tokens=9, seed=3),
        Sampling(temperature=0.0, max_new_tokens=9),
    ],
)
def test_the_sampler_s_logprobs_are_the_trainer_s(sampling: Sampling) -> None:
    """Also with slots that are refilled and compacted; `top_p` cuts nothing from them; greedy is at temperature 1."""
    policy = sharp_policy()
    asked = {(r.problem_id, r.sample_index): r for r in requests()}
    completions = list(following(policy).stream(list(asked.values()), sampling))
    assert len({len(c.token_ids) for c in completions}) > 1, "some must stop early"
    for completion in completions:
        expected = trainer_logprobs(
            policy, asked[completion.problem_id, completion.sample_index], completion, sampling.temperature or 1.0
        )
        np.testing.assert_allclose(completion.logprobs, expected, atol=LOGPROB_TOLERANCE)
    assert min(min(c.logprobs or ()) for c in completions) < -0.5, "some tokens must be unlikely"


def test_who_did_not_ask_for_logprobs_gets_none_and_the_same_completions() -> None:
    policy, sampling = sharp_policy(), Sampling(temperature=0.7, max_new_tokens=9, seed=3)
    plain = EmbeddedGenerator(policy, [STOP], str, num_slots=4).stream(requests(), sampling)
    asked = following(policy).stream(requests(), sampling)
    pairs = list(zip(plain, asked, strict=True))
    assert len(pairs) == len(requests()) > 3, "guard"
    for without, having in pairs:
        assert without.logprobs is None and having == replace(without, logprobs=having.logprobs)


def test_completions_bear_the_version_of_the_weights_and_its_noise() -> None:
    """After an update the live policy's weights are sampled from, and noise is that of the new version."""
    policy, sampling = sharp_policy(), Sampling(temperature=1.0, max_new_tokens=9, seed=3)
    generator = following(policy)
    first = list(generator.stream(requests(), sampling))
    generator.update(5)
    second = list(generator.stream(requests(), sampling))
    assert {c.policy_version for c in first} == {0} and {c.policy_version for c in second} == {5}
    assert {c.token_ids for c in first} != {c.token_ids for c in second}
    expected = EmbeddedGenerator(policy, [STOP], str, num_slots=4, policy_version=5, logprobs=True)
    assert second == list(expected.stream(requests(), sampling))
