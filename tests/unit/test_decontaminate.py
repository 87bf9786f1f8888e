"""Decontamination against a slow obvious reference, on texts that the eye can compare, and on the real sets."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from w2sr.cli import main
from w2sr.decontaminate import Overlap, decontaminate, words_of
from w2sr.problems import read_problems
from w2sr.types import Problem

DEFAULTS = Overlap()


def problems(texts: Sequence[str], name: str = "train") -> list[Problem]:
    return [Problem(f"{name}/{at}", name, text, "1") for at, text in enumerate(texts)]


def removed(train: Sequence[str], benchmark: Sequence[str], overlap: Overlap = DEFAULTS) -> list[bool]:
    """Which of the training texts are removed."""
    found = decontaminate(problems(train), {"quiz": problems(benchmark, "quiz")}, overlap)
    assert len(found.clean) + len(found.matches) == len(train)
    return [f"train/{at}" in found.removed_ids for at in range(len(train))]


def test_equal_texts_are_found_whatever_their_case_width_and_spacing() -> None:
    train = problems(["What is  2 + 2?", "WHAT IS\n2 + 2?", "What is ２ + 2?", "What is 2 - 2?", "Find 2 + 2"])
    found = decontaminate(train, {"quiz": problems(["what is 2 + 2? "], "quiz")})
    gates = [(match.problem.problem_id, match.gate) for match in found.matches]
    assert gates == [("train/0", "exact"), ("train/1", "exact"), ("train/2", "exact"), ("train/4", "overlap")]
    assert [problem.problem_id for problem in found.clean] == ["train/3"], "another operator, another problem"
    assert found.counts() == {"quiz": {"exact": 3, "overlap": 1}}
    assert not any(removed(["Find 2 + 2"], ["What is 2 + 2?"], Overlap(max_overlap=1.1))), "only equal texts"


LONG = "Janet's 12 ducks lay 16 eggs a day. She sells the rest for $2 each. How much does she make every day?"
PREAMBLE = "Read the problem with care, check every number twice, and write down each step of your reasoning. "
INSTRUCTION = " Please reason step by step, and put your final answer within \\boxed{}."


@pytest.mark.parametrize(
    "text", [LONG, r"Compute $\sin 60^\circ$.", "Evaluate $\\log_2 8$", "How many ways are there?"]
)
@pytest.mark.parametrize("before", ["", PREAMBLE, PREAMBLE + "\n\n", "Question: ", "<|im_start|>user\n"])
@pytest.mark.parametrize("behind", ["", INSTRUCTION, "\n" + INSTRUCTION, "\nAnswer:", "<|im_end|>\n"])
def test_a_benchmark_problem_is_found_inside_a_longer_text(text: str, before: str, behind: str) -> None:
    is_question_without_data = text.startswith("How many ways") and before not in ("", PREAMBLE[:0])
    assert removed([before + text + behind], [text]) == [not is_question_without_data]


def test_a_preamble_without_a_full_stop_hides_no_long_problem() -> None:
    assert removed([PREAMBLE.rstrip(". ") + " " + LONG, "and then " + LONG[9:]], [LONG, LONG[9:]]) == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            r"Let $f(x) = \dfrac12 x^{2}$. Find $f(3).$",
            r"Let \( f(x)=\frac{1}{2}x^2 \). What is the value of \(f(3)\)?",
        ),
        (r"If \[x \leq 1{,}000,\] then find $x^2$.", "If $x\\le 1000$, find $x²$."),
        (r"Is $\left| a - b \right| \ne 5$ at $45^{\circ}$?", "Is $|a-b| \\neq 5$ at 45°?"),
        (
            "The centres of two circles are 5 apart. Their radii are 2 and 1. How far are the circles' edges apart?",
            "The centers of two circles are 5 apart. Their radii are 2 and 1. How far are the circles’ edges apart?",
        ),
        ("A two-digit number ends in 5. Which?", "A two digit number ends in 5. Which?"),
        ("Which is even?\nA) 3 and 5\nB) 4 and 6\nC) 7 and 9", "Which is even?\n(A) 7 and 9\n(B) 3 and 5\n(C) 4 and 6"),
        (
            "A triangle has sides of 5, 12 and 13. What is its area? Express it in simplest form.",
            "A triangle has sides of 5, 12 and 13. What is its area?",
        ),
    ],
)
def test_two_spellings_of_a_problem_are_one_problem(one: str, other: str) -> None:
    assert removed([one], [other]) == removed([other], [one]) == [True]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LONG, LONG.replace("16", "17")),
        (LONG, LONG.replace("makes", "loses").replace("sells", "buys")),
        ("What is the minimum of $x^2+3x+5$?", "What is the maximum of $x^2+3x+5$?"),
        ("What is the sum of any six odd numbers below 30?", "What is the sum of any four odd numbers below 30?"),
        ("Solve $x^2 = 100$ for x.", "Solve $x2 = 100$ for x."),
        ("Solve $2^{x+1} = 8$ for x.", "Solve $2^x+1 = 8$ for x."),
        ("Solve $x - 5 = 8$ for x.", "Solve $x + 5 = 8$ for x."),
        ("Is $x < 5$ if $x^2 = 8$?", r"Is $x \le 5$ if $x^2 = 8$?"),
        ("Find $f'(2)$ where $f(x) = 3x^2 + 1$.", "Find $f(2)$ where $f(x) = 3x^2 + 1$."),
        ("Find $5! + 3$ of 8 and 9.", "Find $5 + 3$ of 8 and 9."),
        ("Share 60 in the ratio 2:3 now.", "Share 60 in the ratio 2, 3 now."),
        ("What is $2 + 2 + 3$?", "What is $2 + 2$?"),
        (r"Compute \[\tan 5^\circ + \tan 45^\circ.\]", r"Compute $\tan 45^\circ$."),
        ("How many three-digit numbers exist, all of whose digits are 2?", "How many three-digit numbers exist?"),
        (
            "There are 12 million cells of 5 kinds. How many of a kind?",
            "There are 12 billion cells of 5 kinds. How many of a kind?",
        ),
        ("A triangle has sides 3, 4, 5. Find $x + y$.", "Find $x + y$."),
        ("The triangle with 90 degrees ABCDE is drawn twice.", "The triangle with 90 degrees ABCDF is drawn twice."),
        ("Find 1/2 of 2 1/2 of x.", "Find 1/2 of 21/2 of x."),
    ],
)
def test_twins_are_two_problems(one: str, other: str) -> None:
    assert one != other and removed([one, other], [other]) == [False, True]


def test_the_smaller_part_of_a_benchmark_problem_is_another_problem() -> None:
    assert removed(["Find 2 + 2."], ["Find 2 + 2. Then multiply the result by 7 and subtract 5."]) == [False]


def test_words_of_a_formula() -> None:
    assert words_of(r"If $x+1 = \$2$, ok?").words == ("x", "+", "1", "=", "2", "ok")
    assert words_of(r"\frac{a+b}{2}, x^{10}, \{1, 2\}").words[:8] == ("\\frac", "{", "a", "+", "b", "}", "2", "x")
    assert words_of("").words == () == words_of("Find the value.").words
    assert removed(["Find the value.", "", "7"], ["", "Find the", "7?"]) == [False, True, True]


def naive(train: str, benchmark: str) -> bool:
    """Every place of one problem in the other, word by word. Sentences end in `.`."""

    def stands(inner: list[str], outer: list[str]) -> bool:
        words = [word for word in inner if word != "."]
        for start in range(len(outer)):
            rest = [word for word in outer[start:] if word != "."]
            if rest[: len(words)] != words or not words or outer[start] == ".":
                continue
            end = start
            for _ in words:
                while outer[end] == ".":
                    end += 1
                end += 1
            if (start == 0 or outer[start - 1] == ".") and (end == len(outer) or outer[end] == "."):
                return True
        return False

    own, theirs = train.split(), benchmark.split()
    sizes = [sum(word != "." for word in words) for words in (own, theirs)]
    return stands(theirs, own) or (2 * sizes[0] >= sizes[1] and stands(own, theirs))


def test_it_equals_comparing_every_pair() -> None:
    rng = random.Random(5)
    texts = [" ".join(["7", *rng.choices(["mm", "kk", "7", "."], k=rng.randint(1, 7))]) for _ in range(300)]
    train, others = texts[:200], texts[200:]
    found = removed(train, others, Overlap(ngram=1, max_overlap=0.01))
    assert found == [any(naive(one, other) for other in others) for one in train]
    assert 20 < sum(found) < 180


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
    assert (counts["math500"]["overlap"], counts["math_test"]["overlap"]) == (1, 8), (
        "other spellings of the same problems"
    )
    assert len(found.clean) + len(found.matches) == 8523


@pytest.mark.parametrize("name", ["math500", "gsm8k_test"])
def test_no_real_problem_passes_with_an_instruction_or_a_preamble(shared_data: Path, name: str) -> None:
    columns = {"problem_id": "id", "problem": "problem", "reference_answer": "answer"}
    texts = [
        problem.problem
        for problem in read_problems(shared_data / "problems" / f"{name}.jsonl.gz", columns, source=name)
    ]
    preamble = PREAMBLE * 3
    assert len(texts) in (500, 1319) and len(preamble.split()) > 43
    assert all(removed([text + INSTRUCTION for text in texts], texts))
    assert all(removed([preamble + text for text in texts], texts))


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
