"""The recipe of a store: written once, compared by everyone after, and what shards lack by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from w2sr.shards import Shard, shard_number
from w2sr.traces import Recipe, claim, read_recipe, shard_states, write_store
from w2sr.types import Trace

RECIPE = Recipe(
    teacher="weak-7",
    engine="Embedded",
    template="simple",
    stop_token="</s>",
    instruction="",
    template_hash="0123456789abcdef",
    sampling={"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 77, "seed": 5},
    calculator={},
    num_samples=2,
    problems={"toy": {"num_problems": 9, "sha256": "aa", "rules": ["boxed"], "kind": "math"}},
    problems_by_shard=[4, 5],
)


def test_the_first_writes_and_the_next_agrees(tmp_path: Path) -> None:
    claim(tmp_path / "new", RECIPE)
    assert read_recipe(tmp_path / "new") == RECIPE
    claim(tmp_path / "new", RECIPE)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["recipe.json"], "no lock is left behind"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calculator": {"close": "</t>"}}, "calculator.close: there None, here '</t>'"),
        ({"teacher": "weak-8"}, "teacher: there 'weak-7', here 'weak-8'"),
        ({"sampling": {**RECIPE.sampling, "seed": 6}}, "sampling.seed: there 5, here 6"),
        ({"template_hash": "f"}, "template_hash: there '0123456789abcdef', here 'f'"),
        ({"template_date": "2026-12-01", "template_hash": "f"}, "template_date: there '', here '2026-12-01'"),
        ({"problems": {}}, "problems.toy.num_problems: there 9, here None"),
        ({"problems_by_shard": [9]}, "number of shards: there 2, here 1"),
        ({"problems_by_shard": [4, 6]}, "problems_by_shard: there [4, 5], here [4, 6]"),
    ],
)
def test_another_recipe_is_refused_with_what_differs(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    claim(tmp_path, RECIPE)
    with pytest.raises(ValueError, match="holds traces that were made otherwise") as refusal:
        claim(tmp_path, replace(RECIPE, **changes))
    assert said in [line.strip() for line in str(refusal.value).splitlines()]
    assert read_recipe(tmp_path) == RECIPE


def test_another_day_is_named_and_not_the_hash_of_it(tmp_path: Path) -> None:
    claim(tmp_path, replace(RECIPE, template_date="2026-11-30"))
    with pytest.raises(ValueError, match="template_date: there '2026-11-30', here '2026-12-01'") as refusal:
        claim(tmp_path, replace(RECIPE, template_date="2026-12-01", template_hash="f"))
    assert "template_hash" not in str(refusal.value)


def test_a_recipe_from_before_dates_is_read(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE)
    content = json.loads((tmp_path / "recipe.json").read_text())
    del content["template_date"]
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    assert read_recipe(tmp_path) == RECIPE


def test_a_store_without_recipe_is_no_store_of_this_run(tmp_path: Path) -> None:
    write_store(tmp_path, [Trace("toy/1", "toy", "1 + 1?", "2", "weak-7", "2")])
    with pytest.raises(ValueError, match=r"holds traces, but no recipe.json"):
        claim(tmp_path, RECIPE)
    with pytest.raises(ValueError, match="was not written by `predict`"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"teacher": "x"}', json.dumps({"problems_by_shard": 3})])
def test_a_damaged_recipe_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"recipe.json is damaged"):
        read_recipe(tmp_path)


def test_what_a_shard_lacks() -> None:
    """Four problems of shard 1 and five of shard 2, two samples each: 8 and 10 traces."""
    ids = [f"toy/{number}" for number in range(60)]
    first = [name for name in ids if shard_number(name, 2) == 1][:4]
    second = [name for name in ids if shard_number(name, 2) == 2][:5]
    keys = [(name, "weak-7", index) for name in [*first, *second] for index in range(2)]
    assert [state.num_missing_traces for state in shard_states(RECIPE, keys)] == [0, 0]
    keys.remove((second[0], "weak-7", 1))
    keys.remove((second[1], "weak-7", 0))
    keys.remove((second[1], "weak-7", 1))
    state = shard_states(RECIPE, keys)[1]
    assert state == (Shard(2, 2), 3, 5, 3), "one problem lacks a sample, one both"
    assert shard_states(RECIPE, [])[0] == (Shard(1, 2), 0, 4, 8)
