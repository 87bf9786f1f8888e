"""The data overlays beyond mathematics read rows of the form that their hub cards show, and local copies of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from w2sr.datamodules.sources import build_verifiers, load_problems, load_traces
from w2sr.types import DataFile, Problem

REPOSITORY = Path(__file__).resolve().parents[2]

CARDS: dict[str, tuple[dict[str, Any], str, str]] = {
    # overlay: a row, a completion that is right, the gold as text
    "commonsenseqa": (
        {
            "id": "q1",
            "question": "Where is a revolving door?",
            "question_concept": "door",
            "choices": {"label": list("ABCDE"), "text": ["bank", "library", "store", "mall", "new york"]},
            "answerKey": "A",
        },
        r"\boxed{bank}",
        "bank",
    ),
    "strategyqa": (
        {"qid": "q1", "term": "Frost", "question": "Is frost common?", "answer": True, "facts": "It is cold."},
        "So the answer is yes.",
        "true",
    ),
    "bigbench_date": (
        {"input": "What day?\nOptions:\n(A) 05/01/2021\n(B) 02/23/2021", "target": "(B)"},
        "So the answer is (B).",
        "(B)",
    ),
    "aqua": (
        {"question": "How much?", "options": ["A)$61", "B)$65", "C)$67.40"], "rationale": "…", "correct": "B"},
        "**Answer:** $65, \\boxed{\\$65}",
        "$65",
    ),
    "gpqa": (
        {"Question": "Which?", "Correct Answer": "xenon\n", **{f"Incorrect Answer {n}": f"no {n}" for n in (1, 2, 3)}},
        r"\boxed{xenon}",
        "xenon",
    ),
}


def read(file: DataFile) -> tuple[list[Problem], Any]:
    verifier = build_verifiers({"b": file}, 5.0)["b"]
    return load_problems("b", file, verifier, seed=3), verifier


def benchmark(overlay: str) -> DataFile:
    content = yaml.safe_load((REPOSITORY / "configs" / "data" / f"{overlay}.yaml").read_text())
    (file,) = content["data"]["init_args"]["benchmarks"].values()
    return DataFile(**{**file, "rules": tuple(file["rules"])})


@pytest.mark.parametrize("overlay", CARDS)
def test_an_overlay_reads_a_row_of_its_card(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    row, completion, gold = CARDS[overlay]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [row])
    (problem,), verifier = read(benchmark(overlay))
    assert problem.reference_answer.endswith(gold)
    assert verifier.verify(completion, problem.reference_answer).is_correct
    assert not verifier.verify(r"\boxed{Z}", problem.reference_answer).is_correct


def test_training_problems_are_read_as_the_benchmark_of_their_name() -> None:
    """Another split or file, and the rest alike, so that training asks for what is measured."""
    compared = []
    for path in sorted((REPOSITORY / "configs" / "data").glob("*.yaml")):
        keys = yaml.safe_load(path.read_text())["data"]["init_args"]
        for name, file in keys.get("problems", {}).items():
            other = keys["benchmarks"].get(name)
            if other is None:
                continue
            assert (file["path"], file.get("split")) != (other["path"], other.get("split")), path
            rest = [{key: value for key, value in one.items() if key not in ("path", "split")} for one in (file, other)]
            assert rest[0] == rest[1], path
            compared.append(path.stem)
    assert compared == ["aqua", "commonsenseqa", "gsm8k", "knights", "miniature", "strategyqa"]


def test_choices_need_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "?", "o": ["x", "y"], "g": "A"}\n')
    columns: dict[str, Any] = {"problem": "problem", "options": "o", "reference_answer": "g"}
    with pytest.raises(ValueError, match=r"choices: true needs kind: choice, .* kind is exact"):
        read(DataFile(str(path), columns, choices=True, kind="exact"))
    (problem,), _ = read(DataFile(str(path), columns, choices=True, kind="choice"))
    assert problem.reference_answer[1:] == ") x"


def test_traces_are_verified_by_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"problem": "Is it?", "completion": "The answer is no.", "reference_answer": "No", "teacher": "t"}\n'
    )
    (trace,) = load_traces(
        [DataFile(str(path), rules=("yes_no",), kind="yes_no")],
        on_bad_row="error",
        on_bad_reference="error",
        timeout_s=5.0,
    )
    assert (trace.verdict, trace.answer, trace.grader) == ("correct", "no", "yes_no")
