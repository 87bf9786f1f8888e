"""Attention inside the segments of a packed row, and of one new token on a slot cache.

Engines for a packed row: the varlen kernels of FlashAttention-3 (`flash3`, on Hopper) and of flash-attn (`flash`),
torch's varlen attention (`varlen`), and grouped SDPA (`sdpa`: segments of like length share one padded call; runs
everywhere). No mask is built for a packed row unless a window is shorter than a segment: causal attention with padding
on the right never reads the padding.

Legend: T packed tokens, S segments, B slots, H query heads, K key/value heads, L segment length, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2sr.attention.layouts import Decode, Engine, Grid, Packed
from w2sr.untried import say_if_untried


@dataclass(frozen=True)
class Scores:
    """How a layer scores keys, and which keys a token may read.

    Attributes:
        scaling: factor of the products of query and key.
        window: a token reads itself and the `window - 1` tokens before it; None: all of its segment up to itself.
        softcap: scores become softcap · tanh(score / softcap); None leaves them.
        sinks: for each query head a further score [H], whose share of the softmax reads nothing (gpt-oss).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def are_plain(self) -> bool:
        """Whether SDPA computes them, with a mask for a window."""
        return self.softcap is None and self.sinks is None


def unfit_engines(lm: nn.Module) -> frozenset[Engine]:
    """The engines that lack what a model's layers need: no kernel has attention sinks, torch's varlen no soft-cap."""
    config: Any = lm.config
    if any(getattr(module, "sinks", None) is not None for module in lm.modules()):
        return frozenset(("flash3", "flash", "varlen"))
    caps = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return frozenset(("varlen",)) if caps else frozenset()


def _require(engine: Engine, scores: Scores, *, softcaps: bool = True, windows: bool = True) -> None:
    """Raises ValueError where an engine lacks what a layer needs: no silent fallback."""
    lacks = {
        "sliding windows": not windows and scores.window is not None,
        "soft-capped scores": not softcaps and scores.softcap is not None,
        "attention sinks": scores.sinks is not None,
    }
    if missing := [name for name, is_missing in lacks.items() if is_missing]:
        raise ValueError(f"attention={engine} has no {' and no '.join(missing)}; this model needs them. Use sdpa.")


def attend_packed(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scores: Scores) -> Tensor:
    """Causal attention inside each segment. query [T, H, D], key and value [T, K, D] → [T, H, D]."""
    if query.is_cuda:
        say_if_untried(f"attention={packed.engine}")
    if packed.engine == "sdpa":
        assert packed.grid is not None
        return _grouped_sdpa(query, key, value, packed.grid, scores)
    engines: dict[str, Callable[..., Tensor]] = {"varlen": _varlen, "flash": _flash, "flash3": _flash}
    attend = engines[packed.engine]
    if packed.source is None or packed.place is None:
        return attend(query, key, value, packed, scores)
    written = (x.index_select(0, packed.source) for x in (query, key, value))
    return attend(*written, packed, scores).index_select(0, packed.place)


def attend_decode(query: Tensor, key: Tensor, value: Tensor, layout: Decode, layer: int, scores: Scores) -> Tensor:
    """One token for each slot. query [B, H, D], key and value [B, K, D] → [B, H, D].

    The H / K query heads that share a key head stand as H / K query positions: no key is repeated.
    """
    slots = torch.arange(query.shape[0], device=query.device)
    keys, values = layout.cache.of_layer(layer, key, value)
    keys[slots, :, layout.position] = key
    values[slots, :, layout.position] = value
    grouped = query.unflatten(1, (key.shape[1], -1))
    outputs, start = [], 0
    for visible in layout.visible:
        run, stored = slice(start, start + visible.shape[0]), slice(visible.shape[-1])
        if scores.window is not None:
            oldest = (layout.position[run] - scores.window + 1)[:, None, None, None]
            visible = visible & (torch.arange(visible.shape[-1], device=visible.device) >= oldest)
        k, v = keys[run, :, stored], values[run, :, stored]
        if scores.are_plain:
            out = F.scaled_dot_product_attention(grouped[run], k, v, attn_mask=visible, scale=scores.scaling)
        else:
            out = _written_out(grouped[run][..., None, :], k, v, visible, scores)[..., 0, :]
        outputs.append(out)
        start += visible.shape[0]
    return torch.cat(outputs).flatten(1, 2)


def _grouped_sdpa(query: Tensor, key: Tensor, value: Tensor, grid: Grid, scores: Scores) -> Tensor:
    grids = [x.index_select(0, grid.gather) for x in (query, key, value)]
    outputs, base = [], 0
    for num_segments, longest in grid.shapes:
        size = num_segments * longest
        q, k, v = (x[base : base + size].unflatten(0, (num_segments, longest)).transpose(1, 2) for x in grids)
        outputs.append(_attend_grid(q, k, v, scores).transpose(1, 2).flatten(0, 1))
        base += size
    return torch.cat(outputs).index_select(0, grid.scatter)


def _attend_grid(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
    """q [S, H, L, D], k and v [S, K, L, D] → [S, H, L, D]."""
    longest, num_kv_heads = q.shape[2], k.shape[1]
    visible = None
    if (
        (scores.window is not None and scores.window < longest)
        or scores.softcap is not None
        or scores.sinks is not None
    ):
        back = torch.arange(longest, device=q.device)[:, None] - torch.arange(longest, device=q.device)
        visible = (back >= 0) & (back < (scores.window or longest))
    if scores.are_plain:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, scale=scores.scaling,
            enable_gqa=q.shape[1] != num_kv_heads,
        )  # fmt: skip
    assert visible is not None
    return _written_out(q.unflatten(1, (num_kv_heads, -1)), k, v, visible, scores).flatten(1, 2)


def _written_out(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scores: Scores) -> Tensor:
    """Soft-capped scores and sinks, which SDPA does not have. Memory: H · Lq · Lk scores for each of S segments.

    q [S, K, H / K, Lq, D], k and v [S, K, Lk, D], visible [.., Lq, Lk] → [S, K, H / K, Lq, D].
    """
    weights = (q @ k[:, :, None].mT).float() * scores.scaling
    if scores.softcap is not None:
        weights = scores.softcap * torch.tanh(weights / scores.softcap)
    weights = weights.masked_fill(~visible[..., None, :, :], -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(q.shape[1], q.shape[2], 1, 1).expand(*weights.shape[:-1], 1)
        weights = torch.cat([weights, sinks], dim=-1)
    shares = weights.softmax(-1)[..., : k.shape[2]]
    return shares.to(v.dtype) @ v[:, :, None]


def _varlen(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scores: Scores) -> Tensor:
    """torch's varlen attention. Its signature moved between 2.10 and 2.13; without a window it is not causal."""
    from torch.nn.attention.varlen import varlen_attn

    accepted = inspect.signature(varlen_attn).parameters
    has_windows = "window_size" in accepted
    _require("varlen", scores, windows=has_windows, softcaps=False)
    options: dict[str, Any] = {"window_size": _window(scores)} if has_windows else {"is_causal": True}
    if "enable_gqa" in accepted:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    bounds, longest = packed.cu_seqlens, packed.max_seqlen
    return cast(
        Tensor, varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scores.scaling, **options)
    )


def _flash(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scores: Scores) -> Tensor:
    if packed.engine == "flash3":
        from flash_attn_interface import flash_attn_varlen_func
    else:
        from flash_attn import flash_attn_varlen_func

    _require(packed.engine, scores)
    options: dict[str, Any] = {"softmax_scale": scores.scaling, "causal": True}
    if scores.window is not None:
        options["window_size"] = _window(scores)
    if scores.softcap is not None:
        options["softcap"] = scores.softcap
    bounds, longest = packed.cu_seqlens, packed.max_seqlen
    out = flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, **options)
    # early builds of FlashAttention-3 return the log-sum-exps beside it
    return cast(Tensor, out[0] if isinstance(out, tuple) else out)


def _window(scores: Scores) -> tuple[int, int]:
    """Tokens before and after a token that it may read; -1: all of them."""
    return (-1 if scores.window is None else scores.window - 1, 0)
