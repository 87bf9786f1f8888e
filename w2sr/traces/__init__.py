"""The trace store and the readers of foreign traces."""

from w2sr.traces.foreign import read_foreign, read_traces
from w2sr.traces.recipe import Recipe, claim, read_recipe, recipe_differences, shard_states
from w2sr.traces.store import Manifest, Part, TraceKey, is_store, iter_store, read_manifest, read_store, trace_key
from w2sr.traces.writer import TraceWriter, write_store

__all__ = [
    "Manifest",
    "Part",
    "Recipe",
    "TraceKey",
    "TraceWriter",
    "claim",
    "is_store",
    "iter_store",
    "read_foreign",
    "read_manifest",
    "read_recipe",
    "read_store",
    "read_traces",
    "recipe_differences",
    "shard_states",
    "trace_key",
    "write_store",
]
