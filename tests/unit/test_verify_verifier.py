"""The verifier as its callers use it, with real math-verify in its processes."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_answers import REFERENCE, hostile_answers

from w2sr.types import Problem
from w2sr.verify import Verifier, usable_references
from w2sr.verify import verifier as verifier_room
from w2sr.verify.workers import GradeTask, Outcome


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(rules=["boxed"], timeout_s=20.0, num_workers=1) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("answer", "reference", "label"),
    [
        ("18", "18", "correct"),
        ("1+x", "x+1", "correct"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", "correct"),
        ("0.333333", "1/3", "correct"),
        ("0.3333", "1/3", "incorrect"),
        (r"50\%", "0.5", "correct"),
        ("2, 1", "1,2", "correct"),
        ("(2,1)", "(1,2)", "incorrect"),
        ("x = 5", "5", "correct"),
        ("x = 6", "5", "incorrect"),
        ("35/7 = 5", "5", "correct"),
        ("x^2", "x^3", "incorrect"),
        ("[0,1)", "[0,9)", "incorrect"),
        ("atan(x)*x**2", r"x^2\arctan(x)", "correct"),
        (r"see ?? \frac{3}{4} ??", "3/4", "incorrect"),  # no search for numbers inside an answer that is no mathematics
    ],
)
def test_mathematics(verifier: Verifier, answer: str, reference: str, label: str) -> None:
    verdict = verifier.verify(rf"so it is $\boxed{{{answer}}}$.", reference)
    assert verdict.label == label, verdict
    assert (verdict.answer, verdict.rule) == (answer, "boxed")
    assert verdict.reason
    assert verdict.grader == "math-verify+exact"
    assert verdict.grader_version.startswith("w2sr 3, math-verify ")


def test_a_completion_without_answer(verifier: Verifier) -> None:
    verdict = verifier.verify("I do not know, perhaps 18", "18")
    assert (verdict.label, verdict.answer, verdict.rule) == ("no_answer", None, "")
    assert verdict.reason == "no answer by boxed"


def test_order_and_count_are_exact(verifier: Verifier) -> None:
    """Fast, slow, repeated and missing answers interleaved: |x+0| … |x+6| against |x+3|."""
    completions = [text for n in range(7) for text in (rf"\boxed{{|x+{n}|}}", rf"\boxed{{{n}}}", "nothing")]
    references = ["|3+x|", "3", "3"] * 7
    labels = [verdict.label for verdict in verifier.verify_all(zip(completions, references, strict=True))]
    expected = [label for n in range(7) for label in ["correct" if n == 3 else "incorrect"] * 2 + ["no_answer"]]
    assert labels == expected
    assert verifier.verify_all([]) == []


def test_equal_pairs_are_graded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    verifier = Verifier(num_workers=1)

    def count(tasks: list[object]) -> list[Outcome]:
        seen.append(len(tasks))
        return [Outcome((True,), "counted")] * len(tasks)

    monkeypatch.setattr(verifier._pool, "run", count)
    pairs = [(r"\boxed{|x+1|}", "|1+x|")] * 8 + [(r"\boxed{|x+2|}", "|2+x|")]
    assert [verdict.label for verdict in verifier.verify_all(pairs)] == ["correct"] * 9
    verifier.verify(*pairs[0])
    assert seen == [2]  # two different pairs, and nothing the second time


def test_a_timeout_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [Outcome(None, "too slow"), Outcome((True,), "equal")]
    verifier = Verifier(num_workers=1)
    monkeypatch.setattr(verifier._pool, "run", lambda tasks: [outcomes.pop(0)])
    pair = (r"\boxed{|x+1|}", "|1+x|")
    first = verifier.verify(*pair)
    assert (first.label, first.answer, first.reason) == ("timeout", "|x+1|", "too slow")
    assert verifier.verify(*pair).label == "correct"


def test_a_timeout_is_not_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs that only math-verify decides: equal, too slow, different."""
    verifier = Verifier(num_workers=1)
    answers = {"|x+1|": True, "|x+2|": None, "|x+3|": False}

    def outcome(task: GradeTask) -> Outcome:
        (equal,) = [answers[text] for text in task.pairs[0] if text in answers]
        return Outcome(None if equal is None else (equal,) * len(task.pairs), "by the test")

    monkeypatch.setattr(verifier._pool, "run", lambda tasks: [outcome(task) for task in tasks])
    assert verifier.equal_all([(answer, "|1+x|") for answer in answers]) == [True, False, False]


def test_plain_numbers_start_no_process() -> None:
    with Verifier(rules=["json:answer", "last_number"]) as verifier:
        pairs = [('{"answer": "$1,026"}', "1026"), ("so 27 eggs", "26")]
        assert [verdict.label for verdict in verifier.verify_all(pairs)] == ["correct", "incorrect"]
        assert [verdict.rule for verdict in verifier.verify_all(pairs)] == ["json:answer", "last_number"]
        assert verifier._pool._workers == []


def test_kind_exact_compares_text_without_mathematics() -> None:
    with Verifier(rules=["answer_tag"], kind="exact") as verifier:
        assert verifier.verify("<answer> (B). </answer>", "b").label == "correct"
        assert verifier.verify("<answer>1/2</answer>", "0.5").label == "incorrect"
        assert (verifier.grader, verifier.version) == ("exact", "w2sr 3")


def test_the_verifier_works_in_a_thread_and_after_pickling(verifier: Verifier) -> None:
    copy = pickle.loads(pickle.dumps(Verifier(["hash"], timeout_s=19.0, num_workers=1, prompt_opens_think=True)))
    labels: list[str] = []

    def grade() -> None:
        with copy:
            labels.append(copy.verify("</think> #### |x+1|", "|1+x|").label)
            labels.append(copy.verify("#### |x+1|", "|1+x|").label)

    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert labels == ["correct", "no_answer"]  # the second never ended its thinking


def test_hostile_answers_cost_their_limit_and_nothing_else() -> None:
    """Every third of the corpus between innocent answers; benchmarks/hostile_answers.py runs it whole."""
    chosen = hostile_answers()[::3]
    assert len(chosen) >= 35
    pairs = []
    for index, (_, answer) in enumerate(chosen):
        pairs.append((rf"\boxed{{{answer}}}", REFERENCE))
        pairs.append((rf"\boxed{{y_{{1}}+{index}}}", f"{index}+y_{{1}}"))
    with Verifier(timeout_s=1.0, num_workers=2) as verifier:
        # The first answers of a fresh process on a busy machine must not be mistaken for slow ones.
        verdicts = verifier.verify_all(pairs)
    hostile, innocent = verdicts[::2], verdicts[1::2]
    assert {verdict.label for verdict in hostile} >= {"incorrect", "timeout"}  # some did run out of time
    wrong = [(name, verdict) for (name, _), verdict in zip(chosen, hostile, strict=True) if verdict.is_correct]
    assert not wrong
    assert [verdict.label for verdict in innocent] == ["correct"] * len(innocent)


def test_a_process_that_never_closes_the_verifier_ends_cleanly() -> None:
    code = (
        "from w2sr.verify import Verifier; v = Verifier(num_workers=1)\n"
        r"print(v.verify(r'\boxed{|x+1|}', '|1+x|').label)"
    )
    root = Path(verifier_room.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    assert (done.stdout, done.stderr) == ("correct\n", "")


def test_the_room_imports_neither_sympy_nor_torch() -> None:
    code = "import sys, w2sr.verify; print(sorted({'torch', 'sympy', 'math_verify', 'lightning'} & set(sys.modules)))"
    root = Path(verifier_room.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"


def test_wrong_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown kind of verification 'maths'"):
        Verifier(kind="maths")  # type: ignore[arg-type]


def test_math_verify_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ValueError, match="pip install math-verify"):
        Verifier()
    Verifier(kind="exact")


GOOD = Problem("set/0", "set", "1+1?", "2")


def test_unusable_references_are_named_or_skipped(verifier: Verifier) -> None:
    bad = [GOOD._replace(problem_id=f"set/{row}", reference_answer="") for row in range(1, 8)]
    with pytest.raises(ValueError, match="7 of 8 problems have a reference answer that cannot be used") as caught:
        usable_references([GOOD, *bad], verifier, "error")
    message = str(caught.value)
    assert "the reference answer is empty (7 of them: set/1 '', set/2 '', set/3 '' and 4 more)" in message
    assert "on_bad_reference=skip" in message
    usable, complaints = usable_references([bad[0], GOOD, bad[1]], verifier, "skip")
    assert usable == [GOOD]
    assert complaints == ["the reference answer is empty (2 of them: set/1 '', set/2 '')"]
    assert usable_references([GOOD], verifier, "error") == ([GOOD], [])
    with pytest.raises(ValueError, match="on_bad_reference='drop'"):
        usable_references([GOOD], verifier, "drop")  # type: ignore[arg-type]


def test_the_unusable_references_of_the_papers_own_set_are_found(verifier: Verifier, shared_data: Path) -> None:
    with gzip.open(shared_data / "problems" / "math_lvl3to5_8k.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    problems = [Problem(row["id"], "math", row["problem"], str(row["answer"])) for row in rows]
    usable, complaints = usable_references(problems, verifier, "skip")
    # Two are empty, and two are a lost value that was written as text (one asks for x^2 + y^2, which is 9).
    assert (len(problems), len(usable)) == (8_523, 8_519)
    assert complaints == [
        "the reference answer stands for a missing value (2 of them: simplerl8k/3380 'None', simplerl8k/7997 'None')",
        "the reference answer is empty (2 of them: simplerl8k/5054 '', simplerl8k/5158 '')",
    ]
    with pytest.raises(ValueError, match="4 of 8,523 problems"):
        usable_references(problems, verifier, "error")
