"""Packed attention under transformers' AttentionInterface: one function, four engines, and a slot cache for decoding.

A model call passes `layout=` and the function registered here finds it among its keyword arguments:

- `Packed`: a row of segments, each attending causally to itself only. Engines: the varlen kernels of FlashAttention-3
  (`flash3`, on Hopper) and of flash-attn (`flash`), torch's varlen attention (`varlen`), and grouped SDPA (`sdpa`:
  segments of like length share one padded call; runs everywhere).
- `Prefill`: the same, and the keys and values of each segment are stored in one slot or more of a `SlotCache`.
- `Decode`: one new token for each of B slots. A decode step is a packed row of B segments of one token.

No mask is ever built for a packed row: causal attention with padding on the right never reads the padding.

Legend: T packed tokens, S segments, B slots, C slot capacity, H query heads, K key/value heads, L segment length,
D head size.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from w2sr.types import PackedBatch
from w2sr.untried import say_if_untried

ATTENTION_NAME = "w2sr_packed"
MAX_PADDING_FRAC = 0.25
"""A group of segments is closed when padding would exceed this share of its real tokens..."""
MIN_GROUP_TOKENS = 256
"""...unless it still holds fewer tokens than this: one more SDPA call costs more than padding so small a grid."""

HOPPER = 9
"""Major compute capability of the GPUs that FlashAttention-3 is written for."""

Engine = Literal["flash3", "flash", "varlen", "sdpa"]


@dataclass(frozen=True)
class Grid:
    """How a packed row is laid out as padded rectangles, one for each group of segments of like length.

    `gather` [sum of S_g * L_g]: the row position that each grid cell reads (a cell of padding repeats its segment's
    last token). `scatter` [T]: the grid cell that holds each row position. `shapes`: (S_g, L_g) of each rectangle.
    """

    gather: Tensor
    scatter: Tensor
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Packed:
    """Where the segments of a packed row lie, and which engine attends. `source`, `place`: see `PackedBatch`; a grid
    has them in its indices already."""

    engine: Engine
    cu_seqlens: Tensor
    max_seqlen: int
    grid: Grid | None = None
    source: Tensor | None = None
    place: Tensor | None = None


@dataclass
class SlotCache:
    """Keys and values of B sequences in slots of capacity C. `keys`, `values`: a [B, K, C, D] tensor for each layer."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def allocate(
        cls, model: nn.Module, num_slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> SlotCache:
        config: Any = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (num_slots, config.num_key_value_heads, capacity, head_dim)

        def blank() -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]

        return cls(blank(), blank())

    def keep(self, slots: Tensor) -> SlotCache:
        """The cache of these slots only, in this order: finished slots stop costing attention."""
        return SlotCache([key[slots] for key in self.keys], [value[slots] for value in self.values])


@dataclass(frozen=True)
class Prefill:
    """A packed row of prompts, whose keys and values are stored in slots, those of one prompt in as many as want it.

    Row token `token_source[i]` is stored in slot `token_slot[i]` at `token_position[i]`; all int64.
    """

    packed: Packed
    cache: SlotCache
    token_source: Tensor
    token_slot: Tensor
    token_position: Tensor


@dataclass(frozen=True)
class Decode:
    """One new token a slot. `position` [B]: where it stands.

    `visible`: for one run of slots after another, which stored tokens they may read, [b, 1, 1, L]; the b sum to B. Each
    run has an L of its own, so that short sequences are not read as far as the longest goes.
    """

    cache: SlotCache
    position: Tensor
    visible: tuple[Tensor, ...]


Layout = Packed | Prefill | Decode


def available_engines(device: torch.device) -> list[Engine]:
    """The engines that can run on `device`, best first."""
    engines: list[Engine] = []
    if device.type == "cuda":
        hopper = torch.cuda.get_device_capability(device)[0] == HOPPER
        if hopper and importlib.util.find_spec("flash_attn_interface") is not None:
            engines.append("flash3")
        if importlib.util.find_spec("flash_attn") is not None:
            engines.append("flash")
        if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
            engines.append("varlen")
    return [*engines, "sdpa"]


def resolve_engine(name: Engine | Literal["auto"], device: torch.device) -> Engine:
    """The engine to use on `device`. Raises ValueError when a named engine cannot run there: no silent fallback."""
    available = available_engines(device)
    if name == "auto":
        return available[0]
    if name not in available:
        raise ValueError(
            f"attention={name} cannot run on device '{device}' here; available: {', '.join(available)}. "
            "Set attention=auto, or install what it needs (flash: pip install 'w2sr[cuda]' on a CUDA machine; flash3: "
            "FlashAttention-3's package flash_attn_interface, built from its source, on a Hopper GPU)."
        )
    return name


def packed_layout(batch: PackedBatch, engine: Engine) -> Packed:
    """The layout of a packed row, computed once for all layers."""
    if engine != "sdpa":
        return Packed(engine, batch.cu_seqlens, batch.max_seqlen, None, batch.source, batch.place)
    grid = plan_grid(batch.cu_seqlens)
    if batch.source is not None and batch.place is not None:
        grid = Grid(batch.source[grid.gather], grid.scatter[batch.place], grid.shapes)
    return Packed(engine, batch.cu_seqlens, batch.max_seqlen, grid)


def group_segments(lengths: list[int]) -> list[list[int]]:
    """Groups segment indices, longest first, so that padding to a group's longest wastes little.

    >>> group_segments([100, 31, 98, 30])
    [[0, 2, 1, 3]]
    >>> group_segments([1000, 31, 980, 30])
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda s: -lengths[s])
    groups: list[list[int]] = []
    longest = real = 0
    for s in order:
        padded = longest * (len(groups[-1]) + 1) if groups else 0
        fits = padded - real - lengths[s] <= MAX_PADDING_FRAC * (real + lengths[s]) or padded <= MIN_GROUP_TOKENS
        if not groups or not (fits or padded - real <= MIN_GROUP_TOKENS):
            groups.append([])
            longest, real = lengths[s], 0
        groups[-1].append(s)
        real += lengths[s]
    return groups


def plan_grid(cu_seqlens: Tensor) -> Grid:
    """Lays the segments of a row out as few padded rectangles. `cu_seqlens`: [S + 1]."""
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    device = cu_seqlens.device
    scatter = torch.empty(bounds[-1], dtype=torch.int64)
    gathers, shapes, base = [], [], 0
    for group in group_segments(lengths):
        longest = lengths[group[0]]
        starts = torch.tensor([bounds[s] for s in group])[:, None]
        last = torch.tensor([lengths[s] - 1 for s in group])[:, None]
        column = torch.arange(longest)[None, :]
        cells = starts + torch.minimum(column, last)
        real = column <= last
        scatter[cells[real]] = base + torch.arange(cells.numel()).view_as(cells)[real]
        gathers.append(cells.flatten())
        shapes.append((len(group), longest))
        base += cells.numel()
    return Grid(torch.cat(gathers).to(device), scatter.to(device), tuple(shapes))


def _grouped_sdpa(query: Tensor, key: Tensor, value: Tensor, grid: Grid, scaling: float) -> Tensor:
    """Causal attention inside each segment. query [T, H, D], key and value [T, K, D] → [T, H, D]."""
    grids = [x.index_select(0, grid.gather) for x in (query, key, value)]
    outputs, base = [], 0
    for num_segments, longest in grid.shapes:
        size = num_segments * longest
        q, k, v = (x[base : base + size].unflatten(0, (num_segments, longest)).transpose(1, 2) for x in grids)
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
        base += size
    return torch.cat(outputs).index_select(0, grid.scatter)


def _varlen(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float) -> Tensor:
    """torch's varlen attention. Its signature moved between 2.10 and 2.13; without a window it is not causal."""
    from torch.nn.attention.varlen import varlen_attn

    accepted = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
    if "enable_gqa" in accepted:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    bounds, longest = packed.cu_seqlens, packed.max_seqlen
    return cast(Tensor, varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scaling, **options))


def _flash(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float) -> Tensor:
    if packed.engine == "flash3":
        from flash_attn_interface import flash_attn_varlen_func
    else:
        from flash_attn import flash_attn_varlen_func

    bounds, longest = packed.cu_seqlens, packed.max_seqlen
    out = flash_attn_varlen_func(
        query, key, value, bounds, bounds, longest, longest, softmax_scale=scaling, causal=True
    )
    # early builds of FlashAttention-3 return the log-sum-exps beside it
    return cast(Tensor, out[0] if isinstance(out, tuple) else out)


def _attend_packed(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float) -> Tensor:
    if query.is_cuda:
        say_if_untried(f"attention={packed.engine}")
    if packed.engine == "sdpa":
        assert packed.grid is not None
        return _grouped_sdpa(query, key, value, packed.grid, scaling)
    engines: dict[str, Callable[..., Tensor]] = {"varlen": _varlen, "flash": _flash, "flash3": _flash}
    attend = engines[packed.engine]
    if packed.source is None or packed.place is None:
        return attend(query, key, value, packed, scaling)
    written = (x.index_select(0, packed.source) for x in (query, key, value))
    return attend(*written, packed, scaling).index_select(0, packed.place)


def _attend_decode(query: Tensor, key: Tensor, value: Tensor, layout: Decode, layer: int, scaling: float) -> Tensor:
    """One token for each slot. query [B, H, D], key and value [B, K, D] → [B, H, D].

    The H / K query heads that share a key head stand as H / K query positions: no key is repeated.
    """
    slots = torch.arange(query.shape[0], device=query.device)
    keys, values = layout.cache.keys[layer], layout.cache.values[layer]
    keys[slots, :, layout.position] = key
    values[slots, :, layout.position] = value
    grouped = query.unflatten(1, (key.shape[1], -1))
    outputs, start = [], 0
    for visible in layout.visible:
        run, stored = slice(start, start + visible.shape[0]), slice(visible.shape[-1])
        k, v = keys[run, :, stored], values[run, :, stored]
        outputs.append(F.scaled_dot_product_attention(grouped[run], k, v, attn_mask=visible, scale=scaling))
        start += visible.shape[0]
    return torch.cat(outputs).flatten(1, 2)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function. query [1, H, T, D], key and value [1, K, T, D] → ([1, T, H, D], None).

    Raises:
        ValueError: the call passed no layout, or the model wants attention dropout or a sliding window, which the
            packed path does not have.
    """
    if layout is None:
        raise ValueError("packed attention needs layout=: call the model through w2sr.policy.Policy")
    if dropout or sliding_window is not None:
        raise ValueError(
            f"this model asks for attention dropout {dropout} and sliding_window {sliding_window}; packed attention "
            "has neither. Use a model without them, or set attention_dropout=0 and use_sliding_window=false."
        )
    # under autocast rotary embeddings come out as float32 and values do not
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    layer: int = cast(int, module.layer_idx)
    if isinstance(layout, Decode):
        return _attend_decode(q, k, v, layout, layer, scaling)[None], None
    if isinstance(layout, Prefill):
        layout.cache.keys[layer][layout.token_slot, :, layout.token_position] = k[layout.token_source]
        layout.cache.values[layer][layout.token_slot, :, layout.token_position] = v[layout.token_source]
        layout = layout.packed
    return _attend_packed(q, k, v, layout, scaling)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers builds no mask for this attention: boundaries are in the layout."""
    return


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
