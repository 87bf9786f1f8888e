"""Loading, saving, adapters, dtypes and gradient checkpointing of the policy."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from w2sr.attention import packed_layout
from w2sr.chat import Chat
from w2sr.modules.sft import SFTModule
from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, Recompute, load_policy, new_policy
from w2sr.types import PackedBatch

BF16_ATOL = 0.15
"""bfloat16 keeps 8 bits: logits of up to 10 are rounded to 0.03, through two layers and a sum."""


@pytest.fixture(scope="module")
def chat(tiny_world: Any) -> Chat:
    return Chat.load(tiny_world.student)


@pytest.fixture(scope="module")
def row(chat: Chat) -> PackedBatch:
    texts = [("How many has Tom?", "Tom has 12. So Tom has \\boxed{12}."), ("Today Zoe has 7 eggs.", "Zoe has 7.")]
    return pack_row([chat.segment(problem, completion, problem) for problem, completion in texts])


def trained_a_little(policy: Policy, row: PackedBatch) -> Policy:
    """Some steps, so that adapters are no longer zero."""
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        (-policy(row).mean()).backward()
        optimizer.step()
    return policy


def gradients(policy: Policy, row: PackedBatch) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    (-policy(row).sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.requires_grad}


def state(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def assert_as_before(
    policy: Policy, row: PackedBatch, before: dict[str, torch.Tensor], learned: dict[str, torch.Tensor]
) -> None:
    """The weights are what they were, merged and unmerged again at most, and the same weights learn the same.

    Adapters that stay merged would give equal log-probabilities, and learn nothing.
    """
    for name, weight in state(policy).items():
        torch.testing.assert_close(weight, before[name], atol=1e-6, rtol=0, msg=name)
    now = gradients(policy, row)
    assert now.keys() == learned.keys() and all(gradient.any() for gradient in learned.values())
    for name, gradient in now.items():
        torch.testing.assert_close(gradient, learned[name], atol=1e-4, rtol=1e-4, msg=name)


def test_lora_trains_adapters_and_the_stop_tokens_row_only(tiny_world: Any, row: PackedBatch, chat: Chat) -> None:
    policy = load_policy(tiny_world.student)
    before = policy(row).detach()
    policy.add_lora(LoRA(rank=3, alpha=9), chat.stop_token_ids[0])
    trainable = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    # 2 layers x (4 attention + 3 MLP projections) x (A, B), and the row
    assert len(trainable) == 29 and sum(".lora_" in name for name in trainable) == 28 and "stop_row_E" in trainable
    assert {p.shape[0] for name, p in policy.named_parameters() if ".lora_A." in name} == {3}
    torch.testing.assert_close(policy(row), before, atol=0, rtol=0, msg="B starts at zero")
    frozen = {name: p.detach().clone() for name, p in policy.named_parameters() if name not in trainable}
    trained_a_little(policy, row)
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == (name in trainable), name
        if name in frozen:
            torch.testing.assert_close(parameter, frozen[name], atol=0, rtol=0)
    assert (policy(row) - before).abs().max() > 0.1


def test_the_export_of_adapters_is_a_merged_ordinary_model(
    tiny_world: Any, row: PackedBatch, chat: Chat, tmp_path: Path
) -> None:
    policy = load_policy(tiny_world.student)
    policy.add_lora(LoRA(rank=3, alpha=9), chat.stop_token_ids[0])
    trained_a_little(policy, row)
    assert policy.stop_row_E is not None and policy.stop_row_E.abs().max() > 0.01, "guard: the row has changed"
    expected = policy(row).detach()
    hidden = policy.hidden(row.input_ids, row.position_ids, packed_layout(row, policy.engine())).detach()
    labelled = row.labels >= 0
    logprobs = policy.logits(hidden).log_softmax(-1)[labelled].gather(-1, row.labels[labelled, None])[:, 0]
    torch.testing.assert_close(logprobs, expected[labelled], atol=2e-5, rtol=0, msg="generation has the same weights")
    before, learned = state(policy), gradients(policy, row)
    policy.save(tmp_path, chat)
    assert (
        load_file(tmp_path / "model.safetensors").keys() == load_file(tiny_world.student / "model.safetensors").keys()
    )
    merged = load_policy(tmp_path)
    # merged and separate products of about 30 terms are rounded at other places
    torch.testing.assert_close(merged(row), expected, atol=2e-5, rtol=0)
    assert_as_before(policy, row, before, learned)


@pytest.mark.parametrize("tied", [True, False])
def test_with_adapters_off_the_policy_is_the_model_it_was_made_from(
    tied: bool, tiny_world: Any, chat: Chat, row: PackedBatch
) -> None:
    config = load_policy(tiny_world.student).lm.config
    config.tie_word_embeddings = tied
    torch.manual_seed(2)
    policy = new_policy(config)

    def seen() -> dict[str, torch.Tensor]:
        """What training and what generation see: log-probabilities, entropies and logits."""
        with torch.no_grad():
            hidden = policy.hidden(row.input_ids, row.position_ids, packed_layout(row, policy.engine()))
            logprobs, entropies = policy(row, entropies=True)
            return {"logprobs": logprobs, "entropies": entropies, "logits": policy.logits(hidden)}

    base = seen()
    policy.add_lora(LoRA(rank=3, alpha=9), chat.stop_token_ids[0])
    trained_a_little(policy, row)
    on, trainable = seen(), {name for name, p in policy.named_parameters() if p.requires_grad}
    assert policy.stop_row_E is not None and policy.stop_row_E.abs().max() > 0.01, "guard: the row has changed"
    with policy.adapters_off():
        off = seen()
    for name in base:
        torch.testing.assert_close(off[name], base[name], atol=0, rtol=0)
        assert (on[name] - base[name]).abs().max() > 0.05, "guard: the adapters do something"
        torch.testing.assert_close(seen()[name], on[name], atol=0, rtol=0)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trainable
    assert all(gradient.any() for gradient in gradients(policy, row).values()), "and they still learn"


def test_adapters_come_back_after_an_error_and_a_policy_without_any_has_none_to_switch_off(
    tiny_world: Any, chat: Chat, row: PackedBatch
) -> None:
    policy = load_policy(tiny_world.student)
    with pytest.raises(AssertionError, match="add_lora"), policy.adapters_off():
        pass
    policy.add_lora(LoRA(rank=3, alpha=9), chat.stop_token_ids[0])
    before = trained_a_little(policy, row)(row).detach()
    with pytest.raises(RuntimeError, match="by the way"), policy.adapters_off():
        raise RuntimeError("by the way")
    torch.testing.assert_close(policy(row), before, atol=0, rtol=0)


def test_entropies_stand_where_labels_do_and_an_empty_row_has_a_zero_gradient(
    tiny_world: Any, row: PackedBatch
) -> None:
    policy = load_policy(tiny_world.student)
    logprobs, entropies = policy(row, 0.7, entropies=True)
    labelled = row.labels >= 0
    assert logprobs.equal(policy(row, 0.7)) and entropies.dtype == torch.float32
    assert (entropies[labelled] > 0).all() and not entropies[~labelled].any() and labelled.any() and not labelled.all()
    nothing = row._replace(labels=torch.full_like(row.labels, -100))
    sum(part.sum() for part in policy(nothing, entropies=True)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(
    lora: LoRA | None, tied: bool, tiny_world: Any, chat: Chat, row: PackedBatch, tmp_path: Path
) -> None:
    config = load_policy(tiny_world.student).lm.config
    config.tie_word_embeddings = tied
    torch.manual_seed(2)
    policy = new_policy(config)
    if lora is not None:
        policy.add_lora(lora, chat.stop_token_ids[0])
    trained_a_little(policy, row)
    policy.save(tmp_path, chat)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (not tied)
    for lm in (load_policy(tmp_path).lm, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert (lm.get_input_embeddings().weight is lm.get_output_embeddings().weight) == tied
    torch.testing.assert_close(load_policy(tmp_path)(row), policy(row), atol=2e-5, rtol=0)


def test_a_save_and_a_load_change_no_bit(tiny_world: Any, chat: Chat, row: PackedBatch, tmp_path: Path) -> None:
    policy = trained_a_little(load_policy(tiny_world.student), row)
    policy.save(tmp_path, chat)
    torch.testing.assert_close(load_policy(tmp_path)(row), policy(row), atol=0, rtol=0)


def test_pickled_weights_are_refused(tiny_world: Any, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_world.student / name).read_bytes())
    torch.save(load_file(tiny_world.student / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_policy(tmp_path)
    save_file(
        load_file(tiny_world.student / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    load_policy(tmp_path)


def test_gradient_checkpointing_computes_again_and_gives_the_same_gradients(tiny_world: Any, row: PackedBatch) -> None:
    calls: Counter[str] = Counter()
    found = []
    choices: dict[str, Recompute] = {"none": False, "selective": "selective", "full": True}
    for name, blocks in choices.items():
        module = SFTModule(str(tiny_world.student), gradient_checkpointing=blocks)
        module.configure_model()
        assert module.policy is not None and module.policy.lm.training, "transformers checkpoints in train mode only"
        for number, block in enumerate(module.policy.blocks()):
            key = f"{name} {number}"
            block.mlp.register_forward_pre_hook(lambda *_, key=key: calls.update([key]))
        found.append(gradients(module.policy, row))
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=0, rtol=0)
    # selective: the first of the two blocks, every second one from there on
    twice = {"full 0", "full 1", "selective 0"}
    assert calls == {f"{name} {number}": 1 + (f"{name} {number}" in twice) for name in choices for number in (0, 1)}


def test_bfloat16_weights_give_about_the_same_logprobs_and_float32_results(tiny_world: Any, row: PackedBatch) -> None:
    exact, rounded = load_policy(tiny_world.student)(row), load_policy(tiny_world.student, dtype="bfloat16")
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    found = rounded(row)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=BF16_ATOL, rtol=0)
    assert (found - exact).abs().max() > 1e-3, "guard: the rounding shows"
    found.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in rounded.parameters())


def test_autocast_gives_about_the_same_gradients(tiny_world: Any, row: PackedBatch) -> None:
    """`trainer.precision=bf16-mixed`: float32 weights, and a backward pass that runs outside of autocast."""
    policy = load_policy(tiny_world.student)
    exact = gradients(policy, row)
    policy.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logprobs = policy(row)
    assert logprobs.dtype == torch.float32
    (-logprobs.sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        apart = (parameter.grad - exact[name]).norm() / exact[name].norm()
        assert apart < 0.05, (name, float(apart))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tiny_world: Any, chat: Chat, tmp_path: Path) -> None:
    config = copy.deepcopy(load_policy(tiny_world.student).lm.config)
    config.vocab_size = 41
    Qwen3ForCausalLM(Qwen3Config(**config.to_diff_dict())).save_pretrained(tmp_path)
    chat.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"ids up to {chat.vocab_size - 1}; the model's embedding has 41 rows"):
        SFTModule(str(tmp_path)).configure_model()


def test_generation_stops_on_what_the_student_was_taught(tiny_world: Any, tmp_path: Path) -> None:
    """The stop token first, then the tokenizer's own end token where that is another one; a pad token beside them."""
    chat = Chat.load(tiny_world.student, stop_token="<|endoftext|>")
    vocabulary = chat.vocabulary
    load_policy(tiny_world.student).save(tmp_path, chat)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["eos_token_id"] == [vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"]]
    assert GenerationConfig.from_pretrained(tmp_path).pad_token_id == vocabulary["<|endoftext|>"]
    assert Chat.load(tmp_path).tokenizer.eos_token == "<|endoftext|>"


def test_auto_attention_is_sdpa_in_float32(tiny_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn and varlen attention compute in half precision only; `auto` must not choose them for float32."""
    best = "w2sr.policy.model.resolve_engine"
    monkeypatch.setattr(best, lambda name, device, unfit: "varlen" if name == "auto" else name)
    policy, half = load_policy(tiny_world.student), load_policy(tiny_world.student, dtype="bfloat16", checked=False)
    assert (policy.engine(), half.engine()) == ("sdpa", "varlen")
    with torch.autocast("cpu", torch.bfloat16):
        assert policy.engine() == "varlen"
    named = load_policy(tiny_world.student, attention="varlen")
    assert named.engine() == "varlen", "a named engine is kept, or refused where it cannot run"


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_an_untied_copy_holds_both_embeddings_and_leaves_the_policy_tied(
    lora: LoRA | None, tiny_world: Any, chat: Chat, row: PackedBatch, tmp_path: Path
) -> None:
    policy = load_policy(tiny_world.student)
    assert policy.lm.config.tie_word_embeddings
    if lora:
        policy.add_lora(lora, chat.stop_token_id)
    before, learned = state(trained_a_little(policy, row).eval()), gradients(policy, row)
    policy.save_untied(tmp_path)
    assert_as_before(policy, row, before, learned)
    assert policy.lm.config.tie_word_embeddings
    copied = load_policy(tmp_path).eval()
    embeddings = copied.lm.get_input_embeddings(), copied.lm.get_output_embeddings()
    assert embeddings[0].weight is not embeddings[1].weight and torch.equal(embeddings[0].weight, embeddings[1].weight)
    with torch.no_grad():
        torch.testing.assert_close(copied(row), policy(row), atol=1e-4, rtol=0)
