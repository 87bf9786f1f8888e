"""Generation: the embedded engine beside plain `model.generate`, on the same prompts with long-tailed lengths.

    OMP_NUM_THREADS=2 python benchmarks/generation.py --out docs/results/generation.md

Each side is tried in several settings; then the best of each alternate.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from w2sr.chat import Chat
from w2sr.miniature.world import MAX_STEPS, generate
from w2sr.policy import load_policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import SampleRequest, Sampling

AIM = 3.0
BATCH_SIZES = (16, 64, 256)
MINIATURE = Path(__file__).resolve().parent.parent / "w2sr" / "miniature"


class Job(NamedTuple):
    """Prompts, and how they are answered."""

    name: str
    model: Path
    sampling: Sampling
    prompts: list[tuple[int, ...]]


class Run(NamedTuple):
    """Wall and CPU seconds, and the token ids of each completion up to its stop token."""

    seconds: float
    cpu_s: float
    completions: list[tuple[int, ...]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.completions))


def jobs(num_problems: int) -> list[Job]:
    """The teacher on chains whose number of steps is geometric; the plain student at temperature 1, which mostly answers
    at once and now and then reasons."""
    rng = random.Random(0)
    steps = [min(MAX_STEPS, int(np.ceil(np.log(1 - rng.random()) / np.log(0.5)))) for _ in range(num_problems)]
    texts = [generate(rng, count).text() for count in steps]
    found = []
    for name, folder, temperature in (("teacher, greedy", "teacher", 0.0), ("plain student, T = 1", "student", 1.0)):
        chat = Chat.load(MINIATURE / folder)
        prompts = [tuple(chat.prompt_ids(text)) for text in texts]
        found.append(Job(name, MINIATURE / folder, Sampling(temperature, 1.0, 160), prompts))
    return found


def ours(job: Job, num_slots: int) -> Callable[[], Run]:
    """The embedded engine with its default settings."""
    chat, policy = Chat.load(job.model), load_policy(job.model)
    generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode, num_slots=num_slots)
    requests = [SampleRequest(str(number), 0, prompt) for number, prompt in enumerate(job.prompts)]

    def run() -> list[tuple[int, ...]]:
        found = {completion.problem_id: completion.token_ids for completion in generator.stream(requests, job.sampling)}
        return [found[request.problem_id] for request in requests]

    return lambda: timed(run)


def peer(job: Job, batch_size: int) -> Callable[[], Run]:
    """transformers' generate: batches in order, padded on the left, until the longest of a batch has ended."""
    chat = Chat.load(job.model)
    lm: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation="sdpa").eval()
    stops = list(chat.stop_token_ids)
    config = GenerationConfig(
        max_new_tokens=job.sampling.max_new_tokens,
        do_sample=job.sampling.temperature > 0,
        top_k=0,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )

    @torch.inference_mode()
    def run() -> list[tuple[int, ...]]:
        torch.manual_seed(0)
        found = []
        for start in range(0, len(job.prompts), batch_size):
            batch = job.prompts[start : start + batch_size]
            longest = max(map(len, batch))
            ids = torch.tensor([[stops[0]] * (longest - len(prompt)) + list(prompt) for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            out = lm.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:]
            found += [cut(row, stops) for row in out.tolist()]
        return found

    return lambda: timed(run)


def cut(token_ids: Sequence[int], stops: Sequence[int]) -> tuple[int, ...]:
    """Up to and including the first stop token."""
    end = next((at for at, token in enumerate(token_ids) if token in stops), len(token_ids))
    return tuple(token_ids[: end + 1])


def timed(run: Callable[[], list[tuple[int, ...]]]) -> Run:
    began, cpu_began = time.perf_counter(), time.process_time()
    completions = run()
    return Run(time.perf_counter() - began, time.process_time() - cpu_began, completions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--problems", type=int, default=1024)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128, 256], help="what our engine is tried with")
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours and of the peer's best, alternating")
    args = parser.parse_args()
    sections = []
    for job in jobs(args.problems):
        sections.append(section(job, args.slots, args.rounds))
        print(sections[-1], flush=True)
    note = f"""{torch.get_num_threads()} threads on both sides, float32, {args.problems:,} prompts, at most 160 new tokens, the two sides in turns
({args.rounds} rounds, the median counts). Loading is outside of the clock."""
    common.write(
        args.out, f"{common.head('Generation', ('torch', 'transformers'), note)}\n{chr(10).join(sections)}{END}"
    )


END = """
- *generate*: `model.generate` of transformers with SDPA attention and its own cache; batches in the order of the prompts,
  padded on the left. *w2sr*: the embedded engine; finished sequences leave their slots and waiting prompts take them.
- Rates are completion tokens (with the stop token) a second of CPU time of the process; wall seconds stand beside them.
- Greedy completions are compared token by token. Where logits of two tokens are closer than the rounding of a batch's
  shape, the two sides may choose differently.

Not run: GPUs, and `generate` under torch.compile.
"""


def section(job: Job, slots: Sequence[int], rounds: int) -> str:
    """Measures one job and says it in a table: every setting of both sides once, then the best of each in turns."""
    small = job._replace(prompts=job.prompts[:32])
    ours(small, slots[0])()
    peer(small, 16)()
    tried_ours = {f"w2sr, {number} slots": ours(job, number) for number in slots}
    tried_peer = {f"generate, batch {size}": peer(job, size) for size in BATCH_SIZES}
    once = {name: run() for name, run in (tried_ours | tried_peer).items()}
    best, best_peer = (min(tried, key=lambda name: once[name].cpu_s) for tried in (tried_ours, tried_peer))
    pairs = [(tried_ours[best](), tried_peer[best_peer]()) for _ in range(rounds)]
    sides = {best: [pair[0] for pair in pairs], best_peer: [pair[1] for pair in pairs]}
    rates = {name: median(run.num_tokens / run.cpu_s for run in runs) for name, runs in sides.items()}
    theirs = rates[best_peer]
    lines = [line(name, runs, rates[name], theirs) for name, runs in sides.items()]
    lines += [line(f"{name}, once", [run], run.num_tokens / run.cpu_s, theirs) for name, run in once.items()]
    lengths = np.array([len(completion) for completion in pairs[0][0].completions])
    same = ""
    if job.sampling.temperature == 0:
        equal = sum(a == b for a, b in zip(pairs[0][0].completions, pairs[0][1].completions, strict=True))
        same = f" {equal:,} of {len(lengths):,} completions are equal token by token."
    verdict = "reached" if rates[best] >= AIM * theirs else "NOT reached"
    tail = ", ".join(f"{np.percentile(lengths, q):.0f}" for q in (50, 90, 99, 100))
    return f"""## {job.name}

Completion tokens at the 50th, 90th, 99th and 100th percentile: {tail}.{same}
**At least {AIM:g}×: {verdict} ({rates[best] / theirs:.2f}×).**

{common.table(["side", "CPU s", "wall s", "completion tokens", "tokens / CPU s", "ratio"], lines)}"""


def line(name: str, runs: list[Run], rate: float, theirs: float) -> list[str]:
    cpu, wall = (", ".join(f"{getattr(run, key):.1f}" for run in runs) for key in ("cpu_s", "seconds"))
    return [name, cpu, wall, f"{runs[0].num_tokens:,}", f"{rate:,.0f}", f"{rate / theirs:.2f}×"]


if __name__ == "__main__":
    main()
