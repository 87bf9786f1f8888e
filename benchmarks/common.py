"""What the benchmarks share: the head of a results page, Markdown tables, and where real data lies."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from w2sr import __version__


def parser(description: str | None) -> argparse.ArgumentParser:
    """Command line with the two arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder with traces/ and tokenizers/")
    made.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    return made


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def head(title: str, packages: Sequence[str], note: str) -> str:
    """Title, exact command, versions and machine."""
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    command = threads + shlex.join(["python", *sys.argv])
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"""# {title}

    {command}

w2sr {__version__}, Python {platform.python_version()}, {versions}; {os.cpu_count()} CPU cores, {memory:.0f} GiB.
{note}
"""


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    body = [list(line) for line in lines]
    numeric = [all(_is_number(line[column]) for line in body) for column in range(len(header))]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in [header, rule, *body]) + "\n"


def _is_number(cell: str) -> bool:
    return not cell or cell.strip("*~×%+-−")[:1].isdigit()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write(path: Path, text: str) -> None:
    """Writes the page and says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)
