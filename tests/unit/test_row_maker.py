"""Log-probabilities of rollouts by a frozen policy, against transformers' own forward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_groups import rollout
from transformers import AutoModelForCausalLM

from w2sr.chat import Chat
from w2sr.modules.row_maker import RowMaker
from w2sr.policy import LoRA, load_policy

ATOL = 1e-5
"""Log-probabilities of down to -10, by packed attention and by transformers' own."""

CPU: Any = SimpleNamespace(
    global_rank=0,
    world_size=1,
    strategy=SimpleNamespace(batch_to_device=lambda row, device: row, root_device=torch.device("cpu")),
)
ROLLOUTS = [
    rollout("a", (5, 9, 30), (41, 7)),
    rollout("a", (5, 9, 30), (8, 8, 60, 3)),
    rollout("b", (12,), (250, 31, 2)),
]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("max_tokens", [8, 40])
def test_every_rollout_has_the_logprobs_of_its_own_forward_pass(
    temperature: float, max_tokens: int, tiny_world: Any
) -> None:
    found = RowMaker(CPU, temperature, max_tokens, None).logprobs(load_policy(tiny_world.student), ROLLOUTS)
    lm = AutoModelForCausalLM.from_pretrained(tiny_world.student, attn_implementation="eager")
    for one, logprobs in zip(ROLLOUTS, found, strict=True):
        tokens, begin = one.completion.token_ids, len(one.prompt_ids) - 1
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([[*one.prompt_ids, *tokens]])).logits[0, begin:-1] / temperature
        expected = [float(row[token]) for row, token in zip(logits.log_softmax(-1), tokens, strict=True)]
        assert logprobs.tolist() == pytest.approx(expected, abs=ATOL)


def test_dropout_is_off_while_a_policy_is_scored_and_on_again_afterwards(tiny_world: Any) -> None:
    policy = load_policy(tiny_world.student)
    policy.add_lora(LoRA(rank=4, alpha=64, dropout=0.5), Chat.load(tiny_world.student).stop_token_ids[0])
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    maker = RowMaker(CPU, 1.0, 40, None)
    policy.train()
    scored = maker.logprobs(policy, ROLLOUTS)
    assert policy.training
    policy.eval()
    expected = maker.logprobs(policy, ROLLOUTS)
    assert not policy.training, "a policy that is evaluated stays so"
    for mine, wanted in zip(scored, expected, strict=True):
        assert mine.tolist() == wanted.tolist()
    policy.train()
    row = maker.of_rank(experience(), torch.ones(3).numpy(), torch.arange(3).numpy())[0].packed
    assert (policy(row) - policy(row)).abs().max() > 0.1, "guard: dropout makes a difference"


def experience() -> Any:
    from w2sr.groups import Experience

    return Experience(ROLLOUTS, torch.zeros(3).numpy())
