"""Texts that mean the same have one spelling and one id; texts that do not have two."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sr.normal_text import fold
from w2sr.problems import read_problems
from w2sr.rows import problem_hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Solve x² = 9.", "Solve x2 = 9."),
        ("Solve x¹⁰ = 9.", "Solve x10 = 9."),
        ("Solve x^{10} = 9.", "Solve x10 = 9."),
        ("Find 10⁻³.", "Find 10-3."),
        ("Find a₁ + a₂.", "Find a1 + a2."),
        ("Is 2² + 1 even?", "Is 22 + 1 even?"),
        ("Find 2½ + 1.", "Find 21⁄2 + 1."),
        ("Find 1½ + 1.", "Find 11/2 + 1."),
        ("Find f′(2).", "Find f(2)."),
        ("Find −5 + 2.", "Find 5 + 2."),
        ("Is x < 2?", "Is x ≤ 2?"),
        ("Is x = 2?", "Is x ≠ 2?"),
        ("Find 2 × 3.", "Find 2 + 3."),
        ("Find ① + 2.", "Find 1 + 2."),
        ("A square of 5㎡", "A square of 5m2"),
        ("x²³", "x²3"),
    ],
)
def test_what_differs_in_meaning_has_two_ids(one: str, other: str) -> None:
    assert problem_hash(one) != problem_hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Solve x² = 9.", "Solve x^2 = 9."),
        ("Solve x¹⁰ = 9.", "Solve x^{10} = 9."),
        ("Find a₁.", "Find a_1."),
        ("Find 10⁻³.", "Find 10^{-3}."),
        ("Find ½.", "Find 1/2."),
        ("Find 2½.", "Find 2 1/2."),
        ("What  IS １２\n", "what is 12"),
        ("ﬁnd 𝑥", "find x"),
        ("e\u0301", "é"),
    ],
)
def test_what_means_the_same_has_one_id(one: str, other: str) -> None:
    assert problem_hash(one) == problem_hash(other)


def test_every_other_character_is_folded_as_by_nfkc() -> None:
    others = {
        character
        for character in map(chr, range(0x110000))
        if not 0xD800 <= ord(character) < 0xE000 and fold(character) != unicodedata.normalize("NFKC", character)
    }
    tags = {unicodedata.decomposition(character).split()[0] for character in others}
    assert tags == {"<circle>", "<super>", "<sub>", "<fraction>", "<square>"}
    assert {c for c in others if unicodedata.decomposition(c).startswith("<square>")} == set("㍸㍹㎟㎠㎡㎢㎣㎤㎥㎦㎨㎯")


@given(st.text())
def test_folding_is_done_after_one_pass(text: str) -> None:
    assert fold(fold(text)) == fold(text)


def test_five_ids_of_real_problems_differ_from_those_by_nfkc(shared_data: Path) -> None:
    columns = {"problem": "problem", "reference_answer": "answer"}
    changed: dict[str, int] = {}
    for path in sorted((shared_data / "problems").glob("*.jsonl.gz")):
        problems = read_problems(path, columns, source="x", on_bad_row="skip")
        folded = [(fold(problem.problem), unicodedata.normalize("NFKC", problem.problem)) for problem in problems]
        changed[path.name.split(".")[0]] = sum(ours != nfkc for ours, nfkc in folded)
    assert sum(changed.values()) == changed["gsm8k_train"] + changed["gsm8k_test"] == 4 + 1
