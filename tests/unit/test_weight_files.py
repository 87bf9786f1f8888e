"""Safetensors by name and by rows, one file or many, and what a sharded policy refuses of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from w2sr.policy import empty_policy, load_policy
from w2sr.sharding import compute_buffers, load_shards
from w2sr.weight_files import WeightFiles, write_weights

CPU = torch.device("cpu")


def test_rows_of_a_tensor_in_one_file_or_in_many(tmp_path: Path) -> None:
    weights = {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(5), "c": torch.ones(2, dtype=torch.bfloat16)}
    for folder, limit in ((tmp_path / "one", 10**9), (tmp_path / "many", 50)):
        write_weights(folder, weights.items(), limit)
        files = WeightFiles(folder)
        assert files.shape("a") == (4, 3) and "a" in files and "x" not in files
        assert files.read("a", slice(1, 3)).tolist() == [[3, 4, 5], [6, 7, 8]]
        assert files.read("a", slice(4, 4)).shape == (0, 3), "a late rank of many has no row"
        assert all(torch.equal(files.read(name), weight) for name, weight in weights.items())
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    # 48 bytes, then 40 and 4
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    assert index == {"metadata": {"total_size": 92}, "weight_map": {"a": first, "b": second, "c": second}}


def test_weights_written_before_do_not_stay(tmp_path: Path) -> None:
    for limit in (4, 10**9):
        write_weights(tmp_path, [(name, torch.ones(3)) for name in "ab"], limit)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_directory_without_whole_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Weights are read from safetensors only"):
        WeightFiles(tmp_path)
    write_weights(tmp_path, [(name, torch.ones(3)) for name in "ab"], 4)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    files = WeightFiles(tmp_path)
    assert files.read("a").tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"names the file model-00002-of-00002\.safetensors, which is absent"):
        files.read("b")


def test_an_empty_policy_that_is_filled_is_the_loaded_one(tiny_world: Any) -> None:
    filled, loaded = empty_policy(tiny_world.student), load_policy(tiny_world.student)
    assert {parameter.device.type for parameter in filled.parameters()} == {"meta"}
    filled.to_empty(device="cpu").lm.tie_weights()  # torch unties what it moves; shards stay tied
    compute_buffers(filled, CPU)
    load_shards(filled, tiny_world.student)
    assert filled.lm.get_input_embeddings().weight is filled.lm.get_output_embeddings().weight
    both = [{**dict(policy.named_parameters()), **dict(policy.named_buffers())} for policy in (filled, loaded)]
    assert "lm.model.rotary_emb.inv_freq" in both[0], "guard: no file holds it"
    torch.testing.assert_close(*both, atol=0, rtol=0)


def test_a_buffer_that_nobody_computes_is_refused(tiny_world: Any) -> None:
    policy = empty_policy(tiny_world.student)
    policy.lm.model.layers[1].mlp.register_buffer("mystery", torch.ones(3, device="meta"), persistent=False)
    policy.to_empty(device="cpu")
    with pytest.raises(ValueError, match="'mystery' of its Qwen3MLP in no file"):
        compute_buffers(policy, CPU)


def test_files_that_do_not_fit_the_model_are_refused(tiny_world: Any, tmp_path: Path) -> None:
    lm = load_policy(tiny_world.student).lm
    lm.save_pretrained(tmp_path)
    policy = empty_policy(tmp_path).to_empty(device="cpu")
    policy.lm.tie_weights()
    weights = {name: weight for name, weight in lm.state_dict().items() if name != "lm_head.weight"}
    write_weights(tmp_path, [(name, weight[:-1] if "norm" in name else weight) for name, weight in weights.items()])
    with pytest.raises(ValueError, match=r"q_norm\.weight' has the shape \(7,\) .* asks for \(8,\)"):
        load_shards(policy, tmp_path)
    write_weights(tmp_path, [(f"other.{name}", weight) for name, weight in weights.items()])
    with pytest.raises(ValueError, match=r"has no weight 'model.embed_tokens.weight', which Qwen3ForCausalLM needs"):
        load_shards(policy, tmp_path)
