"""Agreement of the verifier of kind `math` with two files of labelled pairs: the counts, and why they disagree.

    python benchmarks/grader_agreement.py --data ../shared/data --out docs/results/grader_agreement.md

Reads `grader/*.jsonl.gz` under --data (columns prediction, gold, equal) and writes one Markdown page. Every
disagreement falls into the first class whose test it passes; what passes none is counted as "not classified".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import common

from w2sr.types import Verdict
from w2sr.verify import Verifier
from w2sr.verify.plain_numbers import plain_number
from w2sr.verify.spelling import canonical

NUM_EXAMPLES = 3
MAX_CHARS = 90
DECIMAL_COMMA = re.compile(r"(?<![0-9,])[0-9]+,[0-9]{1,2}(?![0-9])|^[0-9]+ [0-9]{3}$")
COMPLETION_RULES = ("boxed", "after:answer is", "after:Answer:", "last_number")


class Pair(NamedTuple):
    """A prediction with its gold, what the file says of it, and what the verifier says."""

    row: dict[str, Any]
    verdict: Verdict | None  # None: the gold cannot be used

    @property
    def prediction(self) -> str:
        return str(self.row["prediction"])

    @property
    def gold(self) -> str:
        return str(self.row["gold"])

    @property
    def label(self) -> str:
        return "unusable gold" if self.verdict is None else self.verdict.label


@dataclass(frozen=True)
class Class:
    """A kind of disagreement: who is right, and the test that recognises it."""

    name: str
    explanation: str
    test: Callable[[Pair], bool]


def main() -> None:
    args = common.parser(__doc__).parse_args()
    sections = []
    for name, title, note, classes in FILES:
        pairs = judged(args.data / "grader" / f"{name}.jsonl.gz")
        print(f"{name}: {len(pairs):,} pairs", flush=True)
        sections.append(section(title, note, pairs, classes))
    prose = prose_again(args.data / "grader" / "math_verify_pairs.jsonl.gz")
    head = common.head(
        "Agreement of the mathematical verifier with labelled pairs",
        ("math-verify", "sympy"),
        "Each prediction is graded as it stands, as the whole answer. `correct` is agreement with `equal: true`; every "
        "other verdict is agreement with `equal: false`.",
    )
    common.write(args.out, "\n".join([head, *sections, prose]))


def judged(path: Path) -> list[Pair]:
    """The pairs of a file with their verdicts. The tag only carries the prediction to the grader unchanged."""
    rows = list(common.rows(path))
    with Verifier(["answer_tag"]) as verifier:
        usable = [row for row in rows if is_usable(verifier, str(row["gold"]))]
        verdicts = iter(
            verifier.verify_all([(f"<answer>{row['prediction']}</answer>", str(row["gold"])) for row in usable])
        )
    can = {id(row) for row in usable}
    return [Pair(row, next(verdicts) if id(row) in can else None) for row in rows]


def is_usable(verifier: Verifier, gold: str) -> bool:
    try:
        verifier.check_reference(gold)
    except ValueError:
        return False
    return True


def disagrees(pair: Pair) -> bool:
    return bool(pair.row["equal"]) != (pair.label == "correct")


def section(title: str, note: str, pairs: Sequence[Pair], classes: Sequence[Class]) -> str:
    """A file's counts, its disagreements by class, and examples."""
    labels = [label for label, _ in Counter(pair.label for pair in pairs).most_common()]
    counts = Counter((bool(pair.row["equal"]), pair.label) for pair in pairs)
    cross = common.table(
        ["the file says", *labels, "all"],
        [
            [f"equal: {str(equal).lower()}", *(f"{counts[equal, x]:,}" for x in labels), f"{total(counts, equal):,}"]
            for equal in (True, False)
        ],
    )
    found = [pair for pair in pairs if disagrees(pair)]
    by_class: dict[str, list[Pair]] = {one.name: [] for one in (*classes, UNCLASSIFIED)}
    for pair in found:
        by_class[next((one for one in classes if one.test(pair)), UNCLASSIFIED).name].append(pair)
    known = [one for one in (*classes, UNCLASSIFIED) if by_class[one.name] or one is UNCLASSIFIED]
    table = common.table(
        ["class", "count", "the file says", "what it is"],
        [[one.name, f"{len(by_class[one.name])}", said(by_class[one.name]), one.explanation] for one in known],
    )
    agreed = len(pairs) - len(found)
    examples = "\n".join(line for one in known for line in example_lines(one.name, by_class[one.name]))
    return f"""## {title}

{note}

They agree on {agreed:,} of {len(pairs):,} pairs ({agreed / len(pairs):.1%}) and disagree on {len(found):,}.

{cross}
{table}
{examples}
"""


def total(counts: Counter[tuple[bool, str]], equal: bool) -> int:
    return sum(count for (value, _), count in counts.items() if value == equal)


def said(pairs: Sequence[Pair]) -> str:
    return ", ".join(sorted({"equal" if pair.row["equal"] else "not equal" for pair in pairs}))


def example_lines(name: str, pairs: Sequence[Pair]) -> list[str]:
    if not pairs:
        return []
    shown = [f"- prediction {code(p.prediction)}, gold {code(p.gold)}: {p.label}" for p in pairs[:NUM_EXAMPLES]]
    more = len(pairs) - NUM_EXAMPLES
    return [f"**{name}**", "", *shown, *([f"- and {more} more"] if more > 0 else []), ""]


def code(text: str) -> str:
    """One line of text as a code span. No prediction of these files holds a backtick in what is shown."""
    text = "".join(c if c.isprintable() else " " for c in text).replace("`", "'")
    return f"`{text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + '…'}`" if text else "(empty)"


def prose_again(path: Path) -> str:
    """What extraction makes of the predictions that are whole texts."""
    rows = [row for row in common.rows(path) if is_prose(Pair(row, None))]
    with Verifier(COMPLETION_RULES) as verifier:
        usable = [row for row in rows if is_usable(verifier, str(row["gold"]))]
        verdicts = verifier.verify_all([(str(row["prediction"]), str(row["gold"])) for row in usable])
    agreed = sum(bool(row["equal"]) == v.is_correct for row, v in zip(usable, verdicts, strict=True))
    whole = sum(not disagrees(pair) for pair in judged(path) if is_prose(pair) and pair.verdict is not None)
    rules = ", ".join(f"`{rule}`" for rule in COMPLETION_RULES)
    return (
        f"## Whole texts, read by extraction rules\n\nOf the pairs of math-verify's tests, {len(usable)} predictions are "
        f"whole texts. Graded as they stand they agree with the label on {whole}; read as completions by the rules {rules}, "
        f"on {agreed}."
    )


def numbers(pair: Pair) -> tuple[float, float] | None:
    given, wanted = plain_number(canonical(pair.prediction)), plain_number(canonical(pair.gold))
    return None if given is None or wanted is None else (float(given.value), float(wanted.value))


def is_hundredfold(pair: Pair) -> bool:
    both = numbers(pair)
    return both is not None and any(abs(both[0] * f - both[1]) < 1e-9 * abs(both[1]) for f in (100, 0.01))


def is_prose(pair: Pair) -> bool:
    """A long word, or two short ones side by side, beside LaTeX commands and names of environments."""
    bare = re.sub(r"\\[A-Za-z]+|[{}]|\\begin\{\w+\}|\\end\{\w+\}|pmatrix|begin|end", " ", pair.prediction)
    return bool(re.search(r"[A-Za-z']{4,}|[A-Za-z']{2,} [A-Za-z']{2,}", bare))


def letters(text: str) -> Counter[str]:
    return Counter(re.sub(r"\\[A-Za-z]+|[^A-Za-z]", "", text))


def differ_in_case(pair: Pair) -> bool:
    given, wanted = set(letters(pair.prediction)), set(letters(pair.gold))
    return given != wanted and {c.lower() for c in given} == {c.lower() for c in wanted}


def spelled(text: str) -> str:
    return re.sub(r"[{}\\\s$]", "", text).casefold()


def pieces(text: str) -> list[str]:
    return sorted(re.split(r"(?<=\)),|,(?![^(]*\))|or", text.replace(" ", "")))


UNUSABLE = Class(
    "unusable gold",
    "The gold is empty or broken. Ours refuses it where data is read, before anything is graded.",
    lambda pair: pair.verdict is None,
)
UNCLASSIFIED = Class("not classified", "None of the tests above holds.", lambda pair: True)

HARNESS: tuple[Class, ...] = (
    UNUSABLE,
    Class(
        "a factor of 100",
        "The harness also accepts a number that is 100 times too large or too small, as a percentage might be. Ours "
        "accepts that only where a percent sign is written.",
        lambda pair: bool(pair.row["equal"]) and is_hundredfold(pair),
    ),
    Class(
        "commas removed",
        "The harness reads the comma of a list as a thousands separator, so that 3,4 is 34. Ours is right.",
        lambda pair: (
            bool(pair.row["equal"]) and pair.prediction.isdigit() and pair.gold.replace(",", "") == pair.prediction
        ),
    ),
    Class(
        "a part of the answers",
        "The gold and the prediction list different numbers of answers. Ours is right.",
        lambda pair: bool(pair.row["equal"]) and len(pieces(pair.prediction)) != len(pieces(pair.gold)),
    ),
    Class(
        "typography only",
        "Equal text up to braces and backslashes that math-verify cannot read as mathematics. Ours is wrong.",
        lambda pair: bool(pair.row["equal"]) and spelled(pair.prediction) == spelled(pair.gold),
    ),
    Class(
        "equal, not seen by ours",
        "Equal by hand: a power of ten without a point, and a letter beside a fraction. Ours is wrong.",
        lambda pair: (
            (pair.prediction, pair.gold) in {("0.001", "1e-3"), (r"\frac{c}{\sqrt{2}}", r"\frac{1}{\sqrt{2}}c")}
        ),
    ),
    Class(
        "different answers",
        "Another number, relation, time or name; the harness calls them equal. Ours is right.",
        lambda pair: bool(pair.row["equal"]),
    ),
    Class(
        "another order",
        "The same answers in another order. Ours, as math-verify, takes a list without brackets as a set.",
        lambda pair: pieces(pair.prediction) == pieces(pair.gold),
    ),
    Class(
        "set against relation",
        "An interval or union against an inequality. Ours is right.",
        lambda pair: r"\infty" in pair.prediction and bool(re.search(r"\\n?[egl]e?(?![A-Za-z])|[<>]", pair.gold)),
    ),
    Class(
        "a left side more",
        "One of the two names what is computed (`f(x)=`). Ours compares the right sides.",
        lambda pair: ("=" in pair.prediction) != ("=" in pair.gold),
    ),
    Class(
        "case of a letter",
        "The same formula with C for c or x for X; math-verify does not tell cases apart. Right where the letter is the "
        "same constant, as it is in these; wrong where a problem uses both.",
        differ_in_case,
    ),
    Class(
        "equal, not seen by the harness",
        "A mixed number, or terms in another form: equal, by hand. Ours is right.",
        lambda pair: not pair.row["equal"],
    ),
)

TESTS: tuple[Class, ...] = (
    UNUSABLE,
    Class(
        "decimal comma or space",
        "1000,99 or 1 000. Math-verify tries every reading; ours never takes a comma for a decimal point, and a space "
        "joins no digits, because a list of numbers would become one.",
        lambda pair: not is_long(pair) and any(DECIMAL_COMMA.search(text) for text in (pair.prediction, pair.gold)),
    ),
    Class(
        "lower precision",
        "The case asks math-verify for fewer digits than the six by which ours compares.",
        lambda pair: pair.row["precision"] != 6,
    ),
    Class(
        "a whole text",
        "The prediction is prose in which math-verify searches for the answer. Ours expects an extracted answer, and does "
        "not search inside of it; see the last section.",
        is_prose,
    ),
    Class(
        "wrong label",
        "1 + 1/e and 1 − 1/e are not equal. Ours is right.",
        lambda pair: bool(pair.row["equal"]) and pair.prediction.replace("+", "-") == pair.gold,
    ),
)


def is_long(pair: Pair) -> bool:
    return len(pair.prediction) > 60


FILES = (
    (
        "math_verify_pairs",
        "Pairs of math-verify's own tests",
        "The cases that math-verify's authors wrote, with what they expect. Many are sentences, for its own search.",
        TESTS,
    ),
    (
        "qwen_math_eval_real_pairs",
        "Answers of real models under the Qwen2.5-Math harness",
        "The labels are the harness's, not a person's: where the two disagree, either can be wrong. Its predictions lack "
        "the spaces that the harness removed. A `timeout` is 5 s of wall time, so a busy machine may count another.",
        HARNESS,
    ),
)

if __name__ == "__main__":
    main()
