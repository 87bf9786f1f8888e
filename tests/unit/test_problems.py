"""Problems and multiple choice: read as mapped, refused with a reason, shuffled by seed and id alone."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w2sr.problems import problem_hash, read_choice_problems, read_problems, shuffle_options
from w2sr.types import Problem

ROWS = [
    {"problem": "1 + 1?", "answer": "2", "level": 3, "source": "sums", "id": "s/0"},
    {"problem": "2 + 2?", "answer": 4, "level": None, "source": "sums", "id": "s/1"},
]
EXPECTED = [Problem("s/0", "sums", "1 + 1?", "2", "3"), Problem("s/1", "sums", "2 + 2?", "4", "")]
COLUMNS = {"problem_id": "id", "reference_answer": "answer", "stratum": "level"}


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_every_format_gives_the_same_problems(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{**row, "answer": str(row["answer"])} for row in ROWS]), tmp_path / "p.parquet"
    )
    with (tmp_path / "p.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    for data in (
        write_jsonl(tmp_path / "p.jsonl", ROWS),
        write_jsonl(tmp_path / "p.jsonl.gz", ROWS),
        tmp_path / "p.parquet",
        tmp_path / "p.csv",
        ROWS,
    ):
        assert read_problems(data, COLUMNS) == EXPECTED, data


def test_names_of_our_own_need_no_columns_and_ids_follow_the_text() -> None:
    rows = [{"problem": "1 + 1?", "reference_answer": "2"}]
    problems = read_problems(rows, source="sums")
    assert problems == [Problem(f"sums/{problem_hash('1 + 1?')[:16]}", "sums", "1 + 1?", "2")]
    assert read_problems(rows, {"source": "=sums"}) == problems
    assert problem_hash("What  IS １２\n") == problem_hash("what is 12") != problem_hash("what is 13")


def test_an_empty_reference_answer_is_left_to_the_verifier() -> None:
    assert read_problems([{**ROWS[0], "answer": ""}], COLUMNS)[0].reference_answer == ""


def test_wrong_columns_are_refused_with_a_hint(tmp_path: Path) -> None:
    for columns, source, message in (
        ({}, None, r"no column 'reference_answer'\. Its columns: problem, answer, level"),
        ({"reference_answer": "anwser"}, None, r"no column 'anwser'\. Did you mean 'answer'"),
        ({"reference": "answer"}, None, r"columns.reference is not a field\. Did you mean 'reference_answer'"),
        ({"reference_answer": "answer", "source": "=x"}, "y", "contradict"),
    ):
        with pytest.raises(ValueError, match=message):
            read_problems(ROWS, columns, source=source)
    with pytest.raises(ValueError, match="no column 'source'"):
        read_problems([{"problem": "?", "reference_answer": "1"}])
    (tmp_path / "p.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        read_problems(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({**ROWS[0], "id": "s/1"}, "problem_id 's/1' is there already"),
        ({**ROWS[0], "id": "s/2", "answer": None}, "reference_answer .*None, not text"),
        ({**ROWS[0], "id": "s/2", "problem": " "}, "the problem is empty"),
        ({**ROWS[0], "id": "s/2", "problem": ["?"]}, r"problem .*\['\?'\], not text"),
    ],
)
def test_a_bad_row_is_named_or_skipped(bad: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=f"row 3: .*{reason}"):
        read_problems([*ROWS, bad], COLUMNS)
    assert read_problems([*ROWS, bad], COLUMNS, on_bad_row="skip") == EXPECTED
    assert "skipped 1 bad rows; the first: row 3" in caplog.text


GPQA = [
    {"Question": f"Which {number}?", "Correct Answer": f"right {number}\n", **{f"Wrong {n}": f"{n}" for n in (1, 2, 3)}}
    for number in range(200)
]
GPQA_COLUMNS = {"problem": "Question", "correct": "Correct Answer", "incorrect": ["Wrong 1", "Wrong 2", "Wrong 3"]}


def test_gpqa_golds_are_spread_over_the_letters_and_stay_right() -> None:
    problems = read_choice_problems(GPQA, GPQA_COLUMNS, seed=5, source="gpqa")
    letters = Counter(problem.reference_answer for problem in problems)
    assert set(letters) == set("ABCD")
    assert all(30 <= count <= 70 for count in letters.values())  # 50 expected, standard deviation 6.1
    for number, problem in enumerate(problems):
        lines = problem.problem.splitlines()
        assert lines[0] == f"Which {number}?"
        assert f"{problem.reference_answer}) right {number}" in lines[1:]
        assert sorted(line[3:] for line in lines[1:]) == ["1", "2", "3", f"right {number}"]
    again = read_choice_problems(GPQA[::-1], GPQA_COLUMNS, seed=5, source="gpqa")
    assert again[::-1] == problems
    assert read_choice_problems(GPQA, GPQA_COLUMNS, seed=6, source="gpqa") != problems
    with pytest.raises(ValueError, match="seed=None keeps"):
        read_choice_problems(GPQA, GPQA_COLUMNS, seed=None, source="gpqa")


def test_lists_of_options_with_a_letter_or_a_text() -> None:
    rows = [{"problem": "Where?", "options": ["A) bank", "B) Bath", "C) C"], "answer": "B", "source": "s"}]
    by_letter = {"options": "options", "reference_answer": "answer"}
    assert read_choice_problems(rows, by_letter, seed=None)[0][2:4] == ("Where?\nA) bank\nB) Bath\nC) C", "B")
    shuffled = {read_choice_problems(rows, by_letter, seed=seed)[0][2:4] for seed in range(60)}
    assert len(shuffled) == 6
    assert all(f"{letter}) Bath" in text for text, letter in shuffled)
    plain = [{**rows[0], "options": ["Apple", "Bread", "Cheese"], "answer": "Cheese"}]
    by_text = {"options": "options", "correct": "answer"}
    assert read_choice_problems(plain, by_text, seed=None)[0][2:4] == ("Where?\nA) Apple\nB) Bread\nC) Cheese", "C")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "D"}, "the gold 'D' is not the letter of one of 3 options"),
        ({"answer": "bank"}, "the gold 'bank' is not the letter"),
        ({"options": "A) bank B) Bath"}, "options is 'A.*not a list of texts"),
        ({"options": ["same", "same"]}, "has the gold 'same' twice"),
        ({"options": ["only"], "answer": "A"}, "has 1 options"),
    ],
)
def test_unusable_options_are_named(change: dict[str, object], reason: str) -> None:
    row = {"problem": "Where?", "options": ["bank", "Bath", "C"], "answer": "B", "source": "s", **change}
    with pytest.raises(ValueError, match=f"row 1: .*{reason}"):
        read_choice_problems([row], {"options": "options", "reference_answer": "answer"}, seed=1)


def test_the_form_of_the_options_must_be_one_of_three() -> None:
    for columns in ({}, {"options": "o"}, {"correct": "c"}, {"incorrect": ["i"]}, {"options": "o", "incorrect": "i"}):
        with pytest.raises(ValueError, match="it must map correct and incorrect,"):
            read_choice_problems(GPQA, columns, seed=1)
    with pytest.raises(ValueError, match=r"only columns.incorrect may name several"):
        read_choice_problems(GPQA, {**GPQA_COLUMNS, "problem": ["Question"]}, seed=1)
    with pytest.raises(ValueError, match=r"no column 'Wrong 4'\. Did you mean 'Wrong 3'"):
        read_choice_problems(GPQA, {**GPQA_COLUMNS, "incorrect": ["Wrong 4"]}, seed=1, source="gpqa")
    wrong = {**GPQA[0], "Wrong 2": None}
    with pytest.raises(ValueError, match=r"row 1: incorrect: one is None, not text"):
        read_choice_problems([wrong, *GPQA], GPQA_COLUMNS, seed=1, source="gpqa")
    with pytest.raises(ValueError, match="none of the options"):
        read_choice_problems(
            [{"problem": "?", "source": "s", "options": ["1", "2"], "c": "3"}],
            {"options": "options", "correct": "c"},
            seed=1,
        )


def test_the_shuffle_is_a_fixed_function_of_seed_and_id() -> None:
    options = ["p", "q", "r", "s"]
    assert shuffle_options("?", options, 2, 11, "gpqa/3") == ("?\nA) p\nB) r\nC) s\nD) q", "B")
    assert shuffle_options("?", options, 2, 11, "gpqa/4") != shuffle_options("?", options, 2, 11, "gpqa/3")


def test_real_problems(shared_data: Path) -> None:
    folder = shared_data / "problems"
    training = read_problems(folder / "math_lvl3to5_8k.jsonl.gz", COLUMNS, source="math")
    assert len(training) == 8523
    assert [p.problem_id for p in training if not p.reference_answer] == ["simplerl8k/5054", "simplerl8k/5158"]
    assert Counter(p.stratum for p in training).keys() == {"3", "4", "5"}
    assert len({problem_hash(p.problem) for p in training}) == 8521  # two are there twice, once with other spacing
    benchmark = read_problems(folder / "math500.jsonl.gz", COLUMNS, source="math500")
    assert not {problem_hash(p.problem) for p in training} & {problem_hash(p.problem) for p in benchmark}
    by_letter = {"problem_id": "id", "options": "options", "reference_answer": "answer"}
    aqua = read_choice_problems(folder / "aqua.jsonl.gz", by_letter, seed=1, source="aqua", on_bad_row="skip")
    assert len(aqua) == 250  # four rows offer the gold twice
    common = read_choice_problems(
        shared_data / "nonmath" / "commonsenseqa_dev.jsonl.gz", by_letter, seed=1, on_bad_row="skip"
    )
    assert len(common) == 1215  # six rows offer the gold twice
    dates = shared_data / "nonmath" / "bigbench_date.jsonl.gz"
    by_text = {"problem_id": "id", "options": "options", "correct": "answer"}
    assert len(read_choice_problems(dates, by_text, seed=1)) == 369
