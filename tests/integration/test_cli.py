"""The command line as a person meets it: help, printed configuration, verbs, and errors that are one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from w2sr.cli import main
from w2sr.metrics import PassAtK
from w2sr.results import Cost, ProblemCount, RunResult, write_result

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("vllm", "flash_attn", "datasets", "liger_kernel", "math_verify", "peft", "pyarrow.parquet")


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    ).stdout


def test_loading_the_command_line_imports_nothing_heavy() -> None:
    loaded = python(f"import sys, w2sr.cli; print([name for name in {HEAVY!r} if name in sys.modules])")
    base = python(f"import sys, lightning.pytorch.cli; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded == base


HELP = """
import contextlib, io, sys
from w2sr.__main__ import main
for verb in ("ask", "audit", "corrupt", "decontaminate", "merge", "puzzles", "report", "traces", "vote"):
    sys.argv[1:] = [verb, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
        main()
    assert told.getvalue().startswith(f"usage: {verb} "), told.getvalue()
    assert "torch" not in sys.modules, verb
sys.argv[1:] = ["fit", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
assert "torch" in sys.modules
"""


def test_help_of_a_verb_needs_no_torch() -> None:
    """Which takes seconds to import. Of export, score and submit it does."""
    subprocess.run([sys.executable, "-c", HELP], check=True, cwd=ROOT)


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "ask STUDENT" in printed and "report RESULT" in printed and "fit" in printed


def test_print_config_shows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(ROOT / "configs/w2sr_n.yaml"), "--print_config"])
    printed = capsys.readouterr().out
    assert "keep: N" in printed and "overlong: error" in printed and "max_per_problem: null" in printed


def test_ask_answers_with_the_shipped_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    question = "Today Mia has 23 apples. Tom has 8 more than Mia. How many apples does Tom have?"
    main(["ask", "w2sr/miniature/teacher", question, "--max_new_tokens", "60"])
    assert "\\boxed{31}" in capsys.readouterr().out


def test_ask_says_when_it_was_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ask", "w2sr/miniature/teacher", "How many apples does Tom have?", "--max_new_tokens", "2"])
    assert "cut off at --max_new_tokens 2" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "ask", "runs/nowhere/student", "1 + 1?")
    assert message.startswith("error: there is no model directory 'runs/nowhere/student'")
    assert message.count("\n") == 1


def test_a_question_longer_than_the_model_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "ask", "w2sr/miniature/teacher", "Tom has 8 more than Mia. " * 80)
    assert "positions; the model has 512" in message


def result(name: str, correct: list[int]) -> RunResult:
    counts = {f"p{i}": ProblemCount(c, 1, "bench") for i, c in enumerate(correct)}
    metric = PassAtK(sources=("bench",), num_bootstrap=50)
    metric.update(list(counts), ["bench"] * len(correct), torch.tensor(correct))
    return RunResult(
        name=name,
        model="m",
        sources=("bench",),
        num_samples=1,
        estimates=metric.compute(),
        per_problem=counts,
        finished_frac=1.0,
        cut_off_frac=0.0,
        num_missing_samples=0,
        mean_completion_tokens=7.0,
        sampling={},
        cost=Cost(1.0, 7),
        command="c",
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )


def test_report_reads_result_files_and_computes_rgr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, correct in {"plain": [0] * 40, "w2sr": [1] * 30 + [0] * 10, "rl": [1] * 40}.items():
        write_result(result(name, correct), tmp_path / name / "result.json")
    main(["report", str(tmp_path), "--plain", "plain", "--ceiling", "rl"])
    printed = capsys.readouterr().out
    # RGR = (30/40 - 0) / (40/40 - 0)
    (line,) = [line for line in printed.splitlines() if line.startswith("w2sr") and "RGR" in line]
    assert "75.0" in line


def test_report_of_nothing_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"There is no result.json under {tmp_path}" in refused(capsys, "report", str(tmp_path))


def test_a_result_that_is_not_there_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letter = refused(capsys, "report", str(tmp_path / "runs"))
    assert f"There is no {tmp_path / 'runs'}. Name a result.json, or a folder" in letter


def test_a_word_that_is_no_verb_is_told_the_nearest_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no verb 'repor'. Did you mean 'report'? Verbs: fit, validate," in refused(capsys, "repor", "x")
    assert "There is no verb 'fitt'. Did you mean 'fit'?" in refused(capsys, "fitt", "--config", "x.yaml")


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_nothing_can_be_exported_of_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    letter = refused(capsys, "export", str(tmp_path / name), str(tmp_path / "out"))
    assert f"{tmp_path / name} is no checkpoint and no run directory. Name one: RUN or RUN/checkpoints/" in letter


def test_a_model_directory_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = ROOT / "w2sr/miniature/student"
    assert f"{student} is a model directory already" in refused(capsys, "export", str(student), str(tmp_path / "out"))


def test_the_shipped_result_of_json_is_json() -> None:
    for model in ("student", "teacher"):
        config = json.loads((ROOT / "w2sr/miniature" / model / "config.json").read_text())
        assert config["model_type"] == "qwen3"


BASE = ("--config", str(ROOT / "configs/w2sr_p.yaml"))


def written(folder: Path, text: str) -> tuple[str, str]:
    (folder / "overlay.yaml").write_text(text)
    return "--config", str(folder / "overlay.yaml")


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *BASE, *written(tmp_path, "trainer: {max_epoch: 3}"))
    assert message == (
        "error: The configuration sets trainer.max_epoch, which is no key of the trainer. Did you mean 'max_epochs'?\n"
    )
    message = refused(capsys, "fit", *BASE, *written(tmp_path, "data: {init_args: {kep: N}}"))
    assert "sets kep, which is no argument of w2sr.datamodules.TraceDataModule. Did you mean 'keep'?" in message


SGD = "--model.init_args.optimizer.class_path=torch.optim.SGD"


def test_a_key_of_another_optimizer_is_named_with_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *BASE, SGD, "--model.init_args.optimizer.init_args.momentun=0.9")
    assert message == (
        "error: The configuration sets momentun, which is no argument of torch.optim.SGD. Did you mean 'momentum'?\n"
    )
    message = refused(capsys, "fit", *BASE, "--model.init_args.optimizer.class_path=torch.optim.Sgd")
    assert message.startswith("error: model.init_args.optimizer: module 'torch.optim' has no attribute 'Sgd'.")
    assert message.endswith("Did you mean 'SGD'?\n") and "Callable" not in message


def test_another_optimizer_keeps_what_it_shares_with_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    """The parser's rule, which docs and the line about the optimizer at the start of a run speak of."""
    with pytest.raises(SystemExit):
        main(["fit", *BASE, SGD, "--model.init_args.optimizer.init_args.momentum=0.9", "--print_config"])
    arguments = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]["init_args"]
    assert arguments["weight_decay"] == 0.01, "of configs/w2sr_p.yaml"
    assert arguments["momentum"] == 0.9 and "betas" not in arguments


def test_an_overlay_before_its_base_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    overlay = ("--config", str(ROOT / "configs/model/qwen2.5-0.5b.yaml"))
    message = refused(capsys, "fit", *overlay, *BASE)
    assert "an overlay stands before its base" in message and "Put the base first" in message
    assert message.count("\n") == 1


def test_a_wrong_value_says_what_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *BASE, "--data.init_args.keep=Q")
    assert message == "error: data.init_args.keep: Expected a Literal['P', 'N', 'N_paper', 'all']. Got value: Q\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_overlay_without_a_gpu_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *BASE, "--config", str(ROOT / "configs/trainer/fsdp2.yaml"))
    assert "trainer.accelerator=gpu needs a CUDA device" in message and "configs/trainer/cpu.yaml" in message


def test_a_used_run_directory_is_refused_before_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("")
    arguments = (*BASE, f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu")
    message = refused(capsys, "fit", *arguments)
    assert f"The run directory {tmp_path} holds a run without a checkpoint." in message
    assert "Start anew: " in message and f"--trainer.default_root_dir={tmp_path}-2" in message


def test_a_reader_that_wants_no_more_is_no_error() -> None:
    """As `audit ... | head`: the pipe is closed while the program still writes. Shells expect 128 + SIGPIPE."""
    command = f"{sys.executable} lightning_cli.py audit w2sr/miniature/traces | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("141\n", "")
