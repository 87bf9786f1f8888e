r"""Pairs of answer and reference for the comparison of graders: real ones, re-spellings of real references, made ones.

Every pair has the verdict that it was made with, or None where it is only compared with math-verify.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

PROBLEM_FILES = ("math_test", "math_train", "math500", "olympiadbench_math_en_text", "amc23", "aime24", "gsm8k_test")


class GradedPair(NamedTuple):
    """An answer, a reference, what they are ("grader", the name of a re-spelling, …) and the right verdict if known."""

    answer: str
    reference: str
    kind: str
    equal: bool | None = None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _is_plain_list(text: str) -> bool:
    if re.fullmatch(r"\W*\d{1,3}((,|\{,\})\d{3})+\W*", text):
        return False  # one number with thousands separators: 500, 58 is not 58,500
    return "," in text and not any(mark in text for mark in ("text", "(", "[", r"\{", "=", "begin", r"\!", "and"))


def _reversed(text: str) -> str:
    return ", ".join(part.strip() for part in text.split(",")[::-1])


def _has_no_relation(text: str) -> bool:
    return not any(sign in text for sign in ("=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", ",", "text"))


RESPELLINGS: dict[str, tuple[Callable[[str], bool], Callable[[str], str]]] = {
    "spaces after commas": (
        lambda text: "," in text and "{,}" not in text and r"\!" not in text and not text.replace(",", "").isdigit(),
        lambda text: text.replace(",", ", "),
    ),
    "a unit": (
        lambda text: (text[-1:].isdigit() or text[-1:] == "}") and not any(mark in text for mark in ("text", "mbox")),
        lambda text: text + r" \text{ cm}^2",
    ),
    "dfrac": (lambda text: r"\frac" in text, lambda text: text.replace(r"\frac", r"\dfrac")),
    "x=": (_has_no_relation, lambda text: f"x={text}"),
    "dollars": (lambda text: "$" not in text, lambda text: f"${text}$"),
    "thousands": (lambda text: text.isdigit() and len(text) > 3, lambda text: f"{int(text):,}"),
    "a percent sign": (lambda text: text.isdigit(), lambda text: rf"{int(text) * 100}\%"),
    "another order": (_is_plain_list, _reversed),
    "left and right": (
        lambda text: "(" in text and ")" in text and r"\left" not in text,
        lambda text: text.replace("(", r"\left(").replace(")", r"\right)"),
    ),
}
"""For each re-spelling, which references it suits, and what it makes of them. The meaning stays."""


def references(data: Path) -> list[str]:
    """The distinct reference answers of all problem files that are usable."""
    found: dict[str, None] = {}
    for name in PROBLEM_FILES:
        found |= {str(row["answer"]): None for row in _rows(data / "problems" / f"{name}.jsonl.gz")}
    return [text for text in found if text.strip()]


def respelled(texts: list[str]) -> Iterator[GradedPair]:
    """Every reference against its own re-spellings."""
    for text in texts:
        for kind, (suits, spell) in RESPELLINGS.items():
            if suits(text) and spell(text) != text:
                yield GradedPair(spell(text), text, kind, True)


def graders(data: Path) -> list[GradedPair]:
    """The pairs of two other graders, with their labels as kinds."""
    pairs = {}
    for file in ("math_verify_pairs", "qwen_math_eval_real_pairs"):
        for row in _rows(data / "grader" / f"{file}.jsonl.gz"):
            pairs[str(row["prediction"]), str(row["gold"])] = f"{file}: {row['equal']}"
    return [GradedPair(*pair, kind) for pair, kind in pairs.items() if pair[1].strip()]


def generated(count: int, seed: int = 0) -> list[GradedPair]:
    """Pairs of numbers, lists, tuples, intervals, percentages, units and small formulas, half of them equal."""
    chance = random.Random(seed)
    makers = (_number, _small, _percent, _measure, _sequence, _solutions, _polynomial, _mixed)
    return [chance.choice(makers)(chance) for _ in range(count)]


def _spelled(value: Fraction, chance: random.Random) -> str:
    spellings = [f"{value}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"]
    if value.denominator == 1:
        spellings += [f"{value.numerator:,}", f"{value.numerator}.0", f"${value.numerator}$"]
    return chance.choice(spellings)


def _number(chance: random.Random) -> GradedPair:
    value = Fraction(chance.randint(-3000, 9000), chance.choice([1, 1, 2, 4, 7]))
    other = value if chance.random() < 0.5 else value + chance.choice([1, -1, 10, Fraction(1, 3)])
    return GradedPair(_spelled(other, chance), _spelled(value, chance), "numbers", other == value)


def _small(chance: random.Random) -> GradedPair:
    digits, zeros = chance.randint(1, 9), chance.randint(5, 12)
    other = digits if chance.random() < 0.5 else digits % 9 + 1
    answer = chance.choice([f"0.{'0' * zeros}{other}", f"{other}e-{zeros + 1}", rf"{other}\times 10^{{-{zeros + 1}}}"])
    return GradedPair(answer, rf"\frac{{{digits}}}{{10^{{{zeros + 1}}}}}", "small values", other == digits)


def _percent(chance: random.Random) -> GradedPair:
    share = Fraction(chance.randint(1, 400), 4)
    bare = chance.choice([share / 100, share, share * 10])
    return GradedPair(rf"{float(share):g}\%", f"{bare}", "percentages", bare in (share, share / 100))


def _measure(chance: random.Random) -> GradedPair:
    value, other = (chance.choice(["5", r"36\pi", r"2\sqrt{3}", r"\frac{7}{2}"]) for _ in range(2))
    unit = chance.choice([r"\text{ cm}^3", r" \text{ m/s}^2", r"\ \text{ N}", r" \text{ apples}", " cm"])
    return GradedPair(other + unit, value, "units", other == value)


def _sequence(chance: random.Random) -> GradedPair:
    first, second = ([chance.randint(0, 300) for _ in range(2)] for _ in range(2))
    other = chance.choice([first, first, second, first[::-1]])
    brackets, others = (chance.choice(["()", "()", "[)", "[]"]) for _ in range(2))
    equal = other == first and brackets == others
    answer = f"{others[0]}{other[0]},{other[1]}{others[1]}"
    return GradedPair(answer, f"{brackets[0]}{first[0]}, {first[1]}{brackets[1]}", "tuples and intervals", equal)


def _solutions(chance: random.Random) -> GradedPair:
    roots = chance.sample(range(-20, 20), chance.randint(2, 4))
    others = roots if chance.random() < 0.6 else [*roots[:-1], 21]
    shuffled = chance.sample(others, len(others))
    answer = chance.choice(["x=%s", "%s"])
    text = chance.choice([", ", r" \text{ or } ", " and "]).join(answer % root for root in shuffled)
    return GradedPair(text, ", ".join(map(str, roots)), "solutions", others == roots)


def _polynomial(chance: random.Random) -> GradedPair:
    root, other = chance.randint(1, 9), chance.randint(1, 9)
    constant = root * other if chance.random() < 0.5 else root * other + 1
    return GradedPair(f"(x+{root})(x+{other})", f"x^2+{root + other}x+{constant}", "formulas", constant == root * other)


def _mixed(chance: random.Random) -> GradedPair:
    whole, under = chance.randint(1, 20), chance.randint(2, 9)
    over = chance.randint(1, under - 1)
    value = whole + Fraction(over, under)
    other = value if chance.random() < 0.5 else Fraction(whole * over, under)
    answer = chance.choice([rf"{whole}\frac{{{over}}}{{{under}}}", f"{whole} {over}/{under}"])
    return GradedPair(answer, f"{other}", "mixed numbers", other == value)
