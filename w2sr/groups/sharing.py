"""Packed rows whose segments share what they begin with, such as the prompt of a group.

All that works on single tokens (projections, MLPs, norms) then sees a shared part once. Attention writes the segments
out again, so it is that of the row without sharing, up to the last bits, and so is the gradient.

Legend: T tokens of the row, X tokens of its segments written out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from w2sr.packing import pack_row
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment


def pack_sharing(segments: Sequence[Segment], num_shared: Sequence[int]) -> PackedBatch:
    """`pack_row`, where equal first parts stand once: of segment s the first `num_shared[s]` tokens, without loss.

    >>> one, two = (Segment(str(t), np.array([5, 6, t]), np.array([IGNORE_INDEX, t, IGNORE_INDEX])) for t in (8, 9))
    >>> row = pack_sharing([one, two], [1, 1])
    >>> row.input_ids.tolist(), row.position_ids.tolist(), row.source.tolist(), row.cu_seqlens.tolist()
    ([5, 6, 8, 6, 9], [0, 1, 2, 1, 2], [0, 1, 2, 0, 3, 4], [0, 3, 6])
    """
    written = pack_row(segments)
    source_X = np.arange(len(written.input_ids))
    first: dict[tuple[int, ...], int] = {}
    for segment, num, start in zip(segments, num_shared, written.cu_seqlens.tolist(), strict=False):
        assert (segment.labels[:num] == IGNORE_INDEX).all(), f"{segment.segment_id}: a shared token has one label only"
        begin = first.setdefault(tuple(segment.input_ids[:num].tolist()), start)
        source_X[start : start + num] = np.arange(begin, begin + num)
    kept_X = source_X == np.arange(len(source_X))
    if kept_X.all():
        return written
    place_T = torch.from_numpy(kept_X.nonzero()[0])
    return PackedBatch(
        written.input_ids[place_T],
        written.labels[place_T],
        written.position_ids[place_T],
        written.cu_seqlens,
        written.max_seqlen,
        torch.from_numpy((kept_X.cumsum() - 1)[source_X]),
        place_T,
    )
