"""The comparison of a loaded model with its own forward pass: what it finds, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GraniteConfig, Qwen3Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from w2sr.attention import ATTENTION_NAME, packed_attention
from w2sr.callbacks.export import model_card
from w2sr.chat import Chat
from w2sr.logprobs import LogitForm
from w2sr.modules import students
from w2sr.policy import Policy, RefusedModel, check_model, load_policy, new_policy

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def tiny(dtype: torch.dtype = torch.float32) -> Policy:
    torch.manual_seed(3)
    return new_policy(Qwen3Config(**SHAPE, head_dim=8)).to(dtype)


def with_state(module: torch.nn.Module, given: Any, named: Any, out: Tensor) -> Tensor:
    """A running mean over the row, whose segments it does not know: as a state-space layer would have."""
    return out + 0.3 * out.cumsum(1) / torch.arange(1, out.shape[1] + 1)[:, None]


def with_the_end(module: torch.nn.Module, given: Any, named: Any, out: Tensor) -> Tensor:
    """Each token reads the last one of its own segment, packed and alone alike: no other segment, but the future."""
    layout = named.get("layout")
    if layout is None:
        return out + 0.3 * out[:, -1:]
    if not hasattr(layout, "cu_seqlens"):
        return out
    lengths = layout.cu_seqlens.diff().long()
    return out + 0.3 * out[:, (lengths.cumsum(0) - 1).repeat_interleave(lengths)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer, found", [(with_state, "packed log-probabilities differ"), (with_the_end, "a changed last token moves")]
)
def test_a_layer_that_reads_what_it_must_not_is_found(
    dtype: torch.dtype, layer: Callable[..., Tensor], found: str
) -> None:
    policy = tiny(dtype)
    check_model(policy)
    policy.blocks()[1].register_forward_hook(layer, with_kwargs=True)
    with pytest.raises(RefusedModel, match=rf"Qwen3ForCausalLM \(layers: full_attention\): {found}.* nats"):
        check_model(policy)


@pytest.mark.parametrize("form", [LogitForm(scale=1.1), LogitForm(softcap=3.0)])
def test_a_head_that_is_read_wrongly_is_found(form: LogitForm) -> None:
    policy = tiny()
    policy.form = form
    with pytest.raises(RefusedModel, match=r"packed log-probabilities differ from its own by .* nats"):
        check_model(policy)


def test_the_head_of_granite_is_read_from_its_configuration() -> None:
    policy = new_policy(GraniteConfig(**SHAPE, logits_scaling=8.0))
    assert policy.form == LogitForm(scale=0.125)
    check_model(policy)


@pytest.mark.parametrize("training", [True, False])
def test_the_probe_leaves_everything_as_it_was(training: bool) -> None:
    """Random generators too: a run that is resumed draws what it would have drawn."""
    policy = tiny().train(training)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    generator, config = torch.get_rng_state(), policy.lm.config.to_dict()
    check_model(policy)
    assert policy.is_checked and policy.training == training and policy.lm.config._attn_implementation == ATTENTION_NAME
    assert torch.equal(torch.get_rng_state(), generator) and policy.lm.config.to_dict() == config
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] is packed_attention


def test_a_model_for_a_gpu_is_compared_where_it_is_loaded(tiny_world: Any) -> None:
    policy = load_policy(tiny_world.student, attention="flash")
    assert policy.is_checked and policy.attention == "flash"


def test_equal_logits_pass() -> None:
    policy = tiny()
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight.zero_()
    check_model(policy)


def test_a_model_is_checked_when_it_is_loaded_and_a_key_leaves_it_out(
    tmp_path: Path, tiny_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat.load(tiny_world.student)
    policy = load_policy(tiny_world.student)
    assert policy.is_checked

    def refuse(policy: Policy) -> None:
        raise RefusedModel("this one differs")

    monkeypatch.setattr("w2sr.policy.loading.check_model", refuse)
    with pytest.raises(RefusedModel, match="differs"):
        students.place_policy(tiny_world.student, None, chat)
    with pytest.warns(UserWarning, match="check_model=false: .* was not compared with its own forward pass"):
        unchecked = students.place_policy(tiny_world.student, None, chat, checked=False)
    assert not unchecked.is_checked


@pytest.mark.parametrize("is_checked", [True, False])
def test_the_model_card_says_that_a_model_was_not_compared(is_checked: bool) -> None:
    card = model_card(
        base_model="x", licence="other", title="T", training="", num_steps=1, num_tokens=1, stop_tokens=["<e>"],
        command="fit", is_checked=is_checked,
    )  # fmt: skip
    assert ("check_model: false" in card) == (not is_checked)


def test_a_keyword_that_attention_does_not_know_is_refused() -> None:
    q = torch.zeros(1, 2, 3, 4)
    call = {"layout": object(), "position_ids": q, "cache_position": None}
    with pytest.raises(ValueError, match=r"Module passes block_indices, position_bias to its attention"):
        packed_attention(torch.nn.Module(), q, q, q, None, 0.5, position_bias=q, block_indices=q, **call)
    with pytest.raises(ValueError, match=r"attention in both directions"):
        packed_attention(torch.nn.Module(), q, q, q, None, 0.5, is_causal=False, **call)
    with pytest.raises(ValueError, match=r"builds an attention mask of its own"):
        packed_attention(torch.nn.Module(), q, q, q, q, 0.5, **call)


def test_the_advice_about_dropout_names_the_key_of_the_architecture(caplog: pytest.LogCaptureFixture) -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_head=4, n_layer=1, n_positions=64, attn_pdrop=0.2)
    policy = new_policy(config).train()
    check_model(policy)
    with pytest.raises(ValueError, match=r"dropout 0.2.*config.json set attn_pdrop to 0"):
        policy.hidden(*_row(policy))
    assert students.dropouts(policy.lm.config) == {"resid_pdrop": 0.1, "embd_pdrop": 0.1}
    assert students.dropouts(tiny().lm.config) == {}


def _row(policy: Policy) -> tuple[Any, ...]:
    from w2sr.attention import packed_layout
    from w2sr.packing import pack_row

    batch = pack_row([])
    return batch.input_ids, batch.position_ids, packed_layout(batch, "sdpa")
