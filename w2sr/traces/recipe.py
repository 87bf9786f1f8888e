"""What all traces of one store have in common, and whether all of them are there.

    store/recipe.json   teacher, template, sampling, problems, shards; the first process writes it, the others compare

Traces of another teacher, template or sampling would be a mixture that no selection could take apart again, so a run
that differs from the recipe is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from w2sr.shards import Shard, shard_number
from w2sr.traces.locks import acquire, release
from w2sr.traces.store import TraceKey, is_store, replace_durably

RECIPE = "recipe.json"
RECIPE_LOCK = ".recipe.lock"


@dataclass(frozen=True)
class Recipe:
    """What every trace of a store was made with.

    Attributes:
        teacher: directory or hub name.
        engine: class of the engine; another one samples by another law of chance.
        template, stop_token, instruction: how a problem becomes a prompt, and `template_hash` what comes of it.
        template_date: the day that prompts show, as 2026-11-30; "" where the template shows none.
        sampling: the fields of `Sampling`.
        calculator: the fields of `Calculator`, or nothing where the teacher has none.
        num_samples: traces a problem.
        problems: name of a source → its number of problems, a hash of them, and how their answers are graded.
        problems_by_shard: how many problems each shard has; their number is the number of shards.
    """

    teacher: str
    engine: str
    template: str
    stop_token: str
    instruction: str
    template_hash: str
    sampling: dict[str, object]
    calculator: dict[str, object]
    num_samples: int
    problems: dict[str, dict[str, object]]
    problems_by_shard: list[int]
    template_date: str = ""

    @property
    def num_problems(self) -> int:
        return sum(self.problems_by_shard)


class ShardState(NamedTuple):
    """How far a shard is: problems with all their samples, all problems, and traces that are not there yet."""

    shard: Shard
    num_done: int
    num_problems: int
    num_missing_traces: int


def claim(store: Path, recipe: Recipe) -> None:
    """Makes the store one of this recipe, or finds that it is one already.

    Raises:
        ValueError: the store is of another recipe (what differs is listed), or holds traces and no recipe.
    """
    store.mkdir(parents=True, exist_ok=True)
    lock = acquire(store / RECIPE_LOCK, blocking=True)
    try:
        if not (store / RECIPE).exists():
            if is_store(store):
                raise ValueError(
                    f"{store} holds traces, but no {RECIPE} that says how they were made. Write to another "
                    "trainer.default_root_dir."
                )
            temporary = store / f".{RECIPE}.tmp"
            temporary.write_text(json.dumps(asdict(recipe), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            replace_durably(temporary, store / RECIPE)
    finally:
        release(store / RECIPE_LOCK, lock)
    if differences := recipe_differences(read_recipe(store), recipe):
        listed = "".join(f"\n  {key}: there {there!r}, here {here!r}" for key, there, here in differences)
        raise ValueError(
            f"{store} holds traces that were made otherwise:{listed}\nGo on as they were made, or write to another "
            f"trainer.default_root_dir (or remove {store})."
        )


def read_recipe(store: Path) -> Recipe:
    """The recipe of a store.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    file = store / RECIPE
    if not file.is_file():
        raise ValueError(f"{file} does not exist: {store} was not written by `predict`. Check the path.")
    try:
        content = json.loads(file.read_bytes())
        known = {field.name: content[field.name] for field in fields(Recipe) if field.name != "template_date"}
        recipe = Recipe(**known, template_date=content.get("template_date", ""))  # older ones do not have it
        counts = [*recipe.problems_by_shard, recipe.num_samples]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"counts {counts!r:.100}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}). Restore it from a copy.") from error
    return recipe


def recipe_differences(there: Recipe, here: Recipe) -> list[tuple[str, object, object]]:
    """(key, there, here) of everything in which two recipes differ; nested keys are joined by dots."""
    flat_there, flat_here = flat(asdict(there)), flat(asdict(here))
    num_shards = len(there.problems_by_shard), len(here.problems_by_shard)
    if num_shards[0] != num_shards[1]:  # then every shard holds other problems, and the lists say nothing
        del flat_there["problems_by_shard"], flat_here["problems_by_shard"]
        flat_there["number of shards"], flat_here["number of shards"] = num_shards
    if flat_there["template_date"] != flat_here["template_date"]:  # which the hash is of: it says nothing more
        del flat_there["template_hash"], flat_here["template_hash"]
    keys = dict.fromkeys([*flat_there, *flat_here])
    return [(key, flat_there.get(key), flat_here.get(key)) for key in keys if flat_there.get(key) != flat_here.get(key)]


def flat(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The values of nested mappings under their keys joined by dots."""
    values: dict[str, object] = {}
    for key, value in content.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values


def shard_states(recipe: Recipe, keys: Iterable[TraceKey]) -> list[ShardState]:
    """How far each shard is, given the keys of all traces that are there, each once."""
    count = len(recipe.problems_by_shard)
    samples = Counter(problem_id for problem_id, _, _ in keys)
    num_traces: Counter[int] = Counter()
    num_done: Counter[int] = Counter()
    for problem_id, num_samples in samples.items():
        number = shard_number(problem_id, count)
        num_traces[number] += num_samples
        num_done[number] += num_samples >= recipe.num_samples
    return [
        ShardState(
            Shard(number, count),
            num_done[number],
            num_problems,
            num_problems * recipe.num_samples - num_traces[number],
        )
        for number, num_problems in enumerate(recipe.problems_by_shard, start=1)
    ]
