"""`merge STORE ... [--out OUT]`: whether all shards of `predict` are there, and one store of them."""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from w2sr.traces import Recipe, iter_store, read_recipe, recipe_differences, shard_states, trace_key, write_store
from w2sr.traces.recipe import RECIPE, ShardState
from w2sr.types import Trace

NUM_NAMED = 3


def main(argv: Sequence[str]) -> None:
    """`merge STORE ... [--out OUT]`: refuses what is missing or there twice; else counts, and writes one store."""
    parser = argparse.ArgumentParser(
        prog="merge",
        description="Checks that the traces of all shards are there, each once. Shards may share a store or not.",
    )
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="run directory of `predict`")
    parser.add_argument("--out", type=Path, help="a new store that is to hold all traces, in the order of their ids")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.exists():
        raise ValueError(f"{args.out} exists already. Name a directory that does not, or remove it.")

    recipe = common_recipe(args.stores)
    traces = [trace for store in args.stores for trace in iter_store(store)]
    refuse_duplicates(traces, args.stores)
    refuse_gaps(args.stores, recipe, traces)
    shards = len(recipe.problems_by_shard)
    print(f"complete: {len(traces):,} traces of {recipe.num_problems:,} problems, {shards:,} of {shards:,} shards")
    if args.out is not None:
        write_merged(args.stores[0], traces, args.out)
        print(f"written: {args.out}")


def common_recipe(stores: Sequence[Path]) -> Recipe:
    """The recipe of all the stores. Raises a ValueError that lists what differs where they have not the same."""
    first, *others = [read_recipe(store) for store in stores]
    for store, other in zip(stores[1:], others, strict=True):
        if differences := recipe_differences(first, other):
            listed = "".join(f"\n  {key}: {there!r} and {here!r}" for key, there, here in differences)
            raise ValueError(f"{stores[0]} and {store} were not made alike, and are no shards of one run:{listed}")
    return first


def refuse_duplicates(traces: Sequence[Trace], stores: Sequence[Path]) -> None:
    """Raises a ValueError where a (problem, teacher, sample) is there twice."""
    twice = [key for key, count in Counter(map(trace_key, traces)).items() if count > 1]
    if twice:
        named = ", ".join(f"{problem_id}#{index}" for problem_id, _, index in twice[:NUM_NAMED])
        raise ValueError(
            f"{len(twice):,} traces are there more than once in {', '.join(map(str, stores))}, the first: {named}. Is "
            "a store named twice, or was a shard run into two stores? Leave one of them out."
        )


def refuse_gaps(stores: Sequence[Path], recipe: Recipe, traces: Sequence[Trace]) -> None:
    """Raises a ValueError that names each shard that lacks traces, with the command that makes them."""
    states = shard_states(recipe, map(trace_key, traces))
    if surplus := [state for state in states if state.num_missing_traces < 0]:
        raise ValueError(
            f"shard {surplus[0].shard} holds {-surplus[0].num_missing_traces:,} traces more than its "
            f"{surplus[0].num_problems:,} problems have. Were traces of other problems added to the store?"
        )
    gaps = [state for state in states if state.num_missing_traces]
    if gaps:
        raise ValueError(_gap_letter(stores, gaps, len(states)))


def _gap_letter(stores: Sequence[Path], gaps: Sequence[ShardState], num_shards: int) -> str:
    command = f"python lightning_cli.py predict --config {shlex.quote(str(stores[0] / 'config.yaml'))}"
    lines = [f"{', '.join(map(str, stores))}: {len(gaps):,} of {num_shards:,} shards lack traces."]
    for state in gaps:
        left = state.num_problems - state.num_done
        lines.append(
            f"  shard {state.shard}: {state.num_missing_traces:,} traces of {left:,} of its {state.num_problems:,} "
            f"problems. {command} --data.init_args.shard={state.shard}"
        )
    if num_shards > 1:
        numbers = ",".join(str(state.shard.number) for state in gaps)
        again = f"SHARDS={num_shards} sbatch --array={numbers} slurm/distill.sbatch"
        lines.append(f"  or, on SLURM, with the arguments that started them: {again}")
    return "\n".join(lines)


def write_merged(first: Path, traces: Sequence[Trace], out: Path) -> None:
    """Writes a sealed store beside `out` and renames it: what is at `out` is whole."""
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_store(unfinished, sorted(traces, key=trace_key))
    for name in (RECIPE, "config.yaml"):
        if (first / name).is_file():
            shutil.copy(first / name, unfinished / name)
    unfinished.rename(out)
