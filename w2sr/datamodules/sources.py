"""From data files of a config to problems, traces and verifiers: local files, trace stores and hub data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from w2sr.corruption import Corruption, corrupt_traces
from w2sr.locations import locate
from w2sr.problems import read_choice_problems, read_problems
from w2sr.rows import SUFFIXES, Data, OnBadRow
from w2sr.traces import is_store, read_traces
from w2sr.types import DataFile, Kind, Problem, ProblemBatch, Tolerance, Trace
from w2sr.verify import Verifier, extract, parse_rules, usable_references

OnBadReference = Literal["error", "skip"]

DEFAULT_SPLIT = "test"


def load_problems(
    name: str,
    file: DataFile,
    verifier: Verifier,
    *,
    seed: int,
    on_bad_row: OnBadRow = "error",
    on_bad_reference: OnBadReference = "error",
) -> list[Problem]:
    """The problems of a benchmark, all with source `name`. Bad references are refused or skipped, named and counted.

    Raises:
        ValueError: neither a file of this machine nor a hub name, a key that is for traces, or what the readers raise.
        ConnectionError: a hub name that cannot be reached.
    """
    if file.format != "columns" or file.stop_text:
        raise ValueError(f"{file.path}: format and stop_text are for traces; problems have columns. Remove them here.")
    if file.choices and file.reference_rule:
        raise ValueError(
            f"{file.path}: reference_rule finds an answer in a solution, and with choices: true the reference is an "
            "option. Remove reference_rule."
        )
    rows = _data(file)
    if file.choices and file.kind != "choice":
        raise ValueError(
            f"{file.path}: choices: true needs kind: choice, which reads letters and texts of options; kind is "
            f"{file.kind}. Set kind: choice."
        )
    if file.choices:
        problems = read_choice_problems(
            rows, file.columns or {}, seed=seed, source=name, where=file.where, on_bad_row=on_bad_row
        )
    else:
        problems = read_problems(rows, _plain_columns(file), source=name, where=file.where, on_bad_row=on_bad_row)
    problems = problems[: file.limit]
    if file.reference_rule:
        found = found_references([p.reference_answer for p in problems], file.reference_rule, on_bad_reference)
        problems = [p._replace(reference_answer=text) for p, text in zip(problems, found, strict=True)]
    problems, complaints = usable_references(problems, verifier, on_bad_reference)
    for complaint in complaints:
        rank_zero_info(f"{name}: bad references skipped: {complaint}")
    return problems


def found_references(references: Sequence[str], rule: str, on_bad_reference: OnBadReference) -> list[str]:
    """The answer that the rule finds in each reference, or "" where it finds none, which no verifier can use.

    Raises:
        ValueError: `on_bad_reference` is "error" and there is a reference in which the rule finds nothing.
    """
    rules = parse_rules([rule])
    by_text = {text: extract(text, rules).answer for text in dict.fromkeys(references)}
    without = [text for text in references if by_text[text] is None]
    if without and on_bad_reference == "error":
        raise ValueError(
            f"reference_rule {rule} finds no answer in {len(without):,} of {len(references):,} reference answers, the "
            f"first: {without[0][-80:]!r}. Name the rule that does, or set on_bad_reference=skip to leave them out."
        )
    return [by_text[text] or "" for text in references]


def _plain_columns(file: DataFile) -> dict[str, str] | None:
    """Column names, each one text. Lists of columns belong to multiple choice."""
    if file.columns is None:
        return None
    lists = {field: spec for field, spec in file.columns.items() if not isinstance(spec, str)}
    if lists:
        raise ValueError(f"{file.path}: columns {lists} name lists; only choices: true has fields of several columns.")
    return {field: str(spec) for field, spec in file.columns.items()}


def _data(file: DataFile) -> Data:
    """A path that the readers know (a file, a trace store), or the rows of a saved or hub data set.

    Raises:
        ValueError: there is no such data, or the file has a key that another kind of data has.
    """
    path = locate(file.path)
    store = is_store(path)
    if store and (file.reference_rule or file.where):
        raise ValueError(
            f"{file.path} is a trace store, whose reference answers are final and whose rows are all read. Remove "
            "reference_rule and where."
        )
    has_splits = path.is_dir() and not store
    if path.exists() and (file.config is not None or (file.split is not None and not has_splits)):
        raise ValueError(
            f"{file.path} lies on this machine and has no configurations, and only a directory of save_to_disk has "
            f"splits; config is {file.config}, split is {file.split}. Remove them."
        )
    if path.is_file() or store:
        return path
    if path.is_dir():
        return _saved_rows(path, file.split)
    named_file = any(file.path.removesuffix(".gz").endswith(suffix) for suffix in SUFFIXES)
    if named_file or file.path.endswith(".gz") or file.path.count("/") != 1:
        raise ValueError(
            f"there is no data file '{file.path}' (working directory {Path.cwd()}), and it is no hub name of the form "
            "organisation/dataset. Give a file that is there, or such a name."
        )
    return _hub_rows(file)


def _saved_rows(folder: Path, split: str | None) -> Data:
    """The rows of a directory that `datasets` wrote with `save_to_disk`: one data set, or one for each split."""
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise ValueError(
            f"{folder} is a directory, but neither a trace store nor a data set of `save_to_disk`. Give one of its "
            f"files ({', '.join(SUFFIXES)})."
        )
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(folder))
    if not isinstance(saved, DatasetDict):
        if split is not None:
            raise ValueError(f"{folder} is one data set without splits, and split is '{split}'. Remove it.")
        return saved
    split = split or DEFAULT_SPLIT
    if split not in saved:
        raise ValueError(f"{folder} has no split '{split}'; it has {', '.join(saved)}. Set split to one of them.")
    return saved[split]


def _hub_rows(file: DataFile) -> Data:
    """The rows of a hub data set. `datasets` is imported here, because importing it takes a second."""
    from datasets import load_dataset

    split = file.split or DEFAULT_SPLIT
    try:
        return load_dataset(file.path, file.config, split=split)
    except (ConnectionError, OSError) as error:
        raise ConnectionError(
            f"the hub data set '{file.path}' (config {file.config}, split {split}) is not in the local cache and "
            f"the hub cannot be reached ({type(error).__name__}). Connect, or give the path of a local copy."
        ) from error


def build_verifiers(files: Mapping[str, DataFile], timeout_s: float) -> dict[str, Verifier]:
    """One verifier for each benchmark, by its extraction rules. Worker processes start when first needed."""
    return {name: _verifier(file, timeout_s) for name, file in files.items()}


def _verifier(file: DataFile, timeout_s: float) -> Verifier:
    return Verifier(file.rules, file.kind, timeout_s, tolerance=file.tolerance)


def load_traces(
    files: Sequence[DataFile],
    *,
    corruption: Corruption | None = None,
    on_bad_row: OnBadRow,
    on_bad_reference: OnBadReference,
    timeout_s: float,
) -> list[Trace]:
    """The traces of all files, each with a verdict: rows that bear none are verified by their file's rules.

    Errors are put in before that, where `corruption` asks for some. Prints what was read and how it was judged.
    """
    traces: list[Trace] = []
    for file in files:
        read, num_skipped = _read_file(file, on_bad_row, on_bad_reference)
        if corruption is not None:
            read, report = corrupt_traces(read, corruption, file.rules)
            rank_zero_info(f"{file.path}: {report}")
        judged, num_bad = verify_by_rules(read, file, on_bad_reference, timeout_s)
        verdicts = ", ".join(f"{label} {count:,}" for label, count in Counter(t.verdict for t in judged).most_common())
        rank_zero_info(
            f"{file.path}: {len(read):,} traces read, {num_skipped:,} bad rows and {num_bad:,} bad references skipped; "
            f"{verdicts}"
        )
        traces += judged
    return traces


def _read_file(file: DataFile, on_bad_row: OnBadRow, on_bad_reference: OnBadReference) -> tuple[list[Trace], int]:
    """The first traces of a file, as many as its limit says, and how many rows were skipped."""
    if file.choices:
        raise ValueError(f"{file.path}: choices: true is for problems; a trace has its options already. Remove it.")
    read, num_skipped = read_traces(
        _data(file),
        _plain_columns(file),
        format=file.format,
        stop_text=file.stop_text,
        where=file.where,
        on_bad_row=on_bad_row,
    )
    read = read[: file.limit]
    if file.reference_rule:
        read = by_reference_rule(read, file.reference_rule, on_bad_reference)
    return read, num_skipped


def by_reference_rule(traces: Sequence[Trace], rule: str, on_bad_reference: OnBadReference) -> list[Trace]:
    """The traces with the answers that the rule finds in their reference answers (see `found_references`)."""
    found = found_references([trace.reference_answer for trace in traces], rule, on_bad_reference)
    return [replace(trace, reference_answer=text) for trace, text in zip(traces, found, strict=True)]


def verify_by_rules(
    traces: Sequence[Trace], file: DataFile, on_bad_reference: OnBadReference, timeout_s: float = 5.0
) -> tuple[list[Trace], int]:
    """Likewise as a file says; a corrupted trace is verified by the rule and grader that it bears already."""
    groups: dict[tuple[tuple[str, ...], Kind], list[Trace]] = {}
    for trace in traces:
        own = bool(trace.corruption and trace.answer_rule)
        kind = cast(Kind, trace.grader) if own and trace.grader in get_args(Kind) else file.kind
        groups.setdefault(((trace.answer_rule,) if own else tuple(file.rules), kind), []).append(trace)
    judged: dict[str, Trace] = {}
    for (rules, kind), group in groups.items():
        tolerance = file.tolerance if kind == file.kind else Tolerance()
        with Verifier(rules, kind, timeout_s, tolerance=tolerance) as verifier:
            done, _ = verify_traces(group, verifier, on_bad_reference)
        judged |= {trace.trace_id: trace for trace in done}
    kept = [judged[trace.trace_id] for trace in traces if trace.trace_id in judged]
    return kept, len(traces) - len(kept)


def verify_traces(
    traces: Sequence[Trace], verifier: Verifier, on_bad_reference: OnBadReference
) -> tuple[list[Trace], int]:
    """The traces with verdicts, and how many were left out because their reference answer cannot be used.

    A verdict that a trace bears already is kept; where it does not say which rule found the answer, the verifier's do.
    """
    references = {
        trace.problem_id: Problem(trace.problem_id, trace.source, trace.problem, trace.reference_answer)
        for trace in traces
        if not trace.verdict
    }
    good, complaints = usable_references(references.values(), verifier, on_bad_reference)
    for complaint in complaints:
        rank_zero_info(f"bad references skipped: {complaint}")
    usable = {problem.problem_id for problem in good} | {trace.problem_id for trace in traces if trace.verdict}
    kept = [trace for trace in traces if trace.problem_id in usable]
    bare = [trace for trace in kept if not trace.verdict]
    verdicts = iter(verifier.verify_all([(trace.completion, trace.reference_answer) for trace in bare]))
    judged: list[Trace] = []
    for trace in kept:
        if trace.verdict:
            judged.append(trace if trace.answer_rule else _with_rule(trace, verifier))
            continue
        judged.append(trace.judged(next(verdicts)))
    return judged, len(traces) - len(kept)


def _with_rule(trace: Trace, verifier: Verifier) -> Trace:
    """The trace with the rule that finds its answer, and the answer where its file gave only a verdict."""
    found = extract(trace.completion, verifier.rules)
    return replace(trace, answer=found.answer if trace.answer is None else trace.answer, answer_rule=found.rule)


def problem_loader(problems: Sequence[Problem], batch_size: int, rank: int, world_size: int) -> DataLoader[Any]:
    """Batches of this rank's share. Every rank has equally many, filled up with problems of weight 0."""
    num_each = -(-len(problems) // world_size)
    mine = [(problem, 1.0) for problem in problems[rank::world_size]]
    mine += [(problems[0], 0.0)] * (num_each - len(mine))
    batches = [
        ProblemBatch(*(tuple(column) for column in zip(*mine[start : start + batch_size], strict=True)))
        for start in range(0, len(mine), batch_size)
    ]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
