"""The README's commands name verbs, configurations and paths that exist, and its tree is the tree."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert targets >= {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_config_exists() -> None:
    named = set(re.findall(r"configs/[\w./-]+\.yaml", README))
    assert named and all((ROOT / path).is_file() for path in named), named


def test_every_verb_exists() -> None:
    from w2sr.verbs import VERBS

    verbs = set(re.findall(r"lightning_cli\.py (\w+)", README))
    assert verbs <= {"fit", "test", "predict", *VERBS}


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links), links


def test_the_tree_is_the_tree() -> None:
    rooms = set(re.findall(r"^  (?:\w+\.py|\w+/)(?:  (?:\w+\.py|\w+/))*", README, re.MULTILINE))
    names = {name for line in rooms for name in line.split()}
    assert len(names) > 10
    assert all((ROOT / "w2sr" / name).exists() for name in names), names


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
