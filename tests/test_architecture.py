"""The house: imports point down, and no room has grown into two."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "w2sr"

FLOORS: list[set[str]] = [
    {"types", "locations", "arithmetic", "chance", "normal_text", "untried"},
    # pure rules: no Lightning, no transformers models
    {"rows", "runs", "templates", "tokenizer", "tools", "shards", "slurm", "ranks"},
    {"traces", "problems", "packing", "verify", "puzzles", "losses", "logprobs"}
    | {"advantages", "results", "curriculum", "weight_files", "scaling", "stops"},
    {"supervision", "decontaminate", "votes", "rewards", "conversation"},
    {"chat", "corruption", "selection"},
    {"token_cache", "trace_summary", "audit"},
    # engines
    {"attention", "flops"},
    {"policy"},
    {"sharding", "kernels"},
    {"rollouts", "metrics", "scores"},
    {"evaluation", "report", "trace_page"},
    {"distillation", "groups"},
    # Lightning
    {"datamodules"},
    {"modules"},
    {"callbacks"},
    # experiments
    {"miniature"},
    {"config_errors", "verbs"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "w2sr" else [f"w2sr.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("w2sr.")}
    return rooms - {"__version__"}


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not imported_rooms(path)
        return
    wrong = {other for other in imported_rooms(path) if other != room and LEVEL[other] >= LEVEL[room]}
    assert not wrong, f"{room} (floor {LEVEL[room]}) imports {sorted(wrong)}"


@pytest.mark.parametrize("floor", range(LEVEL["token_cache"] + 1))
def test_pure_rules_know_no_lightning_and_no_models(floor: int) -> None:
    for path in FILES:
        if LEVEL.get(room_of(path), 99) != floor:
            continue
        text = path.read_text()
        assert "import lightning" not in text and "from lightning" not in text, path
        assert "AutoModel" not in text, path


def test_functions_stay_under_60_lines_and_files_under_400() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert path.read_text().count("\n") <= 400, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) else None
                length = node.end_lineno - node.lineno + 1
                length -= (docstring.end_lineno - docstring.lineno + 1) if docstring else 0
                assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_the_test_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("from w2sr.cli import main\nimport w2sr.modules.sft\nfrom w2sr import types, __version__\n")
    assert imported_rooms(file) == {"cli", "modules", "types"}
