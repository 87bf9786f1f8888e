"""Packed attention under transformers' AttentionInterface: one function, four engines, a slot cache for decoding."""

from w2sr.attention.engines import unfit_engines
from w2sr.attention.interface import ATTENTION_NAME, no_mask, packed_attention
from w2sr.attention.layouts import (
    Decode,
    Engine,
    Grid,
    Layout,
    Packed,
    Prefill,
    SlotCache,
    available_engines,
    group_segments,
    packed_layout,
    plan_grid,
    resolve_engine,
)

__all__ = [
    "ATTENTION_NAME",
    "Decode",
    "Engine",
    "Grid",
    "Layout",
    "Packed",
    "Prefill",
    "SlotCache",
    "available_engines",
    "group_segments",
    "no_mask",
    "packed_attention",
    "packed_layout",
    "plan_grid",
    "resolve_engine",
    "unfit_engines",
]
