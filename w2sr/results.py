"""What an evaluation leaves behind: the content of `result.json`, written whole or not at all, read with checks."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from w2sr import __version__

RESULT_FORMAT = "w2sr.result"
RESULT_VERSION = 1

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
IntervalMethod = Literal["wilson", "bootstrap", "none"]

_VERSIONED = ("torch", "lightning", "transformers", "torchmetrics", "numpy")


class Estimate(NamedTuple):
    """A fraction with its 95 % interval and the number of problems behind it.

    `value` is NaN where no problem was seen; `low` and `high` are NaN, and `method` is "none", where no interval can be
    given. A NamedTuple, because torchmetrics rebuilds what `compute` returns and refuses frozen dataclasses.
    """

    value: float
    low: float
    high: float
    num_problems: int
    method: IntervalMethod


class ProblemCount(NamedTuple):
    """How many of a problem's samples were right: the raw material of RGR and of every later comparison."""

    num_correct: int
    num_samples: int
    source: str

    @property
    def pass_rate(self) -> float:
        return self.num_correct / self.num_samples


@dataclass(frozen=True, slots=True)
class Cost:
    """What an arm cost: wall seconds and tokens. `None` says unknown or not applicable (a model nobody trained).

    `seconds` and `num_generated_tokens` are the evaluation's; `train_seconds` and `num_train_tokens` the fit's.
    """

    seconds: float
    num_generated_tokens: int
    train_seconds: float | None = None
    num_train_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """One evaluated arm: what `result.json` holds.

    `name` labels the arm, `model` is a path or hub name, `num_samples` the samples drawn per problem. `estimates` has
    keys like "pass@1/gsm8k", "pass@1/gsm8k/level 5", "pass@1/pooled" (every problem counts alike) and, with several
    sources, "pass@1/average" (every source counts alike). `finished_frac` and `cut_off_frac` are the shares of the
    *expected* samples that ended with a stop token and at the token limit; a missing sample is in neither.
    `mean_completion_tokens` is NaN where no sample told its length. `created` is an ISO time in UTC.

    Raises:
        ValueError: if a count in `per_problem` is impossible.
    """

    name: str
    model: str
    sources: tuple[str, ...]
    num_samples: int
    estimates: dict[str, Estimate]
    per_problem: dict[str, ProblemCount]
    finished_frac: float
    cut_off_frac: float
    num_missing_samples: int
    mean_completion_tokens: float
    sampling: dict[str, JsonValue]
    cost: Cost
    command: str
    versions: dict[str, str]
    created: str
    extra: dict[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem_id, count in self.per_problem.items():
            if not 0 <= count.num_correct <= count.num_samples or count.num_samples < 1:
                raise ValueError(
                    f"Result {self.name!r}: problem {problem_id!r} has {count.num_correct} correct of "
                    f"{count.num_samples} samples. Counts run from 0 to num_samples, which is at least 1: "
                    f"evaluate this arm again."
                )


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on; "absent" where one is not installed."""
    ours = {"w2sr": __version__, "python": platform.python_version()}
    return ours | {name: next((d.version for d in metadata.distributions(name=name)), "absent") for name in _VERSIONED}


def write_result(result: RunResult, path: str | Path) -> Path:
    """Writes a result as JSON by atomic rename: a kill at any moment leaves the old file or the new one.

    Numbers that are not finite are written as null, because JSON has no NaN.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    content = {"format": RESULT_FORMAT, "version": RESULT_VERSION, **_to_json(result)}
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def read_result(path: str | Path) -> RunResult:
    """Reads a `result.json`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, is no result file, or has a version or fields that this code does not know.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not whole JSON ({len(text):,} characters; {error}). It was cut off or is no result file: "
            f"evaluate this arm again."
        ) from error
    if not isinstance(content, dict) or content.get("format") != RESULT_FORMAT:
        raise ValueError(f"{path} is JSON but has no 'format': '{RESULT_FORMAT}'. Name a result.json of an evaluation.")
    if content.get("version") != RESULT_VERSION:
        raise ValueError(
            f"{path} has result version {content.get('version')!r}; this w2sr reads version {RESULT_VERSION}. "
            f"Read it with the w2sr that wrote it ({content.get('versions')}), or evaluate this arm again."
        )
    return _from_json({k: v for k, v in content.items() if k not in ("format", "version")}, path)


def read_arms(paths: Sequence[Path]) -> list[RunResult]:
    """The arms of result files and of folders that hold some, each once, in the order of the paths.

    Every `fit` evaluates the plain student and the teacher beside its own, so two runs have equal arms: the first is
    taken. Equal are arms of one model with one sampling whose problems have the same counts; cost is not compared.

    Raises:
        FileNotFoundError, ValueError: there is no result; or two arms of one name differ: both files are named.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no {path}. Name a result.json, or a folder that holds some: RUN/eval.")
    files = [file for path in paths for file in (sorted(path.rglob("result.json")) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"There is no result.json under {', '.join(map(str, paths))}. Run `test` or `fit` first.")
    arms: dict[str, tuple[Path, RunResult]] = {}
    for file in files:
        result = read_result(file)
        first, other = arms.setdefault(result.name, (file, result))
        if differences := _differences(other, result):
            raise ValueError(
                f"Two results are called {result.name!r} and differ in {'; '.join(differences)}: {first} and {file}. "
                "Leave one of them out: name result.json files in the place of their folder. Or evaluate one again "
                "under another name, with `test` and EvalWriter's `name`."
            )
    return [result for _, result in arms.values()]


def _differences(one: RunResult, other: RunResult) -> list[str]:
    """In what two results of one name are not the same measurement, in words."""
    named = [
        f"{name} ({getattr(one, name)!r} and {getattr(other, name)!r})"
        for name in ("model", "sources", "num_samples", "sampling")
        if getattr(one, name) != getattr(other, name)
    ]
    if named:
        return named
    if one.per_problem.keys() != other.per_problem.keys():
        num_shared = len(one.per_problem.keys() & other.per_problem.keys())
        return [f"problems ({len(one.per_problem):,} and {len(other.per_problem):,}, {num_shared:,} in both)"]
    num_differing = sum(one.per_problem[name] != other.per_problem[name] for name in one.per_problem)
    return [f"the verdicts of {num_differing:,} of {len(one.per_problem):,} problems"] if num_differing else []


def _to_json(result: RunResult) -> dict[str, Any]:
    plain = {item.name: getattr(result, item.name) for item in fields(result)}
    plain["estimates"] = {name: estimate._asdict() for name, estimate in result.estimates.items()}
    plain["cost"] = {item.name: getattr(result.cost, item.name) for item in fields(result.cost)}
    return {name: _finite_or_null(value) for name, value in plain.items()}


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite_or_null(item) for name, item in value.items()}
    return [_finite_or_null(item) for item in value] if isinstance(value, (list, tuple)) else value


def _from_json(content: dict[str, Any], path: Path) -> RunResult:
    _require_fields(content, [item.name for item in fields(RunResult)], f"{path}")
    _require_fields(content["cost"], [item.name for item in fields(Cost)], f"{path}: cost")
    estimates = {}
    for name, estimate in content["estimates"].items():
        _require_fields(estimate, Estimate._fields, f"{path}: estimate {name!r}")
        bounds = {bound: _number(estimate[bound]) for bound in ("value", "low", "high")}
        estimates[name] = Estimate(**{**estimate, **bounds})
    return RunResult(
        **{
            **content,
            "sources": tuple(content["sources"]),
            "estimates": estimates,
            "per_problem": {name: ProblemCount(*count) for name, count in content["per_problem"].items()},
            "finished_frac": _number(content["finished_frac"]),
            "cut_off_frac": _number(content["cut_off_frac"]),
            "mean_completion_tokens": _number(content["mean_completion_tokens"]),
            "cost": Cost(**{**content["cost"], "seconds": _number(content["cost"]["seconds"])}),
        }
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _require_fields(found: Any, wanted: Iterable[str], where: str) -> None:
    found_names, wanted_names = set(found) if isinstance(found, dict) else set(), set(wanted)
    if found_names != wanted_names:
        raise ValueError(
            f"{where} lacks the fields {sorted(wanted_names - found_names)} and has unknown fields "
            f"{sorted(found_names - wanted_names)}. It was edited or written by another program: evaluate again."
        )
