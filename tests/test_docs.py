"""docs/your-data.md: its commands are run in order, and every form of traces that it shows is read."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from w2sr.datamodules.sources import load_traces
from w2sr.types import DataFile, Trace

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```(bash|yaml)\n(.*?)```", (REPOSITORY / "docs" / "your-data.md").read_text(), re.DOTALL)


def run(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository's root, with the page's files in it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "lightning_cli.py", "w2sr"):
        (folder / name).symlink_to(REPOSITORY / name)
    (make, *_) = [text for language, text in BLOCKS if language == "bash"]
    run(make, folder)
    for language, text in BLOCKS:
        if language == "yaml":
            (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
    return folder


def test_the_page_leads_to_a_result(folder: Path) -> None:
    commands = [text for language, text in BLOCKS if language == "bash"][1:]
    fit, rest = (run(command, folder) for command in commands)
    assert re.search(r"my/traces.json: 240 traces read, 0 bad rows and 0 bad references skipped; correct \d+", fit)
    assert "W2SR-P" in fit and "plain student" in fit
    selection = json.loads((folder / "runs/mine/selection.json").read_text())
    assert selection["teachers"] == ["my-teacher"]
    assert [row["gate"] for row in selection["table"]["gates"]][1:2] == ["finish=stop"]
    assert 50 < selection["num_train_traces"] < 240
    result = json.loads((folder / "runs/mine-eval/result.json").read_text())
    assert (folder / "runs/mine/student/model.safetensors").is_file()
    assert "mine" in json.dumps(result)
    assert "Tom" in rest


def test_every_form_of_the_page_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(folder)
    alpaca = json.loads(Path("my/traces.json").read_text())[:6]
    rows = [
        {"question": r["instruction"], "response": r["output"], "gold": r["gt_answer"], "model": "m"} for r in alpaca
    ]
    write_forms(rows)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk("my/saved")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    entries: list[dict[str, Any]] = yaml.safe_load(Path("my/forms.yaml").read_text())
    assert len(entries) == 10
    for entry in entries:
        file = DataFile(**{**entry, "stop_text": tuple(entry.get("stop_text", ())), "limit": 6})
        traces = load_traces([file], on_bad_row="error", on_bad_reference="error", timeout_s=5.0)
        assert [key(trace) for trace in traces] == [
            (r["instruction"], r["output"], r["gt_answer"], r["is_correct"]) for r in alpaca
        ], entry


def key(trace: Trace) -> tuple[str, str, str, bool]:
    return trace.problem, trace.completion, trace.reference_answer, trace.verdict == "correct"


def write_forms(rows: list[dict[str, str]]) -> None:
    """The page's example rows in the files that its forms name."""
    said = [[("user", row["question"]), ("assistant", row["response"])] for row in rows]
    names = {"user": "human", "assistant": "gpt"}
    sharegpt = [
        {"conversations": [{"from": names[role], "value": text} for role, text in turns], "gold": row["gold"]}
        for row, turns in zip(rows, said, strict=True)
    ]
    openai = [
        {"messages": [{"role": role, "content": text} for role, text in turns], "gold": row["gold"]}
        for row, turns in zip(rows, said, strict=True)
    ]
    Path("my/sharegpt.json").write_text(json.dumps(sharegpt))
    Path("my/openai.jsonl").write_text("\n".join(map(json.dumps, openai)))
    generations = [
        {"question": row["question"], "generations": [row["response"]], "gold": row["gold"], "correctness": [None]}
        for row in rows
    ]
    Path("my/generations.jsonl").write_text("\n".join(map(json.dumps, generations)))
    solutions = [{**row, "answer": f"It is so.\n#### {row['gold']}", "task": "sums"} for row in rows]
    Path("my/gsm8k.jsonl").write_text("\n".join(map(json.dumps, [{"task": "dyck"}, *solutions])))
    chat = [{"chat": row["messages"], "gold": row["gold"]} for row in openai]
    Path("my/chat.jsonl").write_text("\n".join(map(json.dumps, chat)))
    with Path("my/traces.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(
        pa.Table.from_pylist([{**row, "response": row["response"] + "</s>x"} for row in rows]), "my/traces.parquet"
    )
