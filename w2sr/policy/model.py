"""A causal language model that reads packed rows: log-probabilities of labels, adapters, and saving.

Legend: T packed tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from w2sr.attention import Engine, Layout, packed_layout, resolve_engine, unfit_engines
from w2sr.chat import Chat
from w2sr.logprobs import summed_logprobs, token_logprobs, token_logprobs_and_entropies
from w2sr.policy.adapters import LoRA, adapted_weights, added_weight, table_of_its_own
from w2sr.policy.heads import logit_form
from w2sr.policy.positions import length_rule
from w2sr.policy.stored import memory_name
from w2sr.types import IGNORE_INDEX, PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel

Recompute = bool | Literal["selective"]
"""Blocks whose activations the backward pass computes again: none, all, or (`selective`) every second one."""


class Policy(nn.Module):
    """A causal LM whose forward pass takes a packed row and returns the log-probability of every label.

    Args:
        lm: a transformers causal LM made with w2sr's attention (see `load_policy` and `new_policy`).
        attention: engine for packed attention; `auto` takes the best one that the device has.

    Attributes:
        form: what the model's head makes of products of hidden states and output embedding.
        is_checked: whether it was compared with the model's own forward pass (see `w2sr.policy.check_model`).
    """

    def __init__(self, lm: PreTrainedModel, attention: Engine | Literal["auto"] = "auto") -> None:
        super().__init__()
        self.lm, self.form = lm, logit_form(lm)
        self.attention, self._unfit_engines = attention, unfit_engines(lm)
        self._length_rule = length_rule(lm)
        self.is_checked = False
        # where weights lie elsewhere, or are kept wider, than they are computed with (see `w2sr.sharding`)
        self.compute_device: torch.device | None = None
        self.compute_dtype: torch.dtype | None = None
        # in a tuple, because a module attribute would register every weight a second time
        self._adapter: tuple[PeftModel] | None = None
        self.stop_row_E: nn.Parameter | None = None
        self._row_embedding: tuple[Any, ...] = ()
        self._stop_token_id = -1
        self._adapters_are_off = False

    @property
    def device(self) -> torch.device:
        """Where the arithmetic is done."""
        return self.compute_device or next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights as the forward pass sees them, autocast aside."""
        return self.compute_dtype or self._frozen_output_weight().dtype

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: every token id must be below."""
        return int(cast(Any, self.lm.get_input_embeddings()).weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Positions that a prompt has together with its completion; None where the configuration does not say."""
        positions = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        if self._length_rule is None:
            return positions
        return min(self._length_rule.limit, positions or self._length_rule.limit)

    def engine(self) -> Engine:
        """The attention engine on the present device. `auto` is SDPA in float32, which the CUDA kernels do not know."""
        device = self.device.type
        autocast = torch.is_autocast_enabled(device)
        arithmetic = torch.get_autocast_dtype(device) if autocast else self.dtype
        if self.attention == "auto" and arithmetic == torch.float32:
            return "sdpa"
        return resolve_engine(self.attention, self.device, self._unfit_engines)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
        """Last hidden states [T, E] of the tokens of one packed row [T]."""
        if self._length_rule is not None:
            self._length_rule.check(layout)
        output = self.lm.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, layout=layout
        )
        return cast(Tensor, output.last_hidden_state[0])

    def logits(self, hidden_TE: Tensor) -> Tensor:
        """Logits [T, V] in float32, for a few positions only: generation."""
        logits_TV = hidden_TE @ self._frozen_output_weight().T
        if (bias_V := self._output_bias()) is not None:
            logits_TV = logits_TV + bias_V.to(logits_TV.dtype)
        if (row_E := self._stop_row()) is not None:
            # the same as with `_output_weight`, without its copy for every token
            logits_TV[:, self._stop_token_id] += hidden_TE @ row_E.to(hidden_TE.dtype)
        return self.form(logits_TV)

    def next_logits(self, input_ids: Tensor, position_ids: Tensor, layout: Layout, wanted: Tensor) -> Tensor:
        """Logits [·, V] in float32 at the `wanted` positions of one packed row. A whole forward pass: a sharded policy
        gathers its weights for it, as for `forward` (`hidden` and `logits` see what lies on their own rank)."""
        return self.logits(self.hidden(input_ids, position_ids, layout)[wanted])

    def own_logits(self, input_ids: Tensor) -> Tensor:
        """Logits [L, V] in float32 of one segment [L], by the model's own eager attention and head: what the rest of
        this class is compared with. A whole forward pass, as `forward`."""
        config = self.lm.config
        implementation, config._attn_implementation = config._attn_implementation, "eager"
        try:
            return cast(Tensor, self.lm(input_ids=input_ids[None], use_cache=False).logits[0].float())
        finally:
            config._attn_implementation = implementation

    @overload
    def forward(
        self, batch: PackedBatch, temperature: float = ..., reduction: Literal["none", "sum"] = ...
    ) -> Tensor: ...

    @overload
    def forward(
        self, batch: PackedBatch, temperature: float = ..., *, entropies: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        batch: PackedBatch,
        temperature: float = 1.0,
        reduction: Literal["none", "sum"] = "none",
        entropies: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Log-probabilities in nats, float32 [T], indexed like `batch.labels`; 0 where a label is IGNORE_INDEX.

        Only labelled positions are projected to the vocabulary, a chunk at a time. `reduction="sum"` gives their sum,
        a scalar, at three quarters of the projection's cost (see `summed_logprobs`). `entropies=True` gives a second
        [T]: the entropy of the distribution of each label, in nats (see `token_logprobs_and_entropies`).
        """
        hidden_TE = self.hidden(batch.input_ids, batch.position_ids, packed_layout(batch, self.engine()))
        labelled = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
        projection = (hidden_TE[labelled], self._output_weight(), batch.labels[labelled], temperature)
        head: Any = {"bias_V": self._output_bias(), "form": self.form}
        if reduction == "sum":
            assert not entropies, "a sum of log-probabilities has no entropies"
            return summed_logprobs(*projection, **head)

        def spread(values: Tensor) -> Tensor:
            # index_put keeps the graph alive in a row without labels: its gradient is then zero, not missing
            return torch.zeros_like(batch.labels, dtype=torch.float32).index_put((labelled,), values)

        if entropies:
            logprobs, entropy = token_logprobs_and_entropies(*projection, **head)
            return spread(logprobs), spread(entropy)
        return spread(token_logprobs(*projection, **head))

    def recompute(self, blocks: Recompute) -> None:
        """Lets the backward pass compute blocks' activations again, in place of keeping them.

        `selective` leaves every second block as it is: half the memory of none at half the additional forward pass.
        """
        if not blocks:
            return
        self.lm.gradient_checkpointing_enable({"use_reentrant": False})
        if blocks == "selective":
            for block in self.blocks()[1::2]:
                block.gradient_checkpointing = False

    def blocks(self) -> list[GradientCheckpointingLayer]:
        """The transformer blocks, in order."""
        return [module for module in self.lm.modules() if isinstance(module, GradientCheckpointingLayer)]

    def add_lora(self, lora: LoRA, stop_token_id: int) -> None:
        """Freezes the weights and adds trainable adapters, and a trainable change of the stop token's row.

        A base model that is taught a new stop token (Qwen's `<|im_end|>`, say) has learned never to say it. Its row of
        the output embedding then points away from every hidden state, and adapters in the blocks, which would have to
        turn the hidden states themselves, learn that last of all: their students do not stop. Where the two embeddings
        are tied, the change is one of both.
        """
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", bias="none"
        )
        try:
            self._adapter = (cast("PeftModel", get_peft_model(self.lm, config)),)
        except ValueError as error:
            raise ValueError(f"peft has no such adapters for {type(self.lm).__name__}: {error} ({lora})") from error
        self._stop_token_id = stop_token_id
        self.stop_row_E = nn.Parameter(torch.zeros_like(self._frozen_output_weight()[stop_token_id]))
        embedding = self.lm.get_input_embeddings()
        if embedding.weight is self._frozen_output_weight():
            self._row_embedding = (table_of_its_own(embedding),)
            embedding.register_forward_hook(self._change_stop_row)

    def _change_stop_row(self, module: nn.Module, given: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Embeds the stop token by its changed row, in the way of the model's own embedding (Gemma's is scaled)."""
        if (row_E := self._stop_row()) is None:
            return embedded
        frozen_E, (table,) = self._frozen_output_weight()[self._stop_token_id], self._row_embedding
        table.weight = (frozen_E + row_E.to(frozen_E.dtype))[None]
        changed_E = table.forward(torch.zeros((), dtype=torch.int64, device=frozen_E.device))
        return torch.where((given[0] == self._stop_token_id)[..., None], changed_E.to(embedded.dtype), embedded)

    def _stop_row(self) -> Tensor | None:
        """The change of the stop token's row, where there is one and it is not switched off."""
        return None if self._adapters_are_off else self.stop_row_E

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Inside, the policy is the model that `add_lora` began with: no adapters, no change of the stop token's row.

        So a policy with adapters is its own reference policy, and needs no second copy of the weights.
        """
        assert self._adapter is not None and not self._adapters_are_off, "adapters_off() needs add_lora(), and once"
        (adapter,) = self._adapter
        self._adapters_are_off = True
        try:
            with adapter.disable_adapter():
                yield
        finally:
            self._adapters_are_off = False

    def save(self, folder: str | Path, chat: Chat) -> None:
        """Writes a Hugging Face directory: safetensors with adapters merged, tokenizer, generation config.

        The generation config stops on the tokens that the student was trained to stop on. The policy must be whole; the
        parts of a sharded one are written by `save_description` and `write_weights`.
        """
        self.save_description(folder, chat)
        self.lm.save_pretrained(folder, state_dict=self._merged_state())

    def save_description(self, folder: str | Path, chat: Chat) -> None:
        """Writes what a Hugging Face directory holds beside the weights."""
        self.lm.generation_config = GenerationConfig(
            eos_token_id=list(chat.stop_token_ids), pad_token_id=chat.tokenizer.pad_token_id
        )
        self.lm.generation_config.save_pretrained(folder)
        self.save_config(folder)
        chat.save(folder)

    def save_config(self, folder: str | Path) -> None:
        """Writes the model's configuration alone."""
        config = self.lm.config
        config.architectures, config.dtype = [type(self.lm).__name__], self._frozen_output_weight().dtype
        config.save_pretrained(folder)

    def save_untied(self, folder: str | Path) -> None:
        """Writes configuration and safetensors as `save` does, the output embedding always apart from the input's.

        For engines that load weights again while they run, and may keep an old copy of one of two tied embeddings. The
        policy must be whole.
        """
        state = dict(self.merged_weights(lambda weight: weight, untied=True))
        (name,) = [f"{name}.weight" for name, m in self.lm.named_modules() if m is self.lm.get_output_embeddings()]
        state[name] = state[name].clone()
        with self.untied():
            self.lm.save_pretrained(folder, state_dict=state)

    @contextmanager
    def untied(self) -> Iterator[None]:
        """The configuration, as it is written while the block lasts, is that of a model with two embeddings."""
        config = self.lm.config
        tied, config.tie_word_embeddings = config.tie_word_embeddings, False
        try:
            yield
        finally:
            config.tie_word_embeddings = tied

    def merged_weights(
        self, whole: Callable[[Tensor], Tensor], *, untied: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """The weights under the names of a model directory, adapters merged in, one after the other; tied ones once.

        Args:
            whole: gathers one weight from where it lies.
            untied: tied ones under each of their names, each a tensor of its own.
        """
        adapted = adapted_weights(self.lm)
        weights = self.lm.state_dict(keep_vars=True)
        frozen, seen = self._frozen_output_weight(), set()
        for name, weight in weights.items():
            if ".lora_" in name or (id(weight) in seen and not untied):
                continue
            seen.add(id(weight))
            full = whole(weight).detach()
            if id(weight) in adapted:
                layer, adapter = adapted[id(weight)]
                inner, outer = (whole(weights[f"{layer}.lora_{side}.default.weight"]).detach() for side in "AB")
                full = full + added_weight(adapter, full, inner, outer)
            if weight is frozen and self.stop_row_E is not None:
                index = torch.tensor([self._stop_token_id], device=full.device)
                full = full.index_add(0, index, whole(self.stop_row_E).detach()[None].to(full.dtype))
            yield memory_name(name), full

    def _merged_state(self) -> dict[str, Tensor]:
        """The weights under the model's own names, adapters merged in; tied ones once.

        Those of the policy stay as they are: peft merges in place, and what it subtracts again is not what it added.
        """
        if self._adapter is None:
            return dict(self.lm.state_dict())
        return dict(self.merged_weights(lambda weight: weight))

    def _frozen_output_weight(self) -> Tensor:
        return cast(Tensor, self.lm.get_output_embeddings().weight)

    def _output_bias(self) -> Tensor | None:
        return getattr(self.lm.get_output_embeddings(), "bias", None)

    def _output_weight(self) -> Tensor:
        """The output embedding [V, E]; with adapters a copy, in which the stop token's row is changed."""
        weight_VE = self._frozen_output_weight()
        if (row_E := self._stop_row()) is None:
            return weight_VE
        index = torch.tensor([self._stop_token_id], device=weight_VE.device)
        return weight_VE.index_add(0, index, row_E[None].to(weight_VE.dtype))
