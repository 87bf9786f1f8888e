"""A policy sharded over two gloo processes against the same policy whole: weights, gradients, generation, export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sharded_ranks as ranks
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from w2sr.chat import Chat
from w2sr.modules.fsdp2 import sharding_of
from w2sr.modules.sft import SFTModule
from w2sr.policy import Policy, load_policy
from w2sr.rollouts import EmbeddedGenerator

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 240
GRADIENT_RTOL = 2e-5
"""Of a tensor's largest entry: float32 sums of two rows, added by one process in another order than by two."""
EXPORT_ATOL = 2e-5
"""Merged and separate products of about 30 terms are rounded at other places."""
BF16_ATOL = 0.15
"""bfloat16 keeps 8 bits: logits of up to 10 are rounded to 0.03, through two layers and a sum."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_world: Any) -> Path:
    """Two models, one in several files with an index, and what two processes found with them."""
    folder = tmp_path_factory.mktemp("sharded")
    chat, tied = Chat.load(tiny_world.student), load_policy(tiny_world.student).lm
    tied.save_pretrained(folder / "tied")
    config = tied.config
    config.tie_word_embeddings = False
    torch.manual_seed(3)
    # 33 KB in files of 12 KB
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "untied", max_shard_size="12KB")
    for name in ("tied", "untied"):
        chat.save(folder / name)
    command = [sys.executable, ranks.__file__]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    both = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    for process in both:
        try:
            _, errors = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            for hanging in both:
                hanging.kill()
            pytest.fail("hangs")
        assert process.returncode == 0, errors.decode()[-5000:]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def one_process(policy: Policy, chat: Chat) -> tuple[list[torch.Tensor], float, dict[str, torch.Tensor]]:
    """Log-probabilities of both ranks' rows, the norm of the gradient of their sum, and the clipped gradient."""
    rows = [ranks.row(chat, rank) for rank in (0, 1)]
    logprobs = [policy(row).detach() for row in rows]
    torch.stack([policy(row, reduction="sum") for row in rows]).sum().backward()
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    norm = torch.nn.utils.clip_grad_norm_(trained.values(), ranks.CLIP_NORM)
    return logprobs, float(norm), {name: p.grad for name, p in trained.items() if p.grad is not None}


def assert_same_gradient(theirs: dict[str, Any], norm: float, clipped: dict[str, torch.Tensor]) -> None:
    assert float(theirs["norm"]) == pytest.approx(norm, rel=GRADIENT_RTOL)
    assert theirs["clipped"].keys() == clipped.keys()
    for name, gradient in clipped.items():
        atol = GRADIENT_RTOL * float(gradient.abs().max())
        torch.testing.assert_close(theirs["clipped"][name], gradient, atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_shards_have_the_logprobs_and_the_gradient_of_the_whole(
    name: str, folder: Path, found: list[dict[str, Any]]
) -> None:
    """Tied: the embedding is read and projected with; its gradient has both parts. Every second block recomputes."""
    assert (folder / "untied" / "model.safetensors.index.json").exists(), "guard: files with an index are read"
    logprobs, norm, clipped = one_process(load_policy(folder / name), Chat.load(folder / name))
    assert norm > 2 * ranks.CLIP_NORM, "guard: the gradient is clipped"
    for rank in (0, 1):
        theirs = found[rank][f"{name} None"]
        torch.testing.assert_close(theirs["logprobs"], logprobs[rank], atol=0, rtol=0)
        assert_same_gradient(theirs, norm, clipped)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_bfloat16_arithmetic_over_float32_shards(name: str, folder: Path, found: list[dict[str, Any]]) -> None:
    logprobs, norm, _ = one_process(load_policy(folder / name), Chat.load(folder / name))
    rounded = load_policy(folder / name, dtype="bfloat16")
    for rank in (0, 1):
        theirs = found[rank][f"{name} torch.bfloat16"]
        torch.testing.assert_close(theirs["logprobs"], logprobs[rank], atol=BF16_ATOL, rtol=0)
        exact = rounded(ranks.row(Chat.load(folder / name), rank)).detach()
        torch.testing.assert_close(theirs["logprobs"], exact, atol=0, rtol=0, msg="the same rounding")
        assert float(theirs["norm"]) == pytest.approx(norm, rel=0.02)
        assert {gradient.dtype for gradient in theirs["clipped"].values()} == {torch.float32}


def test_the_probe_compares_a_sharded_policy_and_refuses_on_every_rank(found: list[dict[str, Any]]) -> None:
    """It passed in all the other tests here: `sharded_ranks.sharded` asks for it."""
    for rank in found:
        assert "packed log-probabilities differ from its own by" in rank["probe"]


def test_a_rank_holds_half(found: list[dict[str, Any]]) -> None:
    for name in ("tied", "untied"):
        held = [part[f"{name} local"] for part in found]
        assert sum(held) == found[0][f"{name} all"]
        assert max(held) < 0.51 * sum(held), "an odd vocabulary gives the first rank one row more"


@pytest.mark.parametrize("name", list(ranks.SHARES))
def test_ranks_with_unequal_requests_generate_what_one_process_does(
    name: str, folder: Path, found: list[dict[str, Any]]
) -> None:
    chat = Chat.load(folder / "untied")
    generator = EmbeddedGenerator(load_policy(folder / "untied"), chat.stop_token_ids, chat.decode, num_slots=2)
    alone = {one.problem_id: one.token_ids for one in generator.stream(ranks.requests(chat, name), ranks.SAMPLING)}
    assert [len(part[name]) for part in found] == list(ranks.SHARES[name])
    assert {**found[0][name], **found[1][name]} == alone
    lengths = {len(token_ids) for share in ranks.SHARES for token_ids in found[0][share].values()}
    assert len(lengths) > 1, "guard: completions of unequal length"


def test_a_prompt_that_one_rank_refuses_is_refused_by_all(found: list[dict[str, Any]]) -> None:
    assert found[0]["refusal"] == found[1]["refusal"]
    assert found[0]["refusal"].startswith("problem 'long' has a prompt of 300 tokens")


def test_adapters_of_a_sharded_policy(folder: Path, found: list[dict[str, Any]]) -> None:
    """The gradient, and the export: merged, gathered tensor by tensor, tied weights stored once."""
    assert found[0]["B is zero"]
    chat, policy = Chat.load(folder / "tied"), load_policy(folder / "tied")
    ranks.adapt(policy)
    policy.load_state_dict(found[0]["adapters"], strict=False)
    assert {"lm.lm_head.weight"} == policy.state_dict().keys() - found[0]["adapters"].keys(), "guard: tied"
    adapters = found[0]["adapters"].items()
    drawn = torch.cat([w.flatten() for name, w in adapters if "lora_A" in name and w.shape[1] == 32])
    assert 0.9 < float(drawn.abs().max()) * 32**0.5 <= 1, "peft's bound"
    logprobs, norm, clipped = one_process(policy, chat)
    for rank in (0, 1):
        torch.testing.assert_close(found[rank]["lora"]["logprobs"], logprobs[rank], atol=0, rtol=0)
        assert_same_gradient(found[rank]["lora"], norm, clipped)
    written, read = load_file(folder / "exported" / "model.safetensors"), load_file(folder / "tied/model.safetensors")
    assert written.keys() == read.keys()
    exported = load_policy(folder / "exported")
    assert exported.lm.get_input_embeddings().weight is exported.lm.get_output_embeddings().weight
    torch.testing.assert_close(exported(ranks.row(chat, 1)), logprobs[1], atol=EXPORT_ATOL, rtol=0)
    assert (load_policy(folder / "tied")(ranks.row(chat, 1)) - logprobs[1]).abs().max() > 0.01, "guard: adapters count"


def test_a_copy_for_an_engine_is_the_whole_policy_s(folder: Path, found: list[dict[str, Any]], tmp_path: Path) -> None:
    """Untied, with adapters merged, on each rank that writes, and gone afterwards."""
    policy = load_policy(folder / "tied")
    ranks.adapt(policy)
    policy.load_state_dict(found[0]["adapters"], strict=False)
    policy.save_untied(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" in expected, "guard: untied"
    copies = [found[0]["copy by 1"], found[0]["copy by 2"], found[1]["copy by 2"]]
    for copy in copies:
        torch.testing.assert_close(copy, expected, atol=EXPORT_ATOL, rtol=0)
    assert found[1]["copy by 1"] == {}
    assert sorted(folder.glob("copied*/*")) == [folder / "copied0" / "config.json", folder / "copied1" / "config.json"]


def test_a_full_disk_of_one_rank_is_said_by_both(found: list[dict[str, Any]]) -> None:
    """The other one gathers weights meanwhile, and does not wait for ever."""
    assert found[0]["full disk"] == "[Errno 28] No space left on device"
    assert found[1]["full disk"] == "Rank 0 ended with OSError: [Errno 28] No space left on device"


def test_a_strategy_that_shards_otherwise_is_refused(tiny_world: Any) -> None:
    import lightning as L
    from lightning.pytorch.strategies import ModelParallelStrategy

    module = SFTModule(str(tiny_world.student))
    assert sharding_of(module) is None
    module._trainer = L.Trainer(accelerator="cpu", strategy=ModelParallelStrategy(), logger=False)
    with pytest.raises(ValueError, match=r"ModelParallelStrategy.*trainer\.strategy=fsdp2"):
        module.configure_model()
