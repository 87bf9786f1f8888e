"""The attention function that transformers' AttentionInterface calls: it finds the layout among its keywords."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from w2sr.attention.engines import Scores, attend_decode, attend_packed
from w2sr.attention.layouts import Decode, Layout, Prefill

ATTENTION_NAME = "w2sr_packed"

WITHOUT_EFFECT = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"})
"""Keywords that models pass on and that change no score: positions are in the queries and keys already, and a `Policy`
asks for no cache of transformers' own and for no weights."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function. query [1, H, T, D], key and value [1, K, T, D] → ([1, T, H, D], None).

    Raises:
        ValueError: the call passed no layout, or the model asks for what packed attention does not have: dropout, a
            mask of its own, or a keyword that is not known here.
    """
    if layout is None:
        raise ValueError(
            f"{type(module).__name__} was given no layout=. Call the model through w2sr.policy.Policy; if that is what "
            "happened, the model does not pass keywords on to its attention and cannot be packed. Use another model."
        )
    _refuse_unknown(module, attention_mask, dropout, others)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scaling, sliding_window, softcap, s_aux)
    # under autocast rotary embeddings come out as float32 and values do not
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if isinstance(layout, Decode):
        return attend_decode(q, k, v, layout, _layer(module), scores)[None], None
    if isinstance(layout, Prefill):
        keys, values = layout.cache.of_layer(_layer(module), k, v)
        keys[layout.token_slot, :, layout.token_position] = k[layout.token_source]
        values[layout.token_slot, :, layout.token_position] = v[layout.token_source]
        layout = layout.packed
    return attend_packed(q, k, v, layout, scores)[None], None


def _layer(module: nn.Module) -> int:
    if getattr(module, "layer_idx", None) is None:
        raise ValueError(f"{type(module).__name__} has no layer_idx, so its keys and values cannot be cached.")
    return cast(int, module.layer_idx)


def _refuse_unknown(module: nn.Module, mask: Tensor | None, dropout: float, others: dict[str, Any]) -> None:
    """What is not understood is refused: an attention that leaves it out would be another model."""
    name = type(module).__name__
    if dropout:
        raise ValueError(
            f"{name} asks for attention dropout {dropout}, which packed attention does not have. In the model's "
            f"config.json set {_dropout_key(module, dropout)} to 0."
        )
    if mask is not None:
        raise ValueError(f"{name} builds an attention mask of its own; packed attention is causal and takes none.")
    asked = {key: value for key, value in others.items() if value is not None and key not in WITHOUT_EFFECT}
    if asked.pop("is_causal", True) is not True:
        raise ValueError(f"{name} asks for attention in both directions (is_causal=False); packed attention is causal.")
    if asked:
        raise ValueError(
            f"{name} passes {', '.join(sorted(asked))} to its attention, which packed attention does not know. Use "
            "another model."
        )


def _dropout_key(module: nn.Module, dropout: float) -> str:
    """What this architecture calls it: attention_dropout, attn_pdrop, attention_probs_dropout_prob, and so on."""
    config = getattr(module, "config", None)
    settings: dict[str, Any] = {} if config is None else config.to_dict()
    drops = {key: value for key, value in settings.items() if "drop" in key and value == dropout}
    return " or ".join([key for key in drops if "att" in key] or drops or ["the key of its attention dropout"])


def no_mask(*_: Any, **__: Any) -> None:
    """transformers builds no mask for this attention: boundaries are in the layout, windows come with each call."""
    return


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, no_mask)
