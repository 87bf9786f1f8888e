"""What the tests notice: a seeded sample of small changes to the core, each against the tests of its room.

    pip install cosmic-ray
    python benchmarks/mutation.py --log /tmp/mutation.jsonl --out docs/results/mutation.md

The changes are cosmic-ray's. Its own runner writes each of them into the source file and starts a process for it, which
imports torch and transformers anew for every mutant; here a process that has imported the libraries is forked, and only
the child sees the changed module. So no file is changed, and mutants that were tested are not tested again (`--log`).
Tests that start processes of their own do not see a mutant, and are not among those that run.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
REASONS = Path(__file__).with_name("mutation_reasons.json")
GRPO_STEP, SFT_STEP = "tests/numerics/test_grpo_step.py", "tests/numerics/test_sft_step.py"
GOLDEN = "tests/golden/test_curves.py"
OPTIMIZATION, COLLECT = "tests/unit/test_optimization.py", "tests/unit/test_collect.py"
TARGETS: dict[str, tuple[str, ...]] = {
    "w2sr/losses/*.py": ("tests/numerics/test_policy_losses.py", "tests/numerics/test_bandit.py"),
    "w2sr/advantages.py": ("tests/unit/test_advantages.py",),
    "w2sr/packing.py": ("tests/unit/test_packing.py", "tests/numerics/test_sft_gradient.py"),
    "w2sr/groups/*.py": ("tests/unit/test_groups.py", "tests/numerics/test_sharing.py", GRPO_STEP),
    "w2sr/metrics/*.py": ("tests/unit/test_metrics.py", "tests/numerics/test_pass_at_k.py"),
    "w2sr/selection/*.py": ("tests/unit/test_selection.py", "tests/unit/test_strategies.py"),
    "w2sr/modules/sft.py": (SFT_STEP, GOLDEN),
    "w2sr/modules/grpo.py": (GRPO_STEP, GOLDEN),
    "w2sr/modules/optimization.py": (OPTIMIZATION, SFT_STEP),
    "w2sr/modules/collect.py": (COLLECT, GRPO_STEP),
}
"""Files → the tests that have to notice a change there, with the doctests of the file itself."""
STEP = {"training_step", "_update", "_experience", "_collect", "_log_step", "_log_round", "num_steps"}
VALIDATION = {"validation_step", "on_validation_epoch_start", "on_validation_epoch_end", "configure_optimizers"}
ONLY = {"w2sr/modules/sft.py": STEP | VALIDATION, "w2sr/modules/grpo.py": STEP | {"configure_optimizers"}}
"""Of these files only so much: the rest loads, saves and names things, and is tested through the command line."""
SPARE_S = 60.0
"""A mutant has so many seconds more than thrice the unchanged tests; one that needs longer is noticed."""


@dataclass(frozen=True)
class Mutant:
    """One change of one line. `source` is a hash of the file that it was made from."""

    path: str
    operator: str
    occurrence: int
    line: int
    source: str

    @property
    def key(self) -> str:
        return f"{self.path}:{self.line} {self.operator} {self.occurrence} {self.source}"


def all_mutants(path: Path) -> Iterator[tuple[Mutant, tuple[int, int]]]:
    """Every mutant of a file with its place, but for annotations, which are never evaluated."""
    import parso  # noqa: F401  (before cosmic_ray, which imports a part of it first)
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    text = path.read_text()
    name, digest = str(path.relative_to(REPOSITORY)), hashlib.sha256(text.encode()).hexdigest()[:12]
    nodes, skipped = list(ast_nodes(get_ast(text))), list(_skipped_spans(ast.parse(text), ONLY.get(name)))
    for operator_name in plugins.operator_names():
        operator_class = plugins.get_operator(operator_name)
        if operator_class.arguments():
            continue
        operator = operator_class()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(places):
            if not any(begin <= place < end for begin, end in skipped):
                yield Mutant(name, operator_name, occurrence, place[0], digest), place


def _skipped_spans(tree: ast.AST, only: set[str] | None) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Annotations, and functions that are not among `only`."""
    for node in ast.walk(tree):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if only is not None and isinstance(node, ast.FunctionDef) and node.name not in only:
            parts.append(node)
        for part in parts:
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)


def sample(number: int, seed: int) -> list[tuple[Mutant, tuple[str, ...]]]:
    """So many mutants with their tests: places in random order, and one change at each place that still compiles."""
    at: dict[tuple[str, tuple[int, int]], list[Mutant]] = {}
    tests: dict[str, tuple[str, ...]] = {}
    for pattern, of_room in TARGETS.items():
        for path in sorted(REPOSITORY.glob(pattern)):
            for mutant, place in all_mutants(path):
                at.setdefault((mutant.path, place), []).append(mutant)
                tests[mutant.path] = (*of_room, mutant.path)
    rng = random.Random(seed)
    drawn = (rng.choice(at[place]) for place in rng.sample(sorted(at), len(at)))
    return [(mutant, tests[mutant.path]) for mutant in islice(filter(_compiles, drawn), number)]


def _compiles(mutant: Mutant) -> bool:
    try:
        compile(mutated(mutant), mutant.path, "exec")
    except SyntaxError:
        return False
    return True


def mutated(mutant: Mutant) -> str:
    """The changed source."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    text = (REPOSITORY / mutant.path).read_text()
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == mutant.source, f"{mutant.path} has changed meanwhile"
    changed = mutate_code(text, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    assert changed is not None, mutant
    return str(changed)


class Changed(importlib.machinery.SourceFileLoader):
    """Loads one module from other text than its file holds."""

    def __init__(self, fullname: str, path: str, text: str) -> None:
        super().__init__(fullname, path)
        self.text = text

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec", dont_inherit=True)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None


def tested(tests: Iterable[str], mutant: Mutant | None, limit_s: float) -> tuple[str, float]:
    """`killed`, `timeout` or `survived`, and the seconds, of the tests in a forked child."""
    text = None if mutant is None else mutated(mutant)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        _run_in_child(tests, mutant, text)
    while time.monotonic() - began < limit_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed", time.monotonic() - began
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", time.monotonic() - began


def _run_in_child(tests: Iterable[str], mutant: Mutant | None, text: str | None) -> None:
    import pytest

    status = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if mutant is not None and text is not None:
            name = mutant.path.removesuffix(".py").replace("/", ".")
            sys.meta_path.insert(0, Changed(name, str(REPOSITORY / mutant.path), text))
        # plain: the hook that rewrites assertions would load a module of the command line before ours does
        options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
        there = [str(REPOSITORY / test) for test in tests if (REPOSITORY / test).exists()]
        status = int(pytest.main([*options, *there]))
    finally:
        os._exit(status)


def preload() -> None:
    """Imports what every child needs, and nothing of w2sr."""
    import hypothesis  # noqa: F401
    import lightning.pytorch
    import lightning.pytorch.cli  # noqa: F401
    import parso  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401
    from transformers import AutoModelForCausalLM, Qwen3ForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "w2sr" for name in sys.modules), "a child imports w2sr itself"


def run(log: Path, number: int, seed: int) -> None:
    """Tests every mutant of the sample that the log does not hold."""
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(REPOSITORY))
    chosen = sample(number, seed)
    done = {Mutant(**json.loads(line)["mutant"]).key for line in _lines(log)}
    preload()
    baseline: dict[tuple[str, ...], float] = {}
    for place, (mutant, tests) in enumerate(chosen, 1):
        if mutant.key in done:
            continue
        room = tests[:-1]
        if room not in baseline:
            outcome, baseline[room] = tested(room, None, 1800.0)
            assert outcome == "survived", f"the unchanged source fails {room}: {outcome}"
        outcome, seconds = tested(tests, mutant, 3 * baseline[room] + SPARE_S)
        with log.open("a") as file:
            file.write(json.dumps({"mutant": asdict(mutant), "outcome": outcome, "seconds": round(seconds, 1)}) + "\n")
        print(f"{place}/{len(chosen)} {outcome} {seconds:.0f} s {mutant.key}", flush=True)


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def difference(mutant: Mutant) -> str:
    """The changed line, before and after."""
    before, after = (REPOSITORY / mutant.path).read_text().splitlines(), mutated(mutant).splitlines()
    for old, new in zip(before, after, strict=False):
        if old != new:
            return f"{old.strip()}  →  {' '.join(new.split())}"
    return f"{before[len(after)].strip()}  →  (left out)"


def page(log: Path, number: int, seed: int) -> str:
    """The results as Markdown."""
    outcomes = {Mutant(**row["mutant"]).key: row["outcome"] for row in map(json.loads, _lines(log))}
    reasons = json.loads(REASONS.read_text())
    rooms: dict[str, list[int]] = {}
    survivors: list[str] = []
    for mutant, _ in sample(number, seed):
        outcome = outcomes.get(mutant.key, "not run")
        room = next(pattern for pattern in TARGETS if Path(mutant.path).match(pattern))
        row = rooms.setdefault(room, [0, 0, 0, 0])
        row[0] += 1
        if outcome in ("killed", "timeout"):
            row[1] += 1
            continue
        text = difference(mutant)
        known = reasons.get(f"{mutant.path}: {text}", {"reason": f"**no reason is given** ({outcome})"})
        row[2 if known.get("equivalent") else 3] += 1
        kind = "equivalent" if known.get("equivalent") else outcome
        survivors.append(f"| `{mutant.path}` | `{text.replace('|', chr(92) + '|')}` | {kind} | {known['reason']} |")
    total = [sum(column) for column in zip(*rooms.values(), strict=True)]
    lines = [f"| {room} | {row[0]} | {row[1]} | {row[2]} | {row[3]} |" for room, row in sorted({**rooms}.items())] + [
        f"| all | {total[0]} | {total[1]} | {total[2]} | {total[3]} |"
    ]
    share = total[1] / max(1, total[0] - total[2])
    return PAGE.format(
        number=total[0], seed=seed, share=100 * share, killed=total[1], counted=total[0] - total[2],
        table="\n".join(lines), survivors="\n".join(survivors),
    )  # fmt: skip


PAGE = """# What the tests notice

`python benchmarks/mutation.py --mutants {number} --seed {seed} --log mutation.jsonl --out docs/results/mutation.md`
(needs `pip install cosmic-ray`)

{number} small changes of the source (cosmic-ray's operators: other operators of arithmetic and comparison, numbers one
more and one less, `not`, decorators left out, loops that do not run), at places drawn with seed {seed} from the
files below, one change a place. Each is run against the tests of its room (`TARGETS` in the script). Annotations are left out. Of
`modules/sft.py` and `modules/grpo.py` the training step and what it calls are changed (`ONLY`). The sample
follows from the files, so another version of them gives another one.

**{killed} of {counted} are noticed: {share:.1f} %.** Changes that no program can tell from the source are counted apart.

| files | changes | noticed | equivalent | not noticed |
|---|---|---|---|---|
{table}

## What is not noticed, and why

| file | change | | reason |
|---|---|---|---|
{survivors}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--log", type=Path, required=True, help="a line for each tested mutant; the run goes on from it"
    )
    parser.add_argument("--out", type=Path, help="the page of results")
    options = parser.parse_args()
    run(options.log, options.mutants, options.seed)
    if options.out is not None:
        options.out.write_text(page(options.log, options.mutants, options.seed))


if __name__ == "__main__":
    main()
