"""Writes the miniature's data: `python -m w2sr.miniature.build problems` and `... traces`.

`problems` writes the validation and test problems and the first training problems. `traces` lets the shipped teacher
answer training problems, greedily and once each, as the paper does, verifies what it wrote and stores it: nothing in
the store was made by a script.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections import Counter
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from w2sr.chat import Chat
from w2sr.distillation import Stamp, distill
from w2sr.miniature.world import SOURCE, Split, problems
from w2sr.policy import load_policy
from w2sr.rollouts import EmbeddedGenerator, sample_requests
from w2sr.traces import TraceWriter
from w2sr.types import Sampling
from w2sr.verify import Verifier

FOLDER = Path(__file__).parent
SIZES: dict[Split, int] = {"validation": 300, "test": 1000, "train": 16000}
MAX_SHIPPED = 1000
"""So many problems of a split are files: of the training problems, which the shipped traces answer, the first."""
SEED = 20_505
TEACHER = "w2sr/miniature/teacher"


def write_problems(split: Split, path: Path) -> None:
    """Writes a split as JSON lines, the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(problem._asdict()) for problem in problems(split, SIZES[split], seed=SEED)[:MAX_SHIPPED]]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def write_traces(folder: Path, teacher: Path) -> Counter[str]:
    """Samples, verifies and stores the teacher's traces. Returns the verdicts' counts."""
    asked = {problem.problem_id: problem for problem in problems("train", SIZES["train"], seed=SEED)}
    chat, policy = Chat.load(teacher), load_policy(teacher)
    generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode)
    requests = [request for problem in asked.values() for request in sample_requests(problem, chat)]
    sampling = Sampling(temperature=0.0, max_new_tokens=160, seed=SEED)
    stamp = Stamp(TEACHER, chat.template_hash, f"w2sr embedded, transformers {metadata.version('transformers')}")
    verdicts: Counter[str] = Counter()
    with TraceWriter(folder) as writer, Verifier(["boxed"]) as verifier:
        for trace in distill(requests, asked, generator, {SOURCE: verifier}, sampling, stamp):
            verdicts[trace.verdict] += 1
            writer.append(replace(trace, seconds=-1.0))  # the same store on every machine
        writer.seal()
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["problems", "traces"])
    parser.add_argument("--out", type=Path, default=FOLDER, help="the miniature's folder")
    args = parser.parse_args()
    if args.what == "problems":
        for split in SIZES:
            write_problems(split, args.out / "data" / f"{split}.jsonl.gz")
        return
    folder = args.out / "traces"
    if folder.exists():
        shutil.rmtree(folder)
    verdicts = write_traces(folder, args.out / "teacher")
    print(f"{folder}: {sum(verdicts.values()):,} traces, {dict(verdicts)}")


if __name__ == "__main__":
    main()
