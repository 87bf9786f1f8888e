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
from w2sr.verify import Verifier, usable_references

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
    letters = Counter(problem.reference_answer[0] for problem in problems)
    assert set(letters) == set("ABCD")
    assert all(30 <= count <= 70 for count in letters.values())  # 50 expected, standard deviation 6.1
    for number, problem in enumerate(problems):
        lines = problem.problem.splitlines()
        assert lines[0] == f"Which {number}?"
        assert problem.reference_answer in lines[1:] and problem.reference_answer[1:] == f") right {number}"
        assert sorted(line[3:] for line in lines[1:]) == ["1", "2", "3", f"right {number}"]
    again = read_choice_problems(GPQA[::-1], GPQA_COLUMNS, seed=5, source="gpqa")
    assert again[::-1] == problems
    assert read_choice_problems(GPQA, GPQA_COLUMNS, seed=6, source="gpqa") != problems
    with pytest.raises(ValueError, match="seed=None keeps"):
        read_choice_problems(GPQA, GPQA_COLUMNS, seed=None, source="gpqa")


def test_lists_of_options_with_a_letter_or_a_text() -> None:
    rows = [{"problem": "Where?", "options": ["A) bank", "B) Bath", "C) C"], "answer": "B", "source": "s"}]
    by_letter = {"options": "options", "reference_answer": "answer"}
    assert read_choice_problems(rows, by_letter, seed=None)[0][2:4] == ("Where?\nA) bank\nB) Bath\nC) C", "B) Bath")
    shuffled = {read_choice_problems(rows, by_letter, seed=seed)[0][2:4] for seed in range(60)}
    assert len(shuffled) == 6
    assert all(gold.endswith(") Bath") and gold in text for text, gold in shuffled)
    plain = [{**rows[0], "options": ["Apple", "Bread", "Cheese"], "answer": "Cheese"}]
    by_text = {"options": "options", "correct": "answer"}
    assert read_choice_problems(plain, by_text, seed=None)[0][2:4] == (
        "Where?\nA) Apple\nB) Bread\nC) Cheese",
        "C) Cheese",
    )


LABELLED = [
    ["A) bank", "B) Bath", "C) C"],
    {"A": "bank", "B": "Bath", "C": "C"},
    {"label": ["A", "B", "C"], "text": ["bank", "Bath", "C"]},
    [{"label": "A", "text": "bank"}, {"label": "B", "text": "Bath"}, {"label": "C", "text": "C"}],
    "A) bank B) Bath C) C",
    "(A) bank\n(B) Bath\n(C) C",
]


@pytest.mark.parametrize("options", LABELLED, ids=str)
def test_every_form_of_options_gives_the_same_problem(options: object) -> None:
    rows = [{"problem": "Where?", "options": options, "answer": "B", "source": "s"}]
    by_letter = {"options": "options", "reference_answer": "answer"}
    (problem,) = read_choice_problems(rows, by_letter, seed=None)
    assert problem[2:4] == ("Where?\nA) bank\nB) Bath\nC) C", "B) Bath")
    (shuffled,) = read_choice_problems(rows, by_letter, seed=7)
    assert shuffled.problem != problem.problem and shuffled.reference_answer[1:] == ") Bath"


def test_labels_that_are_not_the_letters_in_order_are_followed() -> None:
    row = {"problem": "?", "source": "s", "o": {"label": ["1", "2"], "text": ["x", "y"]}, "answer": 2}
    (problem,) = read_choice_problems([row], {"options": "o", "reference_answer": "answer"}, seed=None)
    assert problem[2:4] == ("?\nA) x\nB) y", "B) y")


def test_a_gold_that_another_option_resembles_is_named_by_its_letter_alone() -> None:
    for options, reference in (
        (["5", "-5"], "A) 5"),
        (["5", "$5$."], "A"),
        (["x y", "X_{Y}"], "A"),
        (["a", "b"], "A) a"),
    ):
        row = {"problem": "?", "source": "s", "o": options, "g": "A"}
        (problem,) = read_choice_problems([row], {"options": "o", "reference_answer": "g"}, seed=None)
        assert problem.reference_answer == reference


def test_always_the_first_letter_is_right_as_often_as_chance() -> None:
    """The golds of the file are all A, so that without the shuffle the constant answer would win every time."""
    rows = [{"problem": f"Which {n}?", "options": [f"{m}" for m in range(5)], "answer": "A"} for n in range(2_000)]
    problems = read_choice_problems(rows, {"options": "options", "reference_answer": "answer"}, seed=1, source="s")
    for letter in "ABCDE":
        with Verifier(["boxed"], "choice") as verifier:
            verdicts = verifier.verify_all([(rf"\boxed{{{letter}}}", p.reference_answer) for p in problems])
        share = sum(verdict.is_correct for verdict in verdicts) / len(problems)
        assert abs(share - 0.2) < 0.036, letter  # 4 standard deviations of 0.0089
    unshuffled = read_choice_problems(rows, {"options": "options", "reference_answer": "answer"}, seed=None, source="s")
    assert {problem.reference_answer[0] for problem in unshuffled} == {"A"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "D"}, "the gold 'D' is not the letter of one of 3 options"),
        ({"answer": "bank"}, "the gold 'bank' is not the letter"),
        ({"options": "bank or Bath"}, "options is 'bank.*neither a list of texts nor a text"),
        ({"options": "A) bank C) Bath"}, "options is 'A.*neither a list"),
        ({"options": "A) bank B) Bath B) C"}, "options is 'A.*neither a list"),
        ({"options": {"label": ["A", "B"], "text": ["bank"]}}, "labels .* do not name 1 options"),
        ({"options": {"label": ["B", "B"], "text": ["bank", "Bath"]}}, "labels .* do not name 2 options"),
        ({"options": {"A": "bank", "B": None}}, "options: one is None, not text"),
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
    assert shuffle_options("?", options, 2, 11, "gpqa/3") == ("?\nA) q\nB) s\nC) p\nD) r", "D")
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


LETTER = {"problem_id": "id", "options": "options", "reference_answer": "answer"}
TEXT = {"problem_id": "id", "options": "options", "correct": "answer"}


@pytest.mark.parametrize(
    ("file", "columns", "num_options", "num_rows", "num_twice"),
    [
        ("nonmath/commonsenseqa_train", LETTER, 5, 9741, 42),
        ("nonmath/commonsenseqa_dev", LETTER, 5, 1221, 6),
        ("nonmath/strategyqa", TEXT, 2, 2290, 0),
        ("nonmath/bigbench_date", TEXT, 6, 369, 0),
        ("problems/aqua", LETTER, 5, 254, 4),
        ("problems/sat_math", LETTER, 4, 32, 0),
    ],
)
def test_real_multiple_choice(
    shared_data: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    columns: dict[str, str],
    num_options: int,
    num_rows: int,
    num_twice: int,
) -> None:
    """Whole files: every row is read, or offers the gold twice and is counted; every reference can be used."""
    path = shared_data / f"{file}.jsonl.gz"
    problems = read_choice_problems(path, columns, seed=1, source="s", on_bad_row="skip")
    assert len(problems) + num_twice == num_rows
    if num_twice:
        assert f"skipped {num_twice} bad rows" in caplog.text and "twice among its options" in caplog.text
    with Verifier(["boxed"], "choice") as verifier:
        usable, complaints = usable_references(problems, verifier, "skip")
        right = verifier.verify_all([(rf"\boxed{{{p.reference_answer[:1]}}}", p.reference_answer) for p in problems])
        by_text = [p for p in problems if len(p.reference_answer) > 1]
        texts = verifier.verify_all([(f"\\boxed{{{p.reference_answer[3:]}}}", p.reference_answer) for p in by_text])
        constant = verifier.verify_all([(r"\boxed{A}", p.reference_answer) for p in problems])
    assert (len(usable), complaints) == (len(problems), [])
    assert all(verdict.is_correct for verdict in right)
    wrong = [p.reference_answer for p, verdict in zip(by_text, texts, strict=True) if not verdict.is_correct]
    assert all(len(text) == 4 or "boxed" in text for text in wrong), wrong  # a text of one letter is a letter
    share, chance = sum(verdict.is_correct for verdict in constant) / len(problems), 1 / max(2, num_options)
    assert (
        abs(share - chance) < 4 * (chance * (1 - chance) / len(problems)) ** 0.5 + 0.02
    )  # some rows have fewer options


def test_real_yes_or_no(shared_data: Path) -> None:
    columns = {"problem_id": "id", "reference_answer": "answer"}
    problems = read_problems(shared_data / "nonmath" / "strategyqa.jsonl.gz", columns, source="strategyqa")
    with Verifier(["yes_no"], "yes_no") as verifier:
        usable, _ = usable_references(problems, verifier, "error")
        verdicts = verifier.verify_all([("So the answer is yes.", p.reference_answer) for p in problems])
    assert len(usable) == 2290
    assert sum(verdict.is_correct for verdict in verdicts) == sum(p.reference_answer == "Yes" for p in problems) == 1071


def test_booleans_are_reference_answers_of_yes_no() -> None:
    rows = [{"problem": "Is it?", "answer": True}, {"problem": "Is it not?", "answer": False}]
    problems = read_problems(rows, {"reference_answer": "answer"}, source="s")
    assert [problem.reference_answer for problem in problems] == ["true", "false"]
    with Verifier(["boxed"], "yes_no") as verifier:
        labels = [verifier.verify(r"\boxed{yes}", problem.reference_answer).label for problem in problems]
    assert labels == ["correct", "incorrect"]
