"""The miniature's world: word problems about quantities, each named once, and three ways to answer them.

A problem names a start quantity and up to eight further ones, each defined by the one before:

    Today Mia has 23 apples. Tom has 8 more than Mia. Zoe has twice as many as Tom. How many apples does Zoe have?

    chain:   Step by step: Mia has 23. Tom has 23 + 8 = 31. Zoe has 31 * 2 = 62. So Zoe has \\boxed{62}.
    sketch:  In short: Mia has 23. Zoe has 62. So Zoe has \\boxed{62}.        (jumps over one to three steps at a time)
    direct:  The answer is \\boxed{62}.

Quantities are whole numbers from 1 to 199. Which split a problem belongs to is decided by a hash of its arithmetic
alone (start, operations, operands): a twin with other names and objects is always in the same split.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from w2sr.types import Problem

SOURCE = "miniature"
MAX_VALUE = 199
MAX_STEPS = 8
OPERANDS = range(2, 10)
NAMES = tuple(
    "Ada Ali Amy Ann Ben Bob Dan Eli Eva Fay Gus Hal Ian Ida Ivy Jan Jim Joe Kai Ken Kim Lea Lee Leo Lia Liz Max Mia "
    "Nia Noa Pam Pia Ray Rio Rob Roy Sam Sue Tim Tom Una Uma Val Vic Wes Yan Zoe Zac".split()
)
OBJECTS = tuple("apples books coins cards eggs kites pens shells stamps tickets".split())

Split = Literal["train", "validation", "test"]
Style = Literal["chain", "sketch", "direct"]
Operation = Literal["more", "fewer", "twice", "three times", "half"]


@dataclass(frozen=True, slots=True)
class Step:
    """One quantity: `name` has `value`, made from the quantity before by `operation` (and `operand`)."""

    name: str
    operation: Operation
    operand: int
    value: int


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A start quantity and the steps that follow from it."""

    start_name: str
    start: int
    item: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].value

    @property
    def split(self) -> Split:
        """train (80 %), validation (5 %) or test (15 %), by the SHA-256 of the arithmetic without names and objects."""
        skeleton = f"{self.start}" + "".join(f"|{step.operation} {step.operand}" for step in self.steps)
        bucket = int.from_bytes(hashlib.sha256(skeleton.encode()).digest()[:4], "big") % 100
        return "test" if bucket < 15 else "validation" if bucket < 20 else "train"

    def text(self) -> str:
        """The problem as a person reads it."""
        sentences = [f"Today {self.start_name} has {self.start} {self.item}."]
        for step, before in zip(self.steps, (self.start_name, *(s.name for s in self.steps)), strict=False):
            sentences.append(f"{step.name} has {_relation(step)} {before}.")
        return " ".join([*sentences, f"How many {self.item} does {self.steps[-1].name} have?"])

    def to_problem(self) -> Problem:
        text = self.text()
        problem_id = f"{SOURCE}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return Problem(problem_id, SOURCE, text, str(self.answer), stratum=f"{len(self.steps)} steps")


def _relation(step: Step) -> str:
    if step.operation in ("more", "fewer"):
        return f"{step.operand} {step.operation} than"
    return f"{step.operation} as many as"


def _next(rng: random.Random, value: int) -> tuple[Operation, int, int]:
    """A random operation on `value`: three in five add or subtract, two in five multiply or halve where they can."""
    scaling: list[tuple[Operation, int, int]] = []
    if value * 2 <= MAX_VALUE:
        scaling.append(("twice", 2, value * 2))
    if value * 3 <= MAX_VALUE:
        scaling.append(("three times", 3, value * 3))
    if value % 2 == 0:
        scaling.append(("half", 2, value // 2))
    if scaling and rng.random() < 0.4:
        return rng.choice(scaling)
    add: list[tuple[Operation, int, int]] = [("more", k, value + k) for k in OPERANDS if value + k <= MAX_VALUE]
    subtract: list[tuple[Operation, int, int]] = [("fewer", k, value - k) for k in OPERANDS if value - k >= 1]
    return rng.choice([*add, *subtract])


def generate(rng: random.Random, num_steps: int) -> WordProblem:
    """A random problem with `num_steps` steps."""
    names = rng.sample(NAMES, num_steps + 1)
    start = value = rng.randint(5, 99)
    steps = []
    for name in names[1:]:
        operation, operand, value = _next(rng, value)
        steps.append(Step(name, operation, operand, value))
    return WordProblem(names[0], start, rng.choice(OBJECTS), tuple(steps))


def problems(split: Split, count: int, *, seed: int, min_steps: int = 4, max_steps: int = MAX_STEPS) -> list[Problem]:
    """`count` distinct problems of a split, the numbers of steps in equal shares. The same seed, the same list."""
    rng = random.Random(f"{split}-{seed}")
    found: dict[str, Problem] = {}
    spread = max_steps - min_steps + 1
    while len(found) < count:
        word_problem = generate(rng, min_steps + len(found) % spread)
        if word_problem.split == split:
            problem = word_problem.to_problem()
            found.setdefault(problem.problem_id, problem)
    return list(found.values())


def answer_text(word_problem: WordProblem, style: Style, rng: random.Random) -> str:
    """A completion in the given style. Used in pretraining only: never in evaluation, never as a teacher's trace."""
    last = word_problem.steps[-1]
    if style == "direct":
        return f"The answer is \\boxed{{{last.value}}}."
    sentences = [f"{word_problem.start_name} has {word_problem.start}."]
    if style == "chain":
        before = word_problem.start
        for step in word_problem.steps:
            sentences.append(f"{step.name} has {_equation(step, before)}.")
            before = step.value
    else:
        position = rng.randint(1, 3) - 1
        while position < len(word_problem.steps):
            step = word_problem.steps[position]
            sentences.append(f"{step.name} has {step.value}.")
            position += rng.randint(1, 3)
    opening = "Step by step:" if style == "chain" else "In short:"
    return " ".join([opening, *sentences, f"So {last.name} has \\boxed{{{last.value}}}."])


def _equation(step: Step, before: int) -> str:
    sign = {"more": "+", "fewer": "-", "twice": "*", "three times": "*", "half": "/"}[step.operation]
    return f"{before} {sign} {step.operand} = {step.value}"


def arithmetic_drill(rng: random.Random, count: int) -> str:
    """A line of bare arithmetic, as a school book has it: `23 + 8 = 31. 62 / 2 = 31.`"""
    equations = []
    for _ in range(count):
        value = rng.randint(1, MAX_VALUE)
        operation, operand, result = _next(rng, value)
        equations.append(f"{_equation(Step('', operation, operand, result), value)}.")
    return " ".join(equations)
