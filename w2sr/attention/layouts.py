"""Where the segments of a packed row lie, where a cache keeps keys and values, and which engines there are.

- `Packed`: a row of segments, each attending causally to itself only.
- `Prefill`: the same, and the keys and values of each segment are stored in one slot or more of a `SlotCache`.
- `Decode`: one new token for each of B slots. A decode step is a packed row of B segments of one token.

Legend: T packed tokens, S segments, B slots, C slot capacity, K key/value heads, L segment length, D head size.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from w2sr.types import PackedBatch

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
    has them in its indices already. `shares_prompts`: whether they are there at all."""

    engine: Engine
    cu_seqlens: Tensor
    max_seqlen: int
    grid: Grid | None = None
    source: Tensor | None = None
    place: Tensor | None = None
    shares_prompts: bool = False


class SlotCache:
    """Keys and values of B sequences in slots of capacity C.

    `keys`, `values`: a [B, K, C, D] tensor for each layer, made when the first prefill brings that layer's K and D. So
    they may differ between layers, and between keys and values. No dataclass: FSDP2 hands blocks a copy of those, with
    the tensors cast, and what is stored in a copy is lost.
    """

    def __init__(
        self,
        num_slots: int,
        capacity: int,
        keys: dict[int, Tensor] | None = None,
        values: dict[int, Tensor] | None = None,
    ) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self.keys, self.values = keys or {}, values or {}

    def of_layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The stored keys and values of a layer. `key`, `value` [·, K, D]: new ones, for their shape."""
        for stored, new in ((self.keys, key), (self.values, value)):
            if layer not in stored:
                stored[layer] = new.new_zeros(self.num_slots, new.shape[1], self.capacity, new.shape[2])
        return self.keys[layer], self.values[layer]

    def keep(self, slots: Tensor) -> SlotCache:
        """The cache of these slots only, in this order: finished slots stop costing attention."""
        keys, values = ({layer: x[slots] for layer, x in stored.items()} for stored in (self.keys, self.values))
        return SlotCache(len(slots), self.capacity, keys, values)


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


def resolve_engine(
    name: Engine | Literal["auto"], device: torch.device, unfit: frozenset[Engine] = frozenset()
) -> Engine:
    """The engine to use on `device`. Raises ValueError when a named engine cannot run there: no silent fallback.

    Args:
        name: an engine, or `auto` for the best one.
        device: where it has to run.
        unfit: engines that lack what the model's layers need (see `w2sr.attention.Scores`).
    """
    available = [engine for engine in available_engines(device) if engine not in unfit]
    if name == "auto":
        return available[0]
    if name not in available:
        what = "this model" if name in unfit else f"on device '{device}'"
        raise ValueError(
            f"attention={name} cannot run {what} here; available: {', '.join(available)}. "
            "Set attention=auto, or install what it needs (flash: pip install 'w2sr[cuda]' on a CUDA machine; flash3: "
            "FlashAttention-3's package flash_attn_interface, built from its source, on a Hopper GPU)."
        )
    return name


def packed_layout(batch: PackedBatch, engine: Engine) -> Packed:
    """The layout of a packed row, computed once for all layers."""
    if engine != "sdpa":
        shares = batch.source is not None
        return Packed(engine, batch.cu_seqlens, batch.max_seqlen, None, batch.source, batch.place, shares)
    grid = plan_grid(batch.cu_seqlens)
    if batch.source is not None and batch.place is not None:
        grid = Grid(batch.source[grid.gather], grid.scatter[batch.place], grid.shapes)
    return Packed(engine, batch.cu_seqlens, batch.max_seqlen, grid, shares_prompts=batch.source is not None)


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
