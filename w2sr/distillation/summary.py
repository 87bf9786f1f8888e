"""What a run leaves behind, said once at its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from w2sr.distillation.tally import Tally
from w2sr.shards import WHOLE, Shard
from w2sr.types import Trace


class Work(NamedTuple):
    """What one run, or one rank of it, has sampled."""

    num_traces: int
    num_tokens: int
    seconds: float


def summary(
    store: Path, shard: Shard, teacher: str, num_problems: int, traces: Sequence[Trace], work: Sequence[Work]
) -> str:
    """Traces, verdicts, lengths and speed in a few lines, and the command that comes next.

    Args:
        store: where the traces are.
        shard: the share of the problems that this run was for.
        teacher: who wrote them.
        num_problems: problems of that share.
        traces: all traces of that share that the store holds.
        work: what each rank did in this run.
    """
    tally = Tally(traces)
    part = "" if shard == WHOLE else f"shard {shard}, "
    lines = [f"{store}: {part}{tally.num_traces:,} traces of {num_problems:,} problems by {teacher}"]
    if traces:
        lines.append(f"  {tally.verdict_text()}")
        lines.append(
            f"  cut off at the token limit: {tally.num_cut_off:,} ({100 * tally.cut_off_frac:.1f} %); tokens of a "
            f"trace: {tally.mean_tokens:.1f} on average, {tally.longest:,} at most"
        )
    num_new = sum(rank.num_traces for rank in work)
    seconds = max(max(rank.seconds for rank in work), 1e-9)
    if num_new:
        rate = sum(rank.num_tokens for rank in work) / seconds
        lines.append(
            f"  this run: {num_new:,} traces in {seconds:.1f} s, {num_new / seconds:.1f} traces/s, {rate:,.0f} tokens/s"
        )
    else:
        lines.append("  It was complete already: nothing was sampled.")
    return "\n".join([*lines, _next_step(store, shard)])


def _next_step(store: Path, shard: Shard) -> str:
    program = f"python {shlex.quote(sys.argv[0])}" if sys.argv[0].endswith(".py") else "w2sr"
    if shard != WHOLE:
        return f"When all {shard.count} shards are done: {program} merge {shlex.quote(str(store))}"
    traces = shlex.quote(f"[{{path: {store}}}]")
    return f"Next: {program} fit --config configs/w2sr_p.yaml --data.init_args.traces={traces}"
