"""Decontamination against a slow obvious reference, on texts that the eye can compare, and on the real sets."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from w2sr.cli import main
from w2sr.decontaminate import Overlap, decontaminate, words
from w2sr.problems import read_problems
from w2sr.types import Problem


def problems(texts: Sequence[str], name: str = "train") -> list[Problem]:
    return [Problem(f"{name}/{at}", name, text, "1") for at, text in enumerate(texts)]


def test_equal_texts_are_found_whatever_their_case_width_and_spacing() -> None:
    train = problems(["What is  2 + 2?", "WHAT IS\n2 + 2?", "What is ２ + 2?", "What is 2 - 2?", "What is 2 + 2"])
    found = decontaminate(train, {"quiz": problems(["what is 2 + 2? "], "quiz")})
    assert [match.problem.problem_id for match in found.matches] == ["train/0", "train/1", "train/2"]
    assert [problem.problem_id for problem in found.clean] == ["train/3", "train/4"], (
        "another operator, another problem"
    )
    assert found.removed_ids == {"train/0", "train/1", "train/2"}
    assert found.counts() == {"quiz": {"exact": 3, "overlap": 0}}
    assert found.num_short == 2


def test_the_share_is_that_of_one_benchmark_problem() -> None:
    # 3-grams of "a b c d e f": abc bcd cde def. The first shares abc, the second cde and def, the third none.
    train, overlap = problems(["a b c d e f"]), Overlap(ngram=3, max_overlap=0.5)
    others = {"one": problems(["a b c x"], "one"), "two": problems(["x c d e f", "f e d c b a"], "two")}
    (match,) = decontaminate(train, others, overlap).matches
    assert (match.benchmark, match.other.problem_id, match.gate, match.share) == ("two", "two/0", "overlap", 0.5)
    assert not decontaminate(train, others, Overlap(3, 0.51)).matches, "3 of 4, but of two problems"
    assert not decontaminate(train, {}, overlap).matches


def test_signs_are_words() -> None:
    assert words("If x+1 = $2, ok?") == ["if", "x", "+", "1", "=", "$", "2", ",", "ok", "?"]


def naive(train: Sequence[Problem], others: Sequence[Problem], overlap: Overlap) -> list[float]:
    """Every training problem with every other one: the greatest share."""
    shares = []
    for problem in train:
        own = words(problem.problem)
        grams = {tuple(own[at : at + overlap.ngram]) for at in range(len(own) - overlap.ngram + 1)}
        best = 0.0
        for other in others:
            text = words(other.problem)
            theirs = [tuple(text[at : at + overlap.ngram]) for at in range(len(text) - overlap.ngram + 1)]
            best = max(best, sum(gram in theirs for gram in grams) / len(grams) if grams else 0.0)
        shares.append(best)
    return shares


def test_it_equals_comparing_every_pair() -> None:
    rng, overlap = random.Random(5), Overlap(ngram=3, max_overlap=0.4)
    train, others = (
        problems([" ".join(rng.choices("abcd", k=rng.randint(0, 14))) for _ in range(60)], name) for name in ("t", "o")
    )
    shares = dict(zip([problem.problem_id for problem in train], naive(train, others, overlap), strict=True))
    found = decontaminate(train, {"o": others}, overlap)
    equal = {problem.problem for problem in others}
    assert {match.problem.problem_id for match in found.matches} == {
        problem.problem_id for problem in train if problem.problem in equal or shares[problem.problem_id] >= 0.4
    }
    by_overlap = [match for match in found.matches if match.gate == "overlap"]
    assert all(match.share == shares[match.problem.problem_id] for match in by_overlap)
    assert len(by_overlap) > 5 and len(found.clean) > 5 and len(by_overlap) < len(found.matches)


@pytest.mark.parametrize(("ngram", "max_overlap"), [(0, 0.5), (13, 0.0)])
def test_settings_that_cannot_be_are_refused(ngram: int, max_overlap: float) -> None:
    with pytest.raises(ValueError, match="needs ngram >= 1 and max_overlap > 0"):
        Overlap(ngram, max_overlap)


def test_the_papers_training_set_holds_2936_problems_of_math_test_and_none_of_math500(shared_data: Path) -> None:
    columns = {"problem_id": "id", "problem": "problem", "reference_answer": "answer"}
    train, test, math500 = (
        read_problems(shared_data / "problems" / f"{name}.jsonl.gz", columns, source=name)
        for name in ("math_lvl3to5_8k", "math_test", "math500")
    )
    found = decontaminate(train, {"math500": math500, "math_test": test})
    counts = found.counts()
    assert (counts["math500"]["exact"], counts["math_test"]["exact"]) == (0, 2936)
    assert counts["math500"]["overlap"] > 10 and 150 < counts["math_test"]["overlap"] < 250
    assert len(found.clean) + len(found.matches) == 8523


# ---- the verb


def test_the_verb_prints_counts_and_writes_the_lines_that_may_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, quiz, out = (tmp_path / name for name in ("train.jsonl", "quiz.csv", "clean.jsonl"))
    rows = [{"q": text, "n": at} for at, text in enumerate(["One?", "Two?", "Three?"])]
    train.write_text("\n".join([json.dumps(rows[0]), "", *map(json.dumps, rows[1:])]))
    quiz.write_text('problem,answer\n"two? ",2\n')
    words = ["decontaminate", str(train), "--against", str(quiz), "--column", "q"]
    main([*words, "--out", str(out)])
    printed = capsys.readouterr().out
    assert "1 of 3 training problems are removed" in printed and f"{quiz}: 1 exact, 0 by overlap" in printed
    assert f"exact (1.00): {train}:3: Two?" in printed and f"{quiz}" in printed
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[0], rows[2]]
    with pytest.raises(SystemExit):
        main([*words, "--out", str(out)])
    assert "clean.jsonl is there already" in capsys.readouterr().err


def test_the_verb_reads_a_trace_store_and_writes_ids(tiny_world: object, tmp_path: Path) -> None:
    store = tiny_world.traces  # type: ignore[attr-defined]
    main(["decontaminate", str(store), "--against", str(tiny_world.benchmark), "--out", str(tmp_path / "ids")])  # type: ignore[attr-defined]
    ids = (tmp_path / "ids").read_text().splitlines()
    assert len(ids) == 20 and all(name.startswith("miniature/") for name in ids)
