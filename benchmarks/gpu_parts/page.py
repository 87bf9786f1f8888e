"""The page and the JSON of a run. Both are written after every line, so that a run that is cut off loses one at most."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import torch

from gpu_parts.bench import Bench, Row
from gpu_parts.goals import judged

NOT_SHOWN = ("step s", "traceback")
"""Columns that only the JSON has."""


def machine_of(bench: Bench) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"


def described(bench: Bench) -> str:
    """The device and the versions under it, as a sentence."""
    if bench.device.type != "cuda":
        return "**A check of the script on shrunken models: no number here is a result.**"
    properties = torch.cuda.get_device_properties(bench.device)
    shrunken = " **Shrunken models: no number here is a result.**" if bench.tiny else ""
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability {properties.major}."
        f"{properties.minor}, CUDA {torch.version.cuda}.{shrunken}"
    )


def write(
    bench: Bench, out: Path, results: Mapping[str, Sequence[Row]], seconds: Mapping[str, float], name: str
) -> Path:
    """Writes both, each whole or not at all. Returns the path of the page.

    Args:
        seconds: how long each part took that has ended.
        name: of the parts that were asked for.
    """
    machine = machine_of(bench)
    goals = [] if bench.tiny else judged(results)
    tables = {**({"goals": goals} if goals else {}), **results}
    text = [common.head(f"One GPU: {machine}", ("torch", "transformers", "lightning"), described(bench))]
    for part, rows in tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in NOT_SHOWN))
        lines = [[shown(row.get(column, "")) for column in columns] for row in rows]
        took = f" ({seconds[part]:.0f} s)" if part in seconds else ""
        text += [f"## {part}{took}\n", common.table(columns, lines)]
    record = {
        "machine": machine,
        "device": described(bench),
        "tiny": bench.tiny,
        "command": sys.argv,
        "torch": torch.__version__,
        "goals": goals,
        "seconds": dict(seconds),
        "parts": results,
    }
    base = out / f"{'-'.join(machine.lower().split())}-{name}"
    out.mkdir(parents=True, exist_ok=True)
    _replace(base.with_suffix(".json"), json.dumps(record, indent=1))
    _replace(base.with_suffix(".md"), "\n".join(text).rstrip("\n"))
    return base.with_suffix(".md")


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)


def shown(value: Any) -> str:
    """A cell of the page."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
