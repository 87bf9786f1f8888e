"""A student with merged adapters against the policy that was trained, on rows that hold every special token.

The judges are transformers' own forward pass of the written directory, and peft's own merge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GemmaConfig, GPT2Config, LlamaConfig

from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, load_policy
from w2sr.types import IGNORE_INDEX, Segment
from w2sr.weight_files import write_weights

STOP = 7
VOCAB = 64
LOGPROB_ATOL = 5e-6
"""Float32: the merged weight and the two parts are rounded at other places. A change of the stop token's row on the
wrong side of Gemma's scale of √32 moves log-probabilities by more than 0.1."""
MERGE_ATOL = 1e-6
"""The same product of two matrices, added by peft and by us."""
GRADIENT_RTOL = 2e-5
"""Of the largest entry: float32 sums over 70 tokens in another order."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": STOP,  # as where a tokenizer pads with its stop token
    "bos_token_id": 1,
    "eos_token_id": STOP,
}
MODELS = {
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, apart": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "gemma": GemmaConfig(**SIZES, tie_word_embeddings=True),
    "gemma, apart": GemmaConfig(**SIZES, tie_word_embeddings=False),
    "gpt 2, whose layers have transposed weights": GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=STOP,
    ),
    "gemma 3": Gemma3TextConfig(**SIZES, tie_word_embeddings=True, layer_types=["full_attention"] * 2),
}


def trained(folder: Path, config: Any) -> Policy:
    """A policy whose adapters and change of the stop token's row are far from zero."""
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    policy = load_policy(folder)
    policy.add_lora(LoRA(rank=3, alpha=9), STOP)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or parameter is policy.stop_row_E:
                parameter.normal_(0, 0.1)
    return policy.eval()


def sequence() -> np.ndarray:
    """Every token of the vocabulary, the stop token also at the beginning, doubled, and at the end."""
    ids = np.random.default_rng(5).permutation(VOCAB)
    return np.array([STOP, *ids, STOP, STOP, VOCAB - 1, STOP])


def logprobs_of_policy(policy: Policy, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return policy(pack_row([Segment("all", ids, np.append(ids[1:], IGNORE_INDEX))]))[:-1]


def logprobs_of_transformers(folder: Path, ids: np.ndarray) -> torch.Tensor:
    lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        logits = lm(tokens[None]).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_the_student_is_the_policy_that_was_trained(name: str, tmp_path: Path) -> None:
    """As `fit` writes it, and as `export` and sharded ranks do, a weight at a time."""
    policy, ids = trained(tmp_path / "base", MODELS[name]), sequence()
    expected = logprobs_of_policy(policy, ids)
    before = logprobs_of_transformers(tmp_path / "base", ids)
    assert (expected - before).abs().max() > 0.1, "guard: the adapters change something"
    policy.save_config(tmp_path / "whole")
    policy.lm.save_pretrained(tmp_path / "whole", state_dict=policy._merged_state())
    policy.save_config(tmp_path / "one by one")
    write_weights(tmp_path / "one by one", policy.merged_weights(lambda weight: weight))
    for folder in ("whole", "one by one"):
        found = logprobs_of_transformers(tmp_path / folder, ids)
        torch.testing.assert_close(found, expected, atol=LOGPROB_ATOL, rtol=0, msg=folder)
    torch.testing.assert_close(
        logprobs_of_policy(policy, ids), expected, atol=0, rtol=0, msg="the policy stays as it is"
    )


def test_the_merged_weights_are_those_of_peft(tmp_path: Path) -> None:
    policy = trained(tmp_path, MODELS["llama, tied"])
    merged = dict(policy.merged_weights(lambda weight: weight))
    (adapter,) = policy._adapter or ()
    assert policy.stop_row_E is not None
    row_E = policy.lm.get_input_embeddings().weight[STOP] + policy.stop_row_E
    theirs = adapter.merge_and_unload().state_dict()
    assert merged.keys() == theirs.keys() - {"lm_head.weight"}, "a tied weight is written once"
    for name, weight in merged.items():
        if name == "model.embed_tokens.weight":
            torch.testing.assert_close(weight[STOP], row_E, atol=0, rtol=0)
            weight = weight.clone()
            weight[STOP] = theirs[name][STOP]
        torch.testing.assert_close(weight, theirs[name], atol=MERGE_ATOL, rtol=0, msg=name)


@pytest.mark.parametrize("name", ["llama, tied", "gemma", "gemma 3"])
def test_the_stop_row_has_the_gradient_of_both_of_its_places(name: str, tmp_path: Path) -> None:
    """That of the row in the model's own table, whose one weight is read and projected with. The judge: transformers'
    eager forward pass, and its embedding's row freed of the rule that padding has no gradient."""
    policy, ids = trained(tmp_path, MODELS[name]), sequence()
    policy(pack_row([Segment("all", ids, np.append(ids[1:], IGNORE_INDEX))]), reduction="sum").backward()
    assert policy.stop_row_E is not None
    policy.save_config(tmp_path / "out")
    policy.lm.save_pretrained(tmp_path / "out", state_dict=policy._merged_state())
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager", dtype=torch.float32)
    lm.get_input_embeddings().padding_idx = None
    tokens = torch.from_numpy(ids)
    lm(tokens[None]).logits[0, :-1].log_softmax(-1).gather(-1, tokens[1:, None]).sum().backward()
    expected = lm.get_input_embeddings().weight.grad[STOP]
    atol = GRADIENT_RTOL * float(expected.abs().max())
    torch.testing.assert_close(policy.stop_row_E.grad, expected, atol=atol, rtol=0)
