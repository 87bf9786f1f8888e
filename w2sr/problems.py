"""Problems from files that others wrote; multiple choice with shuffled options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from w2sr import chance
from w2sr.normal_text import fold
from w2sr.rows import (
    MEDIA,
    BadRows,
    Data,
    OnBadRow,
    Row,
    Where,
    as_answer,
    as_prose,
    as_text,
    cell,
    check_fields,
    column_names,
    data_name,
    derived_id,
    problem_hash,
    read_rows,
    refuse_media,
)
from w2sr.types import Problem

__all__ = ["problem_hash", "read_choice_problems", "read_problems", "shuffle_options"]

FIELDS = ("problem_id", "source", "problem", "reference_answer", "stratum")
CHOICE_FIELDS = (*FIELDS, "options", "correct", "incorrect")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"\(?([A-Z])[).:]\s*")
_LABEL_INSIDE = re.compile(r"(?<!\S)\(?([A-Z])[).](?=\s)")

Columns = Mapping[str, str | Sequence[str]]
"""Field to column; `incorrect` to several columns."""


def read_problems(
    data: Data,
    columns: Mapping[str, str] | None = None,
    *,
    source: str | None = None,
    where: Where | None = None,
    on_bad_row: OnBadRow = "error",
) -> list[Problem]:
    """Reads problems from a file (see `w2sr.rows.SUFFIXES`), or from rows already in memory.

    Args:
        data: a path, or rows as mappings.
        columns: field of Problem to column of the file, or to `=text`, a literal for every row. A field that is not
            mapped is looked for under its own name; only `problem` and `reference_answer` must be found. Without
            `problem_id` the id is made of the source and a hash of the problem.
        source: short for `columns.source: "=..."`, and wins over a column that happens to be called `source`.
        where: a filter of rows (see `w2sr.rows.read_rows`).
        on_bad_row: `error` names file and line; `skip` leaves the row out and counts it in a warning. A boolean
            reference answer is read as `true` or `false`, and a list of equal ones as one. An empty one is not a bad
            row: whether it can be used is for the verifier to say. A row with a picture is bad.

    Raises:
        ValueError: an empty or damaged file, a column that is not there, a bad row, an id that is there twice.
    """
    required = ("problem", "reference_answer", "source")
    specs = _with_source(columns or {}, source, FIELDS)
    bad = BadRows(on_bad_row)
    problems: dict[str, Problem] = {}
    for row in _read(data, specs, bad, required, where):
        try:
            gold = _text(row, specs, "reference_answer")
            _add(problems, _problem(row, specs, _text(row, specs, "problem"), gold))
        except ValueError as error:
            bad.meet(row.where, error)
    bad.report(data_name(data), len(problems))
    return list(problems.values())


def read_choice_problems(
    data: Data,
    columns: Columns,
    *,
    seed: int | None,
    source: str | None = None,
    where: Where | None = None,
    on_bad_row: OnBadRow = "error",
) -> list[Problem]:
    """Reads multiple-choice problems; options are shuffled into the problem, the reference answer is "B) its text".

    The reference is the letter alone where another option differs from the gold in nothing but case, spacing and
    punctuation: an answer that gives the text would not say which of the two it means.

    Args:
        data: a path, or rows as mappings.
        columns: as in `read_problems`, and where options and gold are, in one of three forms:
            `correct: Correct Answer, incorrect: [Incorrect Answer 1, ...]` (GPQA; or one column that holds a list),
            `options: options, reference_answer: answer` (options and the letter of the gold), or
            `options: options, correct: answer` (options and the text of the gold).
            Options are a list of texts; `{A: ..., B: ...}`; `{label: [...], text: [...]}` or a list of {label, text};
            or one text "A) ... B) ...". Labels such as "A) " are taken off where every option of a row bears its own.
        seed: of the shuffle, which depends on it and the problem's id alone. None keeps the file's order, which a file
            in the first form has not. Options that speak of others by letter ("both A and B") need None.
        source, where, on_bad_row: as in `read_problems`.

    Raises:
        ValueError: as `read_problems`, and where options or gold cannot be used.
    """
    mapped = {"options", "correct", "incorrect", "reference_answer"} & set(columns)
    if mapped not in ({"correct", "incorrect"}, {"options", "reference_answer"}, {"options", "correct"}):
        raise ValueError(
            f"columns maps {', '.join(sorted(mapped)) or 'no options'}; it must map correct and incorrect, or options "
            "and reference_answer (a letter), or options and correct (a text)."
        )
    lists = [field for field, spec in columns.items() if not isinstance(spec, str) and field != "incorrect"]
    if lists:
        raise ValueError(
            f"columns.{lists[0]} is {columns[lists[0]]!r}; only columns.incorrect may name several columns."
        )
    if seed is None and "incorrect" in mapped:
        raise ValueError("seed=None keeps the file's order, but columns of correct and incorrect answers have none.")
    columns = _with_source(columns, source, CHOICE_FIELDS)
    bad = BadRows(on_bad_row)
    problems: dict[str, Problem] = {}
    for row in _read(data, columns, bad, ("problem", "source"), where):
        try:
            bare = _problem(row, columns, _text(row, columns, "problem"), "")
            options, gold = _options(row, columns)
            text, letter = shuffle_options(bare.problem, options, gold, seed, bare.problem_id)
            alike = [option for option in options if _bare_text(option) == _bare_text(options[gold])]
            reference = letter if len(alike) > 1 else f"{letter}) {options[gold]}"
            _add(problems, bare._replace(problem=text, reference_answer=reference))
        except ValueError as error:
            bad.meet(row.where, error)
    bad.report(data_name(data), len(problems))
    return list(problems.values())


def shuffle_options(
    problem: str, options: Sequence[str], gold_index: int, seed: int | None, problem_id: str
) -> tuple[str, str]:
    """Renders a problem with lettered options in an order that depends on seed and id alone, and names the gold.

    >>> shuffle_options("2 + 2?", ["4", "5", "22"], 0, None, "sum/1")
    ('2 + 2?\\nA) 4\\nB) 5\\nC) 22', 'A')
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"has {len(options)} options; 2 to {len(LETTERS)} can be lettered")
    if options.count(options[gold_index]) > 1:
        raise ValueError(f"has the gold {options[gold_index]!r} twice among its options")
    order = list(range(len(options)))
    if seed is not None:
        order.sort(key=lambda index: chance.integer("options", seed, problem_id, index))
    lines = [f"{letter}) {options[index]}" for letter, index in zip(LETTERS, order, strict=False)]
    return "\n".join([problem, *lines]), LETTERS[order.index(gold_index)]


def _with_source(columns: Columns, source: str | None, fields: Sequence[str]) -> Columns:
    check_fields(columns, fields)
    if source is None:
        return columns
    if "source" in columns:
        raise ValueError(f"source={source!r} and columns.source={columns['source']!r} contradict: remove one of them.")
    return {**columns, "source": f"={source}"}


def _read(data: Data, columns: Columns, bad: BadRows, required: Sequence[str], where: Where | None) -> Iterator[Row]:
    mapped = [name for spec in columns.values() for name in ([spec] if isinstance(spec, str) else spec)]
    own = [field for field in required if field not in columns]
    optional = [field for field in ("problem_id", "stratum") if field not in columns]
    return read_rows(data, [*column_names(mapped), *own], bad, optional=[*optional, *MEDIA], where=where)


def _value(row: Row, columns: Columns, field: str) -> object:
    return cell(row, str(columns.get(field, field)))


def _text(row: Row, columns: Columns, field: str) -> str:
    convert = {"reference_answer": as_answer, "correct": as_answer, "problem": as_prose}.get(field, as_text)
    try:
        return convert(_value(row, columns, field)).strip()
    except ValueError as error:
        raise ValueError(f"{field} (column {columns.get(field, field)!r}) {error}") from error


def _problem(row: Row, columns: Columns, problem: str, reference_answer: str) -> Problem:
    if not problem:
        raise ValueError("the problem is empty")
    refuse_media(row, {str(spec) for spec in columns.values()})
    source = _text(row, columns, "source")
    given = {f: _text(row, columns, f) for f in ("problem_id", "stratum") if _value(row, columns, f) is not None}
    return Problem(
        problem_id=given.get("problem_id") or derived_id(source, problem),
        source=source,
        problem=problem,
        reference_answer=reference_answer,
        stratum=given.get("stratum", ""),
    )


def _add(problems: dict[str, Problem], problem: Problem) -> None:
    if problem.problem_id in problems:
        raise ValueError(f"problem_id {problem.problem_id!r} is there already; ids must be unique")
    problems[problem.problem_id] = problem


def _options(row: Row, columns: Columns) -> tuple[list[str], int]:
    if "incorrect" in columns:
        spec = columns["incorrect"]
        wrong = cell(row, spec) if isinstance(spec, str) else [cell(row, column) for column in spec]
        return [_text(row, columns, "correct"), *_texts(wrong, "incorrect")], 0
    labels, options = _labelled_options(_value(row, columns, "options"))
    if "correct" in columns:
        gold = _text(row, columns, "correct")
        if gold not in options:
            raise ValueError(f"the correct answer {gold!r} is none of the options {options}")
        return options, options.index(gold)
    letter = _text(row, columns, "reference_answer")
    if letter not in labels:
        raise ValueError(f"the gold {letter!r} is not the letter of one of {len(options)} options")
    return options, labels.index(letter)


def _labelled_options(value: object) -> tuple[list[str], list[str]]:
    """The labels and the texts of options, in any of the forms that `read_choice_problems` names."""
    if isinstance(value, str):
        value = _split_options(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):
        value = {name: [item.get(name) for item in value] for name in ("label", "text")}
    if isinstance(value, Mapping):
        given = (
            dict(value) if value.keys() == {"label", "text"} else {"label": list(value), "text": list(value.values())}
        )
        labels, options = _texts(given["label"], "option labels"), _texts(given["text"], "options")
        if len(set(labels)) < len(labels) or len(labels) != len(options):
            raise ValueError(f"the labels {labels} do not name {len(options)} options")
        return labels, options
    options = _texts(value, "options")
    letters = list(LETTERS[: len(options)])
    marks = [_LABEL.match(option) for option in options]
    if [mark and mark.group(1) for mark in marks] == letters:
        options = [option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark]
    return letters, options


def _split_options(text: str) -> list[str]:
    """'A) first B) second' in two. Every label must stand at exactly one place, or it would be a guess."""
    labels = list(_LABEL_INSIDE.finditer(text))
    named = "".join(label.group(1) for label in labels)
    if not labels or text[: labels[0].start()].strip() or named != LETTERS[: len(labels)]:
        raise ValueError(f"options is {text!r:.60}, neither a list of texts nor a text of the form 'A) ... B) ...'")
    ends = [label.start() for label in labels[1:]] + [len(text)]
    return [text[label.start() : end].strip() for label, end in zip(labels, ends, strict=True)]


def _bare_text(option: str) -> str:
    """The text without case, spacing, markup and punctuation that a comparison of texts may ignore."""
    return re.sub(r"[\s.,;:!?\"'`()\[\]{}*_$“”‘’«»\\]", "", fold(option).casefold())


def _texts(value: object, field: str) -> list[str]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{field} is {value!r:.60}, not a list of texts")
    try:
        return [as_text(item).strip() for item in value]
    except ValueError as error:
        raise ValueError(f"{field}: one {error}") from error
