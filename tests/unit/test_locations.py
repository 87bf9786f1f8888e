from __future__ import annotations

from pathlib import Path

import pytest

from w2sr.locations import PACKAGE, locate, locate_model


def test_a_path_that_is_there_is_taken_as_given(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path


def test_shipped_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("w2sr/miniature/data") == PACKAGE / "miniature" / "data"
    assert Path(locate_model("w2sr/miniature/student")).is_dir()


def test_hub_names_pass_and_missing_directories_do_not() -> None:
    assert locate_model("Qwen/Qwen2.5-Math-7B") == "Qwen/Qwen2.5-Math-7B"
    for wrong in ("runs/x/student", "./x/y", "/no/such", "gpt2-local-copy", "a/b/c"):
        with pytest.raises(ValueError, match="there is no model directory"):
            locate_model(wrong)
