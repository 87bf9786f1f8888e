"""Memory: the peak of our chunked log-probabilities beside full logits, at a vocabulary of 151,936.

    python benchmarks/memory.py --out docs/results/memory.md
    python benchmarks/memory.py --policy --out docs/results/grpo_memory.md

With `--policy` it is the loss of GRPO: log-probabilities and entropies of each token, ratio, clip and entropy bonus.

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

from w2sr.logprobs import summed_logprobs, token_logprobs_and_entropies
from w2sr.losses import Objective, policy_loss
from w2sr.types import PackedBatch, PolicyRow

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
    parser.add_argument(
        "--policy", action="store_true", help="the loss of GRPO instead of that of SFT, at 8,192 tokens"
    )
    parser.add_argument("--case", nargs=2, metavar=("WAY", "TOKENS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measured(args.case[0], int(args.case[1]), args.vocab_size, args.hidden_size)))
        return
    if args.policy:
        common.write(args.out, policy_page(args.vocab_size, args.hidden_size))
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
    elif way == "policy":
        loss = policy(*token_logprobs_and_entropies(hidden, weight, targets))
    elif way == "policy-full":
        logprobs = (hidden @ weight.T).log_softmax(-1)
        loss = policy(logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1))
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


def policy(logprobs: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
    """The loss of one rollout of these tokens, whose policy has moved since it was sampled."""
    count = len(logprobs)
    old = logprobs.detach() + 0.1 * torch.randn(count)
    whole = torch.zeros(count, dtype=torch.int64)
    packed = PackedBatch(whole, whole, whole, torch.tensor([0, count], dtype=torch.int32), count)
    row = PolicyRow(packed, torch.ones(count), torch.full((count,), 1 / count), old, whole, old)
    return policy_loss(logprobs, entropies, row, Objective(entropy=0.01))[0]


def policy_page(vocab_size: int, hidden_size: int) -> str:
    tokens = 8_192
    ours = in_process("policy", tokens, vocab_size, hidden_size)
    small = [in_process(way, 512, vocab_size, hidden_size) for way in ("policy", "policy-full")]
    apart = max(abs(small[1][key] - small[0][key]) / abs(small[1][key]) for key in ("loss", "grad"))
    note = f"""Vocabulary V = {vocab_size:,}, hidden size {hidden_size}, float32; one completion of {tokens:,} tokens: log-probabilities, entropies,
clipped ratio, entropy bonus, and the backward pass. Peak resident memory above what stood before (inputs excluded)."""
    return f"""{common.head("Memory of the policy loss", ("torch",), note)}
{common.table(["T", "one array [T, V] GiB", "peak GiB", "s"], [[f"{tokens:,}", f"{4 * tokens * vocab_size / GIB:.2f}", f"{ours['bytes'] / GIB:.2f}", f"{ours['seconds']:.0f}"]])}
The logits are never whole: the peak, with the gradients of hidden states and embedding in it ({4 * vocab_size * hidden_size / GIB:.2f} GiB for the
embedding), is less than one array of that size, of which full logits need several. Beside full logits at T = 512, loss and norm of the
embedding's gradient differ by {apart:.0e} at most. Seconds are wall time on a machine that did other work too.
"""


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
