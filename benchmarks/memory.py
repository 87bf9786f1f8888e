"""Memory: the peak of our chunked log-probabilities beside full logits, at a vocabulary of 151,936.

    python benchmarks/memory.py --out docs/results/memory.md

Each case is a process of its own that computes the loss of one row and its gradients with respect to the hidden states
and the output embedding; its peak is that of the resident set, less what was resident before the loss. Cases whose
logits do not fit into memory are computed, not run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import common
import torch
import torch.nn.functional as F

from w2sr.logprobs import summed_logprobs

GIB = 2**30
ROWS = (4_096, 8_192, 16_384, 32_768, 65_536)
FULL_COPIES = 3
"""Float32 arrays [T, V] that the full loss holds at once: logits, log-softmax, and the gradient of one of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--vocab-size", type=int, default=151_936, help="V, that of Qwen2.5 by default")
    parser.add_argument(
        "--hidden-size", type=int, default=256, help="E; small, so that the logits are what is measured"
    )
    parser.add_argument("--timed-tokens", type=int, default=65_536, help="longest row that is run")
    parser.add_argument("--case", nargs=2, metavar=("WAY", "TOKENS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measured(args.case[0], int(args.case[1]), args.vocab_size, args.hidden_size)))
        return
    lines = []
    for tokens in (rows for rows in ROWS if rows <= args.timed_tokens):
        lines.append(line(tokens, args.vocab_size, args.hidden_size))
        print(" | ".join(lines[-1]), flush=True)
    common.write(args.out, page(lines, args.vocab_size, args.hidden_size))


def measured(way: str, tokens: int, vocab_size: int, hidden_size: int) -> dict[str, float]:
    """Peak resident memory of one loss with its gradients, in bytes above what was there before, and its seconds."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = (torch.randn(vocab_size, hidden_size) * hidden_size**-0.5).requires_grad_()
    targets = torch.randint(vocab_size, (tokens,))
    before, began = resident(), time.perf_counter()
    if way == "chunked":
        loss = -summed_logprobs(hidden, weight, targets) / tokens
    else:
        loss = F.cross_entropy(hidden @ weight.T, targets)
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert hidden.grad is not None and weight.grad is not None
    return {
        "bytes": peak - before,
        "seconds": time.perf_counter() - began,
        "loss": loss.item(),
        "grad": weight.grad.norm().item(),
    }


def resident() -> int:
    """Resident memory of this process now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def line(tokens: int, vocab_size: int, hidden_size: int) -> list[str]:
    """Both ways at one row length; the full one only where it fits into the memory that is free."""
    logits = 4 * tokens * vocab_size
    need = FULL_COPIES * logits
    ours = in_process("chunked", tokens, vocab_size, hidden_size)
    cells = [f"{tokens:,}", f"{logits / GIB:.1f}", f"{ours['bytes'] / GIB:.2f}", f"{ours['seconds']:.0f}"]
    if need > 0.75 * available():
        return [*cells, f"does not fit (needs {need / GIB:.0f} GiB)", "not run", f"≥ {need / ours['bytes']:.0f}×", "—"]
    full = in_process("full", tokens, vocab_size, hidden_size)
    apart = max(abs(full[key] - ours[key]) / full[key] for key in ("loss", "grad"))
    cells += [f"{full['bytes'] / GIB:.2f}", f"{full['seconds']:.0f}"]
    return [*cells, f"{full['bytes'] / ours['bytes']:.1f}×", f"{apart:.0e}"]


def available() -> int:
    """Memory that a process can still get, in bytes."""
    fields = dict(entry.split(":") for entry in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def in_process(way: str, tokens: int, vocab_size: int, hidden_size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--out", os.devnull, "--case", way, str(tokens)]
    command += ["--vocab-size", str(vocab_size), "--hidden-size", str(hidden_size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def page(lines: list[list[str]], vocab_size: int, hidden_size: int) -> str:
    note = f"""Vocabulary V = {vocab_size:,}, hidden size {hidden_size}, float32, every token of a row of T carries loss. Peak resident
memory above what stood before the loss (inputs excluded; the gradients of hidden states and embedding included, which
for the embedding is {4 * vocab_size * hidden_size / GIB:.2f} GiB)."""
    header = ["T", "logits GiB", "ours GiB", "ours s", "full GiB", "full s", "full / ours", "apart"]
    return f"""{common.head("Memory of the loss", ("torch",), note)}
{common.table(header, lines)}
- *logits*: one float32 array [T, V]. *Ours* is `w2sr.logprobs.summed_logprobs` with its backward; *full* is
  `cross_entropy(hidden @ weight.T)` with its backward. *Apart*: the larger relative difference of loss and of the norm of
  the embedding's gradient.
- "Does not fit" is computed: {FULL_COPIES} arrays of that size (logits, log-softmax, gradient) against the memory that the
  machine had free. It was not run.
- Seconds are wall time of loss and backward, once, and are no comparison of speed: the machine did other work too.

Not measured: bfloat16, GPUs, and the rest of the model.
"""


if __name__ == "__main__":
    main()
