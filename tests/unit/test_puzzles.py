"""Puzzles: one solution each, by trying everything; sound derivations; files that read."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from w2sr.cli import main
from w2sr.problems import read_problems
from w2sr.puzzles import generate_puzzles, knights, ordering
from w2sr.puzzles.knights import Claim, Knights, Statement
from w2sr.puzzles.ordering import Clue, Ordering
from w2sr.traces import read_traces
from w2sr.verify import Verifier

FIXED_ORDERING = ("ordering/58842615c22c9bea", "Erin < Frank < Karen")
FIXED_KNIGHTS = ("knights/c237a3e112d39366", "Alice is a knave, Bob is a knight, Jack is a knight")
WORD = {"knight": True, "knave": False}


def claims_of(text: str, speaker: str) -> list[tuple[str, bool]]:
    found = re.findall(r"(\w+) (?:am|is) a (knight|knave)", text)
    return [(speaker if name == "I" else name, WORD[kind]) for name, kind in found]


def said_is_true(text: str, speaker: str, world: dict[str, bool]) -> bool:
    """Reads the English of a statement, and nothing of the generator's own form."""
    if same := re.fullmatch(r"(\w+) and (\w+) are of the same kind", text):
        first, second = (speaker if name == "I" else name for name in same.groups())
        return world[first] == world[second]
    truths = [world[name] == is_knight for name, is_knight in claims_of(text, speaker)]
    if text.lower().startswith("if "):
        return not truths[0] or truths[1]
    if " and " in text:
        return all(truths)
    return any(truths) if " or " in text else truths[0]


@pytest.mark.parametrize("people", [2, 3, 4, 6])
def test_knights_have_one_solution_by_their_english_text(people: int) -> None:
    forms: Counter[str] = Counter()
    for puzzle in generate_puzzles("knights", num=60, size=people, seed=people):
        text = puzzle.problem.problem
        said = dict(re.findall(r"(\w+) says: “(.*?)\.”", text))
        assert len(said) == people
        forms.update(
            "same" if "same" in s else "if" if s[:2] == "If" else "and" if " and " in s else s for s in said.values()
        )
        fitting = []
        for kinds in itertools.product((True, False), repeat=people):
            world = dict(zip(said, kinds, strict=True))
            if all(world[name] == said_is_true(statement, name, world) for name, statement in said.items()):
                fitting.append(world)
        assert len(fitting) == 1, text
        answer = ", ".join(f"{name} is a {'knight' if k else 'knave'}" for name, k in fitting[0].items())
        assert puzzle.problem.reference_answer == answer
        assert f"people={people}" in puzzle.problem.stratum
    assert {"same", "if", "and"} <= set(forms)


def test_statements_mean_what_logic_says() -> None:
    said = {
        form: Statement(form, Claim(0, True), Claim(1, True))  # type: ignore[arg-type]
        for form in ("and", "or", "if", "same")
    }
    worlds = list(itertools.product((True, False), repeat=2))
    assert [said["and"].holds(w) for w in worlds] == [True, False, False, False]
    assert [said["or"].holds(w) for w in worlds] == [True, True, True, False]
    assert [said["if"].holds(w) for w in worlds] == [True, False, True, True]
    assert [said["same"].holds(w) for w in worlds] == [True, False, False, True]


def test_a_derivation_with_a_supposition() -> None:
    """Ann: "Ben is a knave." Ben: "Ann and Cat are of the same kind." Cat: "Ann is a knave or Ben is a knight."

    Ann knight: Ben knave, so Cat is not of Ann's kind, a knave; her words are false: fits. Ann knave: Ben knight, so
    Cat is a knave as Ann is; but then Cat's words would be true: contradiction.
    """
    said = (
        Statement("is", Claim(1, False)),
        Statement("same", Claim(0, True), Claim(2, True)),
        Statement("or", Claim(0, False), Claim(1, True)),
    )
    puzzle = Knights(("Ann", "Ben", "Cat"), said)
    assert puzzle.solutions() == [(True, False, False)]
    derivation = knights.derive(puzzle)
    assert derivation.known == {0: True, 1: False, 2: False}
    assert derivation.num_suppositions == 1
    text = " ".join(derivation.sentences)
    assert text.startswith("Suppose Ann is a knight. Ann is a knight, so “Ben is a knave” is true: Ben is a knave.")
    assert text.endswith("That is a contradiction. So Ann is not a knave.")


@pytest.mark.parametrize(("people", "seed"), [(2, 0), (3, 1), (5, 2), (8, 3)])
def test_every_consequence_of_a_derivation_follows(people: int, seed: int) -> None:
    """Each sentence is checked in all worlds that agree with what stands before it in its case."""
    num_checked = 0
    for _ in range(40):
        puzzle = knights.draw(random.Random(seed * 1000 + num_checked), people)
        worlds = list(itertools.product((True, False), repeat=people))
        index = {name: i for i, name in enumerate(puzzle.names)}
        cases = [worlds]
        for sentence in knights.derive(puzzle).sentences:
            num_checked += 1
            if supposed := re.fullmatch(r"Suppose (\w+) is a (knight|knave)\.", sentence):
                name, kind = supposed.groups()
                cases.append([w for w in cases[-1] if w[index[name]] == WORD[kind]])
            elif refuted := re.fullmatch(r"So (\w+) is not a (knight|knave)\.", sentence):
                assert not any(all(w[i] == s.holds(w) for i, s in enumerate(puzzle.statements)) for w in cases.pop())
                cases[-1] = [w for w in cases[-1] if w[index[refuted[1]]] != WORD[refuted[2]]]
            elif sentence.startswith("Everybody's"):
                (fits,) = (w for w in cases.pop() if all(w[i] == s.holds(w) for i, s in enumerate(puzzle.statements)))
                cases[-1] = [w for w in cases[-1] if w == fits]
            elif not sentence.endswith("contradiction."):
                speaker = index[sentence.split()[0].rstrip(",")]
                told = re.split(r": (?=[A-Z]\w+ is a k)|only be said if ", sentence)[-1]
                for name, is_knight in claims_of(told, ""):
                    fitting = [w for w in cases[-1] if w[speaker] == puzzle.statements[speaker].holds(w)]
                    assert all(w[index[name]] == is_knight for w in fitting), sentence
                cases[-1] = [w for w in cases[-1] if w[speaker] == puzzle.statements[speaker].holds(w)]
            else:
                speaker = index[sentence.split(",")[0]]
                assert not [w for w in cases[-1] if w[speaker] == puzzle.statements[speaker].holds(w)], sentence
    assert num_checked > 40


@pytest.mark.parametrize("items", [3, 4, 6])
def test_orderings_have_one_order_and_no_clue_too_many(items: int) -> None:
    forms: Counter[str] = Counter()
    for number in range(25):
        puzzle = ordering.draw(random.Random(number), items)
        orders = list(itertools.permutations(range(items)))
        fitting = [order for order in orders if all(clue.holds(order) for clue in puzzle.clues)]
        derivation = ordering.derive(puzzle)
        assert derivation is not None and fitting == [derivation.order]
        forms.update(clue.form for clue in puzzle.clues)
        for left_out in puzzle.clues:
            fewer = tuple(clue for clue in puzzle.clues if clue != left_out)
            assert ordering.derive(Ordering(puzzle.names, fewer)) is None
    assert set(forms) == {"less", "between", "rank"}


def test_a_derivation_of_an_order() -> None:
    puzzle = Ordering(("Ann", "Ben", "Cat"), (Clue("less", (1, 0)), Clue("rank", (2,), 0)))
    assert puzzle.text().startswith(
        "Ann, Ben and Cat are all of different heights. Ben is shorter than Ann. Nobody is shor"
    )
    derivation = ordering.derive(puzzle)
    assert derivation is not None and puzzle.answer(derivation.order) == "Cat < Ben < Ann"
    assert derivation.sentences == [
        "Who is the shortest? It is not Ann, for Ben is shorter than Ann; not Ben, for nobody is shorter than Cat. "
        "So Cat is the shortest.",
        "Who comes after Cat? It is not Ann, for Ben is shorter than Ann. So Ben comes after Cat.",
        "Only Ann is left, who comes after Ben.",
    ]
    assert ordering.derive(Ordering(puzzle.names, puzzle.clues[:1])) is None


@pytest.mark.parametrize(("kind", "size"), [("knights", 3), ("ordering", 5)])
def test_the_same_seed_gives_the_same_puzzles_and_another_gives_others(kind: str, size: int) -> None:
    first = generate_puzzles(kind, num=20, size=size, seed=4)  # type: ignore[arg-type]
    assert generate_puzzles(kind, num=30, size=size, seed=4)[:20] == first  # type: ignore[arg-type]
    ids = {puzzle.problem.problem_id for puzzle in first}
    assert len(ids) == 20
    others = generate_puzzles(kind, num=20, size=size, seed=4, without=ids)  # type: ignore[arg-type]
    assert not ids & {puzzle.problem.problem_id for puzzle in others}
    assert generate_puzzles(kind, num=20, size=size, seed=5) != first  # type: ignore[arg-type]


def test_the_stream_is_fixed() -> None:
    """A file that was made once can be made again: this text changes only with a new version of the generator."""
    (puzzle,) = generate_puzzles("ordering", num=1, size=3, seed=0)
    assert (puzzle.problem.problem_id, puzzle.problem.reference_answer) == FIXED_ORDERING
    (puzzle,) = generate_puzzles("knights", num=1, size=3, seed=0)
    assert (puzzle.problem.problem_id, puzzle.problem.reference_answer) == FIXED_KNIGHTS


def test_a_file_of_puzzles_is_a_benchmark_and_a_file_of_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, train = tmp_path / "new" / "test.jsonl", tmp_path / "train.jsonl"
    main(["puzzles", "knights", "--num", "30", "--people", "2", "--seed", "3", "--out", str(test)])
    out = capsys.readouterr().out
    assert "30 puzzles" in out and "people=2 suppositions=" in out
    main(
        [
            "puzzles",
            "knights",
            "--num",
            "40",
            "--people",
            "2",
            "--seed",
            "3",
            "--without",
            str(test),
            "--out",
            str(train),
        ]
    )
    problems, (traces, _) = read_problems(test), read_traces(train)
    assert not {p.problem_id for p in problems} & {t.problem_id for t in traces}
    assert (len(problems), len(traces)) == (30, 40)
    assert all(p.stratum.startswith("people=2 ") and p.source == "knights" for p in problems)
    assert {(t.teacher, t.finish_reason, t.verdict) for t in traces} == {("puzzle-solver", "stop", "")}
    with Verifier(["boxed"], "logic") as verifier:
        verdicts = verifier.verify_all([(t.completion, t.reference_answer) for t in traces])
        assert all(verdict.is_correct for verdict in verdicts)
        rotated = verifier.verify_all([(t.completion, o.reference_answer) for t, o in itertools.pairwise(traces)])
    assert not all(verdict.is_correct for verdict in rotated)
    assert json.loads(test.read_text().splitlines()[0])["completion"].endswith("}.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["knights", "--people", "9"], "knights has 2 to 8 people"),
        (["ordering", "--people", "2"], "ordering has 3 to 9 people"),
        (["ordering", "--num", "0"], "at least one puzzle"),
        (["knights", "--out", "x.csv"], "must end in .jsonl"),
        (["knights", "--without", "absent.jsonl"], "absent.jsonl does not exist"),
    ],
)
def test_wrong_wishes_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [] if "--out" in arguments else ["--out", str(tmp_path / "p.jsonl")]
    with pytest.raises(SystemExit):
        main(["puzzles", *arguments, *extra])
    assert message in capsys.readouterr().err


def test_a_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("mine")
    with pytest.raises(SystemExit):
        main(["puzzles", "knights", "--out", str(path)])
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_more_puzzles_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    only = Knights(("Ann", "Ben"), (Statement("is", Claim(1, False)), Statement("is", Claim(0, True))))
    monkeypatch.setattr(knights, "draw", lambda rng, people: only._replace(statements=only.statements))
    monkeypatch.setattr(Knights, "solutions", lambda self: [(True, False)])
    monkeypatch.setattr(knights, "derive", lambda puzzle: knights.Derivation([], {0: True, 1: False}, 0))
    with pytest.raises(ValueError, match="hardly more than 1 such puzzles with 2 people; 2 were asked for"):
        generate_puzzles("knights", num=2, size=2, seed=0)
