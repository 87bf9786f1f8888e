"""Experts: one tensor in memory, many in the files. The judges are transformers' own loading and peft's own merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, empty_policy, load_policy
from w2sr.policy.stored import StoredWeights, stored_form
from w2sr.sharding import load_shards
from w2sr.types import IGNORE_INDEX, Segment
from w2sr.weight_files import WeightFiles, write_weights

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 7,
}
EXPERTS = {
    "qwen3_moe": Qwen3MoeConfig(**SIZES, head_dim=8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    "gpt_oss": GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    ),
}
IN_FILES = {
    "qwen3_moe": "model.layers.1.mlp.experts.3.up_proj.weight",
    "mixtral": "model.layers.1.block_sparse_moe.experts.3.w3.weight",
    "olmoe": "model.layers.1.mlp.experts.3.up_proj.weight",
    "gpt_oss": "model.layers.1.mlp.experts.gate_up_proj",
}
LOGPROB_ATOL = 1e-5
"""Float32: the merged weight and its two parts are rounded at other places; a router adds to that."""


@pytest.fixture(params=EXPERTS)
def model(request: Any, tmp_path: Path) -> PreTrainedModel:
    """In memory, and in `tmp_path / hub` as transformers saves it."""
    torch.manual_seed(3)
    lm = AutoModelForCausalLM.from_config(EXPERTS[request.param])
    lm.save_pretrained(tmp_path / "hub")
    assert IN_FILES[request.param] in load_file(tmp_path / "hub" / "model.safetensors"), "guard: the hub's layout"
    return lm


@pytest.mark.parametrize("layout", ["hub", "memory"])
def test_weights_are_found_in_both_layouts(layout: str, model: PreTrainedModel, tmp_path: Path) -> None:
    if layout == "memory":
        (tmp_path / "memory").mkdir()
        save_file({**model.state_dict()}, tmp_path / "memory" / "model.safetensors", metadata={"format": "pt"})
    files = WeightFiles(tmp_path / layout)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    stored = StoredWeights(empty, files.names(), files.read)
    for name, weight in model.state_dict().items():
        found = stored.convert(name) if stored.sources(name) else files.read(stored.renamed[name])
        assert torch.equal(found, weight), name


def test_weights_are_written_as_transformers_writes_them(model: PreTrainedModel, tmp_path: Path) -> None:
    write_weights(tmp_path / "ours", stored_form(model, model.state_dict().items()))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "hub"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    model.config.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


def trained(folder: Path) -> Policy:
    policy = load_policy(folder)
    policy.add_lora(LoRA(rank=3, alpha=9), 7)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or parameter is policy.stop_row_E:
                parameter.normal_(0, 0.1)
    return policy.eval()


@torch.no_grad()
def logprobs(policy: Policy) -> torch.Tensor:
    ids = np.arange(64)
    return policy(pack_row([Segment("all", ids, np.append(ids[1:], IGNORE_INDEX))]))


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "olmoe"])
def test_merged_experts_are_the_policy_that_was_trained(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(EXPERTS[name]).save_pretrained(tmp_path / "hub")
    policy = trained(tmp_path / "hub")
    expected = logprobs(policy)
    before = logprobs(load_policy(tmp_path / "hub"))
    assert (expected - before).abs().max() > 0.1, "guard: the adapters change something"
    experts = [name for name, _ in policy.named_parameters() if "experts.lora_A" in name]
    assert experts, "guard: experts have adapters"
    policy.save_config(tmp_path / "whole")
    policy.lm.save_pretrained(tmp_path / "whole", state_dict=policy._merged_state())
    policy.save_config(tmp_path / "one by one")
    write_weights(tmp_path / "one by one", stored_form(policy.lm, policy.merged_weights(lambda weight: weight.clone())))
    for folder in ("whole", "one by one"):
        reloaded = load_policy(tmp_path / folder).eval()
        torch.testing.assert_close(logprobs(reloaded), expected, atol=LOGPROB_ATOL, rtol=0, msg=folder)
        tokens = torch.arange(64)[None]
        lm = AutoModelForCausalLM.from_pretrained(tmp_path / folder, attn_implementation="eager")
        with torch.no_grad():
            theirs = lm(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        torch.testing.assert_close(theirs, expected[:-1], atol=LOGPROB_ATOL, rtol=0, msg=folder)
    (adapter,) = policy._adapter or ()
    merged = dict(policy.merged_weights(lambda weight: weight.clone()))
    theirs = adapter.merge_and_unload().state_dict()
    for weight_name in (key for key in merged if "experts" in key or "gate" in key):
        torch.testing.assert_close(merged[weight_name], theirs[weight_name], atol=1e-6, rtol=0, msg=weight_name)


def test_dropout_in_the_adapters_of_experts_is_refused(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(EXPERTS["qwen3_moe"]).save_pretrained(tmp_path)
    refusal = r"no such adapters for Qwen3MoeForCausalLM: .*lora_dropout != 0.*dropout=0\.25"
    with pytest.raises(ValueError, match=refusal):
        load_policy(tmp_path).add_lora(LoRA(rank=2, dropout=0.25), 7)


def test_files_of_another_layout_are_refused_by_the_name_that_is_missing(tmp_path: Path) -> None:
    """One expert of four is not there: its fused tensor would be smaller."""
    AutoModelForCausalLM.from_config(EXPERTS["qwen3_moe"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    policy = empty_policy(tmp_path).to_empty(device="cpu")
    write_weights(tmp_path, [(name, weight) for name, weight in weights.items() if "0.mlp.experts.3.down" not in name])
    with pytest.raises(ValueError, match=r"0\.mlp\.experts\.down_proj' has the shape \(3, 32, 24\) .* \(4, 32, 24\)"):
        load_shards(policy, tmp_path)
    write_weights(tmp_path, [(name, weight) for name, weight in weights.items() if "0.mlp.experts" not in name])
    with pytest.raises(ValueError, match=r"has no weight 'model\.layers\.0\.mlp\.experts\.gate_up_proj', which"):
        load_shards(policy, tmp_path)
