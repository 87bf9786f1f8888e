"""Decontamination on real problems: what is found, what passes, what is removed in error, and how other rules do.

    python benchmarks/decontamination.py --data ../shared/data --out docs/results/decontamination.md

Reads `problems/*.jsonl.gz` under --data and `decontamination_verdicts.json` next to this file, in which a reader says of
pairs of problems whether they are the same problem; `--unread` prints the pairs that are not in it, to be read.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
from decontamination_judges import PEERS, Judge

from w2sr.decontaminate import BenchmarkIndex
from w2sr.problems import read_problems
from w2sr.types import Problem

COLUMNS = {"problem_id": "id", "problem": "problem", "reference_answer": "answer"}
TRAIN = {"MATH levels 3-5 (the paper's)": "math_lvl3to5_8k", "MATH train": "math_train", "GSM8K train": "gsm8k_train"}
BENCHMARKS = {
    "MATH test": "math_test",
    "MATH-500": "math500",
    "GSM8K test": "gsm8k_test",
    "AIME24": "aime24",
    "AMC23": "amc23",
    "OlympiadBench": "olympiadbench_math_en_text",
    "AQuA": "aqua",
    "SAT": "sat_math",
    "SVAMP": "svamp",
}
SPELLED = ("MATH-500", "GSM8K test")
"""Benchmarks whose problems are written in other ways, to see which pass."""
PART = "MATH-500"
"""A part of MATH test, so it is compared alone."""
NUM_READ, NUM_READ_OF_PEERS = 100, 30
VERDICTS = Path(__file__).with_name("decontamination_verdicts.json")
OURS = "w2sr"
NUM_CHARS = 200

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
PREAMBLE = (
    "You are a careful mathematician who solves problems for the students of a large school. Read the problem twice before you "
    "begin, write down every step of your reasoning, check each number once more, and only then give the final answer to it."
)
assert len(PREAMBLE.split()) == 43

SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "instruction behind": lambda text: f"{text} {INSTRUCTION}",
    "43-word preamble": lambda text: f"{PREAMBLE} {text}",
    "preamble without a full stop": lambda text: f"{PREAMBLE[:-1]} {text}",
    "preamble and instruction": lambda text: f"{PREAMBLE}\n\n{text}\n{INSTRUCTION}",
    "in a chat template": lambda text: f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
    "Question: ... Answer:": lambda text: f"Question: {text}\nAnswer:",
    "upper case": str.upper,
    "other LaTeX": lambda text: other_latex(text),
    "a misspelled word": lambda text: misspelled(text),
}
"""Ways to write a problem that leave it the same problem."""


MISSED = (
    ("math/train/3473", "math/test/1086"),
    ("math/train/3469", "math/test/2354"),
)
"""Pairs that a reader found to be the same problem, and that our rule does not see."""


def other_latex(text: str) -> str:
    """The same formulas with `\\dfrac`, `\\(`, `\\le`, without `\\left` and with thin spaces."""
    text = re.sub(r"\\(left|right)(?![a-zA-Z])", "", text)
    text = text.replace("\\frac", "\\dfrac").replace("\\leq", "\\le").replace("\\geq", "\\ge").replace(", ", ",\\, ")
    return re.sub(r"(?<![\\$])\$([^$]+)\$(?!\$)", r"\\( \1 \\)", text)


def misspelled(text: str) -> str:
    """With the last two letters of one long word swapped."""
    words = [match for match in re.finditer(r"(?<![\\\w])[a-z]{6,}(?!\w)", text) if match[0][-1] != match[0][-2]]
    if not words:
        return text
    end = words[len(words) // 2].end()
    return text[: end - 2] + text[end - 1] + text[end - 2] + text[end:]


def other_number(text: str) -> str | None:
    """With one number replaced by one that is greater by 1: another problem. None where there is no number."""
    numbers = list(re.finditer(r"(?<![\d.,\\])\d{1,6}(?![\d.,])", text.split("[asy]")[0]))
    if not numbers:
        return None
    number = numbers[len(numbers) // 2]
    return f"{text[: number.start()]}{int(number[0]) + 1}{text[number.end() :]}"


@dataclass(frozen=True)
class Removal:
    """A training problem that a rule removes, and the benchmark problem for which it does."""

    train: Problem
    benchmark: Problem

    @property
    def name(self) -> str:
        return f"{self.train.problem_id} | {self.benchmark.problem_id}"

    @property
    def is_equal(self) -> bool:
        return " ".join(self.train.problem.casefold().split()) == " ".join(self.benchmark.problem.casefold().split())


def problems(data: Path, file: str) -> list[Problem]:
    return read_problems(data / "problems" / f"{file}.jsonl.gz", COLUMNS, source=file)


def ours(benchmark: Sequence[str]) -> Judge:
    index = BenchmarkIndex({"": [Problem(str(at), "", text, "") for at, text in enumerate(benchmark)]})

    def judge(text: str) -> int | None:
        match = index.match(Problem("", "", text, ""))
        return int(match.other.problem_id) if match else None

    return judge


RULES: dict[str, Callable[[Sequence[str]], Judge]] = {OURS: ours, **PEERS}


def removals(rule: str, train: list[Problem], benchmark: list[Problem]) -> list[Removal]:
    judge = RULES[rule]([problem.problem for problem in benchmark])
    found = [(problem, judge(problem.problem)) for problem in train]
    return [Removal(problem, benchmark[at]) for problem, at in found if at is not None]


def sample(found: list[Removal], number: int) -> list[Removal]:
    """By a hash of the pair's name, so that it stays the same where other pairs come or go."""
    return sorted(found, key=lambda removal: hashlib.sha256(removal.name.encode()).digest())[:number]


def to_read(rule: str, found: list[Removal]) -> list[Removal]:
    """Of our rule every removal whose text is not equal, and as many of the others as make 100; of others' 30."""
    others = [removal for removal in found if not removal.is_equal]
    if rule != OURS:
        return sample(others, NUM_READ_OF_PEERS)
    equal = [removal for removal in found if removal.is_equal]
    return others[:NUM_READ] + sample(equal, max(0, NUM_READ - len(others)))


def passing(texts: Sequence[str], judge: Judge) -> Iterator[str]:
    """Per spelling, how many of the benchmark's problems pass; last, how many with another number are removed."""
    for spell in SPELLINGS.values():
        yield f"{sum(judge(spell(text)) is None for text in texts):,}"
    twins = [twin for text in texts if (twin := other_number(text)) is not None]
    yield f"{sum(judge(twin) is not None for twin in twins):,} of {len(twins):,}"


def main() -> None:
    made = common.parser(__doc__)
    made.add_argument("--unread", action="store_true", help="only print the pairs that nobody has read")
    args = made.parse_args()
    verdicts: dict[str, str] = json.loads(VERDICTS.read_text())
    train = {name: problems(args.data, file) for name, file in TRAIN.items()}
    benchmarks = {name: problems(args.data, file) for name, file in BENCHMARKS.items()}
    lines, found = compare(train, benchmarks)
    read = {rule: to_read(rule, pairs) for rule, pairs in found.items()}
    if args.unread:
        pairs = {removal.name: removal for pairs in read.values() for removal in pairs if removal.name not in verdicts}
        for name, removal in pairs.items():
            print(f"{name}\n  T: {flat(removal.train, 600)}\n  B: {flat(removal.benchmark, 600)}")
        return
    num_benchmark = sum(len(problems) for name, problems in benchmarks.items() if name != PART)
    spelled = []
    for name in SPELLED:
        texts = [problem.problem for problem in benchmarks[name]]
        columns = [list(passing(texts, build(texts))) for build in RULES.values()]
        rows = zip([*SPELLINGS, "*one number changed (removed)*"], *columns, strict=True)
        spelled.append((f"{name}, {len(texts):,} problems", [list(row) for row in rows]))
        print(name, flush=True)
    common.write(args.out, page(lines, found, read, verdicts, spelled, missed(train, benchmarks), num_benchmark))


def compare(
    train: dict[str, list[Problem]], benchmarks: dict[str, list[Problem]]
) -> tuple[list[list[str]], dict[str, list[Removal]]]:
    """A line for each training set, and what each rule removes from all of them, each pair of texts once."""
    lines: list[list[str]] = []
    found: dict[str, dict[tuple[str, str], Removal]] = {rule: {} for rule in RULES}
    others = [problem for name, problems in benchmarks.items() if name != PART for problem in problems]
    for name, mine in train.items():
        line = [name, f"{len(mine):,}"]
        for rule in RULES:
            began = time.process_time()
            pairs = removals(rule, mine, others)
            seconds = time.process_time() - began
            equal = sum(pair.is_equal for pair in pairs)
            line += [f"{equal:,}", f"{len(pairs) - equal:,}", f"{seconds:.1f}"] if rule == OURS else [f"{len(pairs):,}"]
            found[rule] |= {(pair.train.problem, pair.benchmark.problem): pair for pair in pairs}
            print(name, rule, len(pairs), f"{seconds:.1f} s", flush=True)
        of_part = removals(OURS, mine, benchmarks[PART])
        lines.append([*line[:5], f"{len(of_part):,}", *line[5:]])
    return lines, {rule: list(pairs.values()) for rule, pairs in found.items()}


def missed(train: dict[str, list[Problem]], benchmarks: dict[str, list[Problem]]) -> list[Removal]:
    """The pairs of MISSED, of which each must pass."""
    mine = {problem.problem_id: problem for problems in train.values() for problem in problems}
    others = {problem.problem_id: problem for problems in benchmarks.values() for problem in problems}
    pairs = [Removal(mine[one], others[other]) for one, other in MISSED]
    assert not any(removals(OURS, [pair.train], [pair.benchmark]) for pair in pairs)
    return pairs


def flat(problem: Problem, num_chars: int = NUM_CHARS) -> str:
    """A problem on one line."""
    text = " ".join(problem.problem.split())
    return text if len(text) <= num_chars else text[: num_chars - 3] + "..."


def code(problem: Problem) -> str:
    """A problem as code, so that its LaTeX stays as it is."""
    return f"`{flat(problem).replace('`', chr(39))}`"


def precision(read: list[Removal], verdicts: dict[str, str]) -> str:
    same = sum(verdicts[removal.name] == "same" for removal in read)
    return f"{same} of {len(read)}"


def page(
    lines: list[list[str]],
    found: dict[str, list[Removal]],
    read: dict[str, list[Removal]],
    verdicts: dict[str, str],
    spelled: list[tuple[str, list[list[str]]]],
    missed: list[Removal],
    num_benchmark: int,
) -> str:
    """The Markdown page."""
    head = common.head(
        "Decontamination: training sets against benchmarks",
        ("numpy",),
        "Seconds are processor time of our rule for one training set.",
    )
    rules = list(RULES)
    header = ["training set", "problems", "equal", "not equal", "s", f"of {PART}", *rules[1:]]
    others = {rule: [removal for removal in pairs if not removal.is_equal] for rule, pairs in found.items()}
    summary = [[rule, f"{len(others[rule]):,}", precision(read_of(rule, read), verdicts)] for rule in rules]
    wrong = [removal for removal in read[OURS] if verdicts[removal.name] != "same"]
    reasons = [[code(pair.train), code(pair.benchmark), verdicts[pair.name]] for pair in wrong]
    tables = "\n".join(f"### {title}\n\n{common.table(['written', *rules], rows)}" for title, rows in spelled)
    changed = [[code(pair.train), code(pair.benchmark)] for pair in others[OURS]]
    return f"""{head}
A training problem is removed where its text equals that of a benchmark problem, or where one of the two stands in the other
one as a whole (`w2sr/decontaminate/`). The other rules are in `benchmarks/decontamination_judges.py`:

- *half of the 13-grams*: equal texts, or at least half of the training problem's 13-grams in one benchmark problem.
- *open-r1*: one shared 8-gram. *GPT-3*: one shared 13-gram, also in lm-evaluation-harness. *Qwen2.5-Math*: one shared
  13-gram, and a common subsequence of 0.6 of the shorter text. *Tülu 3*: 8-grams cover more than half of the benchmark problem.

## What passes

Each problem of a benchmark is written in another way that leaves it the same problem. The numbers are those that a rule
lets pass; right is 0. In the last row one number of each problem is greater by 1, which makes another problem: the numbers are
those that a rule removes, and right is 0 too, where the problem's text depends on that number alone.

{tables}
## What is removed

Each training set against {num_benchmark:,} problems of {", ".join(name for name in BENCHMARKS if name != PART)}. *Equal*: the
text is that of a benchmark problem but for case and white space. *Not equal*: what our rule removes besides. *Of {PART}*: what it
removes where {PART} is the only benchmark. The columns to the right give all that the other rules remove.

{common.table(header, lines)}
## What is removed in error

Removals whose texts are not equal, over all training sets, and how many of a sample were the same problem when they were
read: {NUM_READ_OF_PEERS} of each other rule, and all of ours. The same problem: whoever knows the answer to one knows the
answer to the other, without a further step. Numbers, the question or a condition that differ make another problem.

{common.table(["rule", "removals, not equal", "the same problem"], summary)}
Of our rule {len(read[OURS])} removals were read, the {len(others[OURS])} that are not equal and {len(read[OURS]) - len(others[OURS])} drawn from the others: {len(wrong)} were false.

{common.table(["training problem", "benchmark problem", "why it is another problem"], reasons) if reasons else ""}
All removals of our rule whose texts are not equal:

{common.table(["training problem", "benchmark problem"], changed)}
## What is missed

Pairs of a training problem and a benchmark problem that share at least 45 % of their 4-grams and agree in all numbers and signs
were read, 85 of them besides those that name a word whose letters are arranged. These are the same problem and pass, because
a content word differs:

{common.table(["training problem", "benchmark problem"], [[code(pair.train), code(pair.benchmark)] for pair in missed])}
## What is left out

Paraphrases, translations and numbers in words: a model of embeddings finds more of them, and removes twins too. Twins, which ask
another question about the same facts or have other numbers, stay in the training set.
"""


def read_of(rule: str, read: dict[str, list[Removal]]) -> list[Removal]:
    """Of the removals that were read, those whose texts are not equal."""
    return [removal for removal in read[rule] if not removal.is_equal]


if __name__ == "__main__":
    main()
