"""Uses of chance: named, in one home, and independent of each other."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from w2sr import chance
from w2sr.chance import Use
from w2sr.corruption import Corruption, corrupt_traces
from w2sr.datamodules import TraceDataModule
from w2sr.metrics import poisson_weights
from w2sr.rollouts.sampling import noise_key
from w2sr.selection import select
from w2sr.shards import shard_number
from w2sr.types import Trace

PACKAGE = Path(chance.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "chance.py")
USES: tuple[Use, ...] = get_args(Use)
NUM, BINS = 4000, 4
MAX_CHI2 = 50.0
"""Of 15 degrees of freedom: one pair of independent uses exceeds it with probability 1.2e-5, one of all 253 pairs with
0.3 %. The numbers are fixed, so the test gives the same result in every run."""


def chi2(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Pearson's statistic of the table of two columns in [0, 1), BINS x BINS cells of equal expectation."""
    counts = np.bincount((x_N * BINS).astype(int) * BINS + (y_N * BINS).astype(int), minlength=BINS * BINS)
    return float(((counts - len(x_N) / BINS**2) ** 2).sum() / (len(x_N) / BINS**2)) if len(x_N) else np.nan


def names(num: int = NUM) -> list[str]:
    return [f"gsm8k/{number}" for number in range(num)]


def traces(num: int = NUM) -> list[Trace]:
    return [
        Trace(name, "gsm8k", f"Problem {name}?", "7", "teacher", r"3 + 4 = 7, so \boxed{7}.", "stop")
        for name in names(num)
    ]


def right(made: Sequence[Trace]) -> list[Trace]:
    return [replace(trace, verdict="correct", answer="7", answer_rule="boxed") for trace in made]


# ---- every pair of uses


def test_chi2_sees_two_uses_of_one_number() -> None:
    drawn_N = np.array([chance.uniform("choose", 0, name) for name in names()])
    assert chi2(drawn_N, drawn_N) > 100 * MAX_CHI2 and chi2(drawn_N, 1 - drawn_N - 1e-9) > 100 * MAX_CHI2
    slightly_N = np.where(np.arange(NUM) % 8 == 0, drawn_N, np.roll(drawn_N, 1))
    assert chi2(drawn_N, slightly_N) > MAX_CHI2, "one number in eight is shared"


def test_any_two_uses_are_independent() -> None:
    columns: dict[str, np.ndarray] = {use: _column(use) for use in USES}
    assert len(columns) == len(USES) >= 20
    wrong = {
        (one, other): value
        for one, other in combinations(columns, 2)
        if (value := chi2(columns[one], columns[other])) > MAX_CHI2
    }
    assert not wrong
    assert all(abs(column.mean() - 0.5) < 0.025 for column in columns.values()), "5.5 standard errors of 1/√(12 · 4000)"


def _column(use: Use) -> np.ndarray:
    """What a use draws for each of 4,000 problems, with seed 0 and otherwise equal names."""
    if use == "packing":
        return chance.stream(use, NUM, 0, 0) * 2.0**-64
    if use in ("bootstrap", "minibatches"):
        return np.array([chance.stream(use, 1, f"0:{name}")[0] * 2.0**-64 for name in names()])
    if use == "puzzles":
        return np.array([chance.generator(use, f"knights/3/{name}").random() for name in names()])
    key: tuple[str | int, ...] = () if use == "shard" else (0, 0, 0) if use == "noise" else (0,)
    return np.array([chance.uniform(use, *key, name) for name in names()])


# ---- the uses themselves, through the functions that users call


def chosen_by_selection(made: list[Trace]) -> np.ndarray:
    kept = {trace.problem_id for trace in select(right(made), keep="P", num_traces=len(made) // 2).traces}
    return np.array([trace.problem_id in kept for trace in made])


def chosen_by_tokens(made: list[Trace]) -> np.ndarray:
    counted = [replace(trace, num_tokens=10) for trace in right(made)]
    kept = {trace.problem_id for trace in select(counted, keep="P", num_tokens=5 * len(made)).traces}
    return np.array([trace.problem_id in kept for trace in made])


def chosen_by_corruption(made: list[Trace]) -> np.ndarray:
    return np.array([Corruption("off_by_one", 0.5).chooses(trace) for trace in made])


def held_out(made: list[Trace]) -> np.ndarray:
    data = TraceDataModule(traces=[], held_out_frac=0.5)
    return np.array([data._is_held_out(trace) for trace in made])


def in_first_shard(made: list[Trace]) -> np.ndarray:
    return np.array([shard_number(trace.problem_id, 2) == 1 for trace in made])


def drawn_by_bootstrap(made: list[Trace]) -> np.ndarray:
    return np.array([poisson_weights(trace.problem_id, 1)[0] == 0 for trace in made])


def noise_is_low(made: list[Trace]) -> np.ndarray:
    return np.array([noise_key(0, trace.problem_id, 0) < 2**63 for trace in made])


CHOICES: tuple[Callable[[list[Trace]], np.ndarray], ...] = (
    chosen_by_selection,
    chosen_by_tokens,
    chosen_by_corruption,
    held_out,
    in_first_shard,
    drawn_by_bootstrap,
    noise_is_low,
)


def test_what_one_function_chooses_says_nothing_of_what_another_does() -> None:
    made = traces()
    chosen = {choose.__name__: choose(made) for choose in CHOICES}
    assert all(0.3 < column.mean() < 0.7 for column in chosen.values())
    for one, other in combinations(chosen, 2):
        x_N, y_N = chosen[one], chosen[other]
        error = (x_N.mean() * (1 - x_N.mean()) * y_N.mean() * (1 - y_N.mean()) / NUM) ** 0.5
        covariance = (x_N & y_N).mean() - x_N.mean() * y_N.mean()
        assert abs(covariance) < 4.5 * error, f"{one} and {other}: {covariance / error:.1f} standard errors"


def test_a_corruption_hits_its_share_of_the_selected_traces() -> None:
    # 2,000 of 8,871 at rate 0.3: 600 ± 20.5 traces. Four standard errors are 82.
    made, report = corrupt_traces(traces(8871), Corruption("off_by_one", 0.3))
    assert report.num_corrupted == report.num_chosen > 2400
    selected = select(right(made), keep="P", num_traces=2000).traces
    assert abs(sum(bool(trace.corruption) for trace in selected) - 600) < 82


def test_problems_with_many_traces_are_not_preferred_where_one_of_them_is_kept_at_random() -> None:
    # Problem 0 ... 199 have 8 traces, the others 1. 200 of 400 are kept: 100 ± 7 of either kind.
    many = [replace(trace, sample_index=index) for trace in traces(200) for index in range(8)]
    distinct = [replace(trace, completion=f"{trace.sample_index} {trace.completion}") for trace in many]
    made = right(distinct + traces(400)[200:])
    kept = select(made, keep="P", max_per_problem=1, choose="random", num_traces=200).traces
    assert abs(sum(int(trace.problem_id.split("/")[1]) < 200 for trace in kept) - 100) < 30


def test_a_cut_of_a_mixture_keeps_the_shares_of_its_parts() -> None:
    # 100 of 1,000 right and 100 of 200 wrong ones; of these 200, 100: 50 ± 5 of either part.
    made = right(traces(1000)) + [replace(t, verdict="incorrect", answer="8") for t in traces(1200)[1000:]]
    mix = [{"keep": "P", "num_traces": 100}, {"keep": "N", "num_traces": 100}]
    kept = select(made, keep="all", mix=mix, num_traces=100).traces
    assert abs(sum(trace.verdict == "correct" for trace in kept) - 50) < 20


# ---- no other source, and no name for two uses

OTHER_SOURCES = {
    "rollouts/patience.py": "decides when a server is asked again, never what is sampled",
    "rollouts/weight_sync.py": "a name that no other run has",
    "puzzles/knights.py": "draws from the generator that it is given",
    "puzzles/ordering.py": "draws from the generator that it is given",
    "miniature/world.py": "made the shipped problems, which are pinned by their file; its text begins with the split",
    "miniature/pretrain.py": "made the shipped models",
    "flops.py": "values of matrices that are only timed",
    "policy/probe.py": "token ids and directions of a comparison, the same for every policy",
    "verbs/export.py": "token ids on which two models are compared",
}
CONTENT_HASHES = {
    "chat.py",
    "curriculum.py",
    "datamodules/steps.py",
    "distillation/plan.py",
    "miniature/world.py",
    "rows/cells.py",
    "scores/likelihood.py",
    "scores/sidecars.py",
    "token_cache.py",
    "trace_page/page.py",
    "traces/store.py",
}
"""Files that hash contents: there no function that hashes uses a seed, or the hash as a number."""
SOURCE = re.compile(
    r"^(?:import|from) (?:random|secrets|uuid)\b|\brandom\.Random\(|\bnp\.random\b|numpy\.random"
    r"|torch\.(?:rand\w*|multinomial|Generator|bernoulli|normal)\(|\bos\.urandom|\.(?:bernoulli|exponential|normal)_\(",
    re.MULTILINE,
)


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_no_other_file_draws() -> None:
    drawing = {name_of(path) for path in FILES if SOURCE.search(path.read_text())}
    assert drawing == set(OTHER_SOURCES)
    made = {name_of(path) for path in FILES if re.search(r"\bRandom\(", path.read_text())}
    assert made == {"rollouts/patience.py", "miniature/world.py", "miniature/pretrain.py"}
    seeded = [name_of(path) for path in FILES if "manual_seed(" in path.read_text()]
    assert seeded == ["miniature/pretrain.py", "modules/optimization.py", "policy/probe.py"]
    text = (PACKAGE / "modules/optimization.py").read_text()
    assert text.count("manual_seed(") == 1 == text.count('torch.manual_seed(chance.integer("dropout"')


def test_no_other_file_hashes_for_a_choice() -> None:
    hashing = {name_of(path) for path in FILES if re.search(r"hashlib|blake2|\bhash\(", path.read_text())}
    assert hashing == CONTENT_HASHES
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.Lambda) and "hashlib" in ast.unparse(node):
                if name_of(path) == "miniature/world.py":
                    continue
                words = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
                words |= {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
                assert not words & {"seed", "_seed", "from_bytes"}, f"{name_of(path)}: {ast.unparse(node)}"


def calls(text: str) -> list[str]:
    """The uses that a file's calls of `chance` and of a selection's `draw` name; "?" for one that is no literal."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_chance = ast.unparse(node.func.value) == "chance"
        of_context = ast.unparse(node.func.value) in ("context", "self") and node.func.attr in ("draw", "in_turn")
        if of_chance or of_context:
            found.append(node.args[0].value if isinstance(node.args[0], ast.Constant) else "?")
    return found


def test_each_use_has_one_call_and_each_call_a_use() -> None:
    by_file = {name_of(path): calls(path.read_text()) for path in FILES}
    assert by_file["selection/gates.py"].count("?") == 2, "draw and in_turn, which hand their use on"
    named = Counter(use for file, uses in by_file.items() for use in uses if use != "?")
    assert named == Counter(USES)
    assert [file for file, uses in by_file.items() if "?" in uses] == ["selection/gates.py"]


def test_the_scan_sees_what_it_looks_for() -> None:
    assert calls('chance.uniform("keep", 1)\ncontext.draw(use, "a")\nother.draw("x")') == ["keep", "?"]
    bad = ("import random", "x = np.random.default_rng(0)", "torch.rand(3)", "torch.multinomial(p, 1)", "x.normal_(0)")
    assert all(SOURCE.search(text) for text in bad)
    assert not SOURCE.search("# a random number\nnp.randomly\nfrom w2sr import chance")


# ---- bits on which stored and published results depend


@pytest.mark.parametrize(
    ("use", "key", "bits"),
    [
        ("noise", (0, 2, 0, "gsm8k/1"), "noise 0|2|0|gsm8k/1"),
        ("shard", ("gsm8k/1",), "shard gsm8k/1"),
        ("held_out", (0, "gsm8k/1"), "held_out 0|gsm8k/1"),
        ("order", (0, 3, "gsm8k/1"), "order order|0|3|gsm8k/1"),
        ("corrupted", (0, "gsm8k/1"), "corrupted corrupted|0|gsm8k/1"),
    ],
)
def test_the_hashed_text_is_pinned(use: Use, key: tuple[str | int, ...], bits: str) -> None:
    import hashlib

    text = bits.split(" ", 1)[1].encode()
    assert chance.integer(use, *key) == int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
