"""What `cpu.py` recorded before: a ratio of each row, its tolerance, and whether a later one leaves it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

BASELINE = Path(__file__).with_suffix(".json")
LEAST_TOLERANCE = 0.1
"""A change below a tenth is no finding: two runs of the same code differ by that on a shared machine."""
SLOWER, FASTER, AS_BEFORE, NEW = "slower", "faster", "as before", "no baseline"


@dataclass(frozen=True)
class Recorded:
    """What a row was when it was recorded.

    Args:
        ratio: the median of the rounds.
        least: the smallest ratio of a round.
        most: the largest.
        rounds: their number.
        tolerance: the fraction by which a later ratio may differ.
        load: load average of the machine, per core, at the end.
        versions: package → version, and Python's.
    """

    ratio: float
    least: float
    most: float
    rounds: int
    tolerance: float
    load: float
    versions: dict[str, str]


def tolerance(ratios: Sequence[float]) -> float:
    """How much a later median may differ: the whole spread of single rounds as a fraction, and not below a tenth.

    >>> round(tolerance([0.9, 1.0, 1.25]), 2), tolerance([1.0, 1.01, 1.02])
    (0.35, 0.1)
    """
    return max(LEAST_TOLERANCE, (max(ratios) - min(ratios)) / median(ratios))


def verdict(ratio: float, before: Recorded | None) -> str:
    """Whether a ratio left the baseline by more than its tolerance; the two directions are of one size as factors."""
    if before is None:
        return NEW
    if ratio > before.ratio * (1 + before.tolerance):
        return SLOWER
    return FASTER if ratio < before.ratio / (1 + before.tolerance) else AS_BEFORE


def record(ratios: Sequence[float], load: float, versions: Mapping[str, str]) -> Recorded:
    """What the baseline keeps of a row's rounds."""
    middle, least, most = (round(number, 4) for number in (median(ratios), min(ratios), max(ratios)))
    return Recorded(middle, least, most, len(ratios), round(tolerance(ratios), 3), round(load, 1), dict(versions))


def read_baseline(path: Path) -> dict[str, Recorded]:
    """The recorded rows by name; none where nothing was recorded.

    Raises:
        ValueError: the file is not what `write_baseline` writes.
    """
    if not path.exists():
        return {}
    try:
        return {name: Recorded(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no baseline ({error}). It should hold an object a row, with {', '.join(Recorded.__annotations__)}. "
            "Restore it, or remove it and run with --record."
        ) from error


def write_baseline(path: Path, rows: Mapping[str, Recorded]) -> None:
    """Rows by name, so that a change of one is a small diff."""
    path.write_text(json.dumps({name: asdict(rows[name]) for name in sorted(rows)}, indent=1) + "\n", encoding="utf-8")
