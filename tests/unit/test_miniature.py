"""The embedded world: arithmetic, splits, tokenizer, and what pretraining may see."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from w2sr.miniature import pretrain, world
from w2sr.miniature.build import FOLDER, SEED, SIZES, TEACHER, write_problems
from w2sr.miniature.pretrain import RECIPES, Documents, training_problem
from w2sr.miniature.tokenizer import INSTRUCTION, build_tokenizer
from w2sr.miniature.world import MAX_VALUE, answer_text, generate, problems
from w2sr.problems import read_problems
from w2sr.traces import read_manifest, read_store
from w2sr.verify import Verifier


def computed(text: str) -> int:
    """The answer of a problem, by reading its English: another way than the generator's."""
    values = {}
    name, start = re.match(r"Today (\w+) has (\d+) ", text).groups()
    values[name] = int(start)
    for who, relation, of in re.findall(
        r"(\w+) has ((?:\d+ (?:more|fewer) than)|(?:[a-z ]+ as many as)) (\w+)\.", text
    ):
        base = values[of]
        if relation.endswith("than"):
            number, kind, _ = relation.split()
            values[who] = base + int(number) if kind == "more" else base - int(number)
        else:
            times = relation.removesuffix(" as many as")
            values[who] = {"twice": base * 2, "three times": base * 3, "half": base // 2}[times]
    return values[re.search(r"does (\w+) have\?", text).group(1)]


@pytest.mark.parametrize("num_steps", [1, 4, 8])
def test_answers_follow_from_the_english(num_steps: int) -> None:
    rng = random.Random(num_steps)
    for _ in range(300):
        word_problem = generate(rng, num_steps)
        assert computed(word_problem.text()) == word_problem.answer
        assert all(1 <= step.value <= MAX_VALUE for step in word_problem.steps)


def test_every_style_ends_with_the_boxed_answer() -> None:
    rng = random.Random(3)
    with Verifier(["boxed"]) as verifier:
        for style in ("chain", "sketch", "direct"):
            word_problem = generate(rng, 6)
            assert verifier.verify(answer_text(word_problem, style, rng), str(word_problem.answer)).is_correct


def test_a_chain_names_every_step_and_its_equations_hold() -> None:
    rng = random.Random(4)
    word_problem = generate(rng, 8)
    chain = answer_text(word_problem, "chain", rng)
    equations = re.findall(r"(\d+) ([+*/-]) (\d+) = (\d+)", chain)
    assert len(equations) == 8
    for left, sign, right, value in equations:
        a, b = int(left), int(right)
        assert {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign] == int(value)


def test_a_renamed_twin_is_in_the_same_split() -> None:
    rng = random.Random(5)
    word_problem = generate(rng, 5)
    renamed = world.WordProblem(
        "Zac",
        word_problem.start,
        "kites",
        tuple(world.Step("Uma", s.operation, s.operand, s.value) for s in word_problem.steps),
    )
    assert renamed.split == word_problem.split
    assert renamed.text() != word_problem.text()


def test_splits_are_disjoint_and_answers_are_many() -> None:
    ids = {split: {p.problem_id for p in problems(split, 300, seed=9)} for split in ("train", "validation", "test")}
    assert (
        not ids["train"] & ids["test"] and not ids["train"] & ids["validation"] and not ids["test"] & ids["validation"]
    )
    assert len({p.reference_answer for p in problems("test", 1000, seed=9)}) >= 100


def test_pretraining_refuses_validation_and_test_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = []

    def recording(rng: random.Random, num_steps: int) -> world.WordProblem:
        offered.append(generate(rng, num_steps))
        return offered[-1]

    monkeypatch.setattr(pretrain, "generate", recording)
    rng = random.Random(6)
    taken = [training_problem(rng, 4) for _ in range(200)]
    assert {word_problem.split for word_problem in taken} == {"train"}
    refused = Counter(word_problem.split for word_problem in offered)
    assert refused["test"] > 10 and refused["validation"] > 2, "the interesting case must have occurred"


def test_shipped_problems_are_what_the_generator_writes(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        write_problems(split, tmp_path / "again.jsonl.gz")
        shipped = read_problems(FOLDER / "data" / f"{split}.jsonl.gz", None)
        assert shipped == read_problems(tmp_path / "again.jsonl.gz", None)
        assert len(shipped) == SIZES[split]


def test_shipped_traces_are_the_teachers_on_training_problems() -> None:
    manifest = read_manifest(FOLDER / "traces")
    assert manifest.num_traces == SIZES["train"]
    assert set(manifest.by_teacher) == {TEACHER}
    share = manifest.by_verdict["correct"] / manifest.num_traces
    assert 0.45 <= share <= 0.75
    asked = {p.problem_id for p in problems("train", SIZES["train"], seed=SEED)}
    traces = read_store(FOLDER / "traces")
    assert {trace.problem_id for trace in traces} == asked
    with Verifier(["boxed"]) as verifier:
        for trace in traces[:200]:
            assert verifier.verify(trace.completion, trace.reference_answer).label == trace.verdict


def test_the_tokenizer_gives_texts_back_and_knows_every_word() -> None:
    tokenizer, rng = build_tokenizer(), random.Random(8)
    for _ in range(200):
        word_problem = generate(rng, rng.randint(1, 8))
        texts = [word_problem.text() + INSTRUCTION, world.arithmetic_drill(rng, 3)]
        texts += [answer_text(word_problem, style, rng) for style in ("chain", "sketch", "direct")]
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids, text


def test_documents_carry_loss_on_completions_only() -> None:
    tokenizer = build_tokenizer()
    documents = Documents(RECIPES["teacher"], tokenizer, random.Random(1))
    segment = documents.sample(3)
    supervised = [int(label) for label in segment.labels if label >= 0]
    text = tokenizer.decode(supervised)
    assert text.startswith("Step by step:") and text.endswith("<|im_end|>")


def test_shipped_weights_are_small_safetensors() -> None:
    files = [path for name in ("student", "teacher") for path in (FOLDER / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
