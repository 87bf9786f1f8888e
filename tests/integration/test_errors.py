"""What a user's mistake says: one message with the place, the reason and the remedy, and exit status 2."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from w2sr.cli import main
from w2sr.modules import sft
from w2sr.modules.checkpoints import WholeCheckpointIO

FitConfig = Callable[..., Path]
Refused = Callable[..., str]
REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = {
    "problem": "question",
    "completion": "response",
    "reference_answer": "gold",
    "teacher": "=weak",
    "finish_reason": "=stop",
}
PROBLEM = "Today Mia has 23 apples. How many apples does Mia have?"
ROW = {"question": PROBLEM, "response": "Mia has 23 apples. \\boxed{23}", "gold": "23"}
ROWS = [
    {**ROW, "question": f"Today Mia has {number} apples. How many apples does Mia have?"} for number in range(20, 26)
]
SAVE = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {
        "every_n_train_steps": 1,
        "save_top_k": -1,
        "save_last": True,
        "filename": "step-{step}",
        "auto_insert_metric_name": False,
    },
}


@pytest.fixture
def refused(tmp_path: Path, fit_config: FitConfig, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The message of a fit that is refused, as it stands on the user's screen, without `error: `."""

    def message(*words: str, **changes: Any) -> str:
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", str(fit_config(tmp_path / "run", **changes)), *words])
        assert end.value.code == 2
        printed = capsys.readouterr().err
        assert printed.count("error: ") == 1 and "Traceback" not in printed, printed
        return printed.partition("error: ")[2]

    return message


def lines(path: Path, *rows: Any) -> dict[str, Any]:
    """Writes rows as JSON lines, or text as it is. Returns the entry for `data.traces`."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return {"path": str(path), "columns": COLUMNS}


# --- data


def test_a_missing_column(tmp_path: Path, refused: Refused) -> None:
    file = lines(tmp_path / "t.jsonl", *ROWS)
    file["columns"] = {**COLUMNS, "completion": "respones"}
    letter = refused(data__traces=[file])
    assert f"{file['path']}" in letter and "no column 'respones'. Did you mean 'response'?" in letter
    assert "Its columns: question, response, gold" in letter


def test_an_empty_file(tmp_path: Path, refused: Refused) -> None:
    letter = refused(data__traces=[lines(tmp_path / "t.jsonl")])
    assert f"{tmp_path / 't.jsonl'} is empty: it holds no rows. Check the path" in letter


def test_a_corrupt_line_in_the_middle_is_named(tmp_path: Path, refused: Refused) -> None:
    letter = refused(data__traces=[lines(tmp_path / "t.jsonl", *ROWS[:3], '{"question": "Today Mi', *ROWS[3:])])
    assert f"{tmp_path / 't.jsonl'}:4: not a JSON line" in letter
    assert "Mend the row, or set on_bad_row=skip" in letter


def test_a_corrupt_line_in_the_middle_is_skipped_and_counted(
    tmp_path: Path, fit_config: FitConfig, caplog: pytest.LogCaptureFixture
) -> None:
    file = lines(tmp_path / "t.jsonl", *ROWS[:3], '{"question": "Today Mi', *ROWS[3:])
    with caplog.at_level("INFO"):
        main(["fit", "--config", str(fit_config(tmp_path / "run", data__traces=[file], data__on_bad_row="skip"))])
    assert f"{file['path']}: 6 traces read, 1 bad rows and 0 bad references skipped" in caplog.text
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["num_train_traces"] > 0


def test_a_truncated_parquet_file(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    file.write_bytes(file.read_bytes()[:-20])
    letter = refused(data__traces=[{"path": str(file), "columns": COLUMNS}])
    assert f"{file} is not a whole Parquet file" in letter and "Fetch or make it again." in letter


def test_no_trace_after_the_filter_shows_the_gate_table(tmp_path: Path, refused: Refused) -> None:
    letter = refused(data__keep="N", data__traces=[lines(tmp_path / "t.jsonl", *ROWS[3:4])])
    assert "The selection keeps no trace; relax the gate that removed them." in letter
    table = [line.split() for line in letter.splitlines()[1:]]
    assert table[:2] == [["gate", "in", "removed", "out"], ["keep=N", "1", "1", "0"]]


def test_a_trace_longer_than_a_row(refused: Refused) -> None:
    letter = refused(data__max_tokens=50)
    assert "tokens; a row holds max_tokens=50. Raise data.max_tokens or set data.overlong=drop" in letter
    assert re.match(r"Trace 'miniature/\w+@tiny/weak#0' has \d\d tokens", letter)


def test_an_unusable_reference(tmp_path: Path, refused: Refused) -> None:
    rows = [*ROWS[:2], {**ROWS[2], "gold": ""}, *ROWS[3:]]
    letter = refused(data__traces=[lines(tmp_path / "t.jsonl", *rows)])
    assert "1 of 6 problems have a reference answer that cannot be used" in letter
    assert "set on_bad_reference=skip" in letter


# --- models


def changed_student(folder: Path, student: Path, **settings: Any) -> Path:
    """A copy of the student with other entries in tokenizer_config.json; None removes one."""
    shutil.copytree(student, folder)
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    (folder / "chat_template.jinja").unlink(missing_ok=settings.get("chat_template", "") is not None)
    return folder


def test_a_tokenizer_without_chat_template(tmp_path: Path, refused: Refused, tiny_world: Any) -> None:
    student = changed_student(tmp_path / "mute", tiny_world.student, chat_template=None)
    letter = refused(model__student=str(student))
    assert f"The tokenizer of '{student}' has no chat template. Set template to qwen-base" in letter


def test_a_tokenizer_without_stop_token(tmp_path: Path, refused: Refused, tiny_world: Any) -> None:
    student = changed_student(tmp_path / "endless", tiny_world.student, chat_template=None, eos_token=None)
    letter = refused(model__student=str(student), model__template="simple")
    assert (
        f"The tokenizer of '{student}' has no end token" in letter and "Set stop_token to one of its tokens" in letter
    )


def test_a_stop_token_that_is_none(refused: Refused) -> None:
    letter = refused(model__stop_token="<|im_ende|>")
    assert "stop_token='<|im_ende|>' is not a token" in letter and "the nearest is '<|im_end|>'" in letter


def test_a_vocabulary_smaller_than_the_tokenizer(tmp_path: Path, refused: Refused, tiny_world: Any) -> None:
    lm = Qwen3ForCausalLM.from_pretrained(tiny_world.student)
    num_tokens = lm.config.vocab_size
    lm.resize_token_embeddings(num_tokens - 30)
    lm.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(tiny_world.student).save_pretrained(tmp_path / "small")
    letter = refused(model__student=str(tmp_path / "small"))
    assert f"has ids up to {num_tokens - 1}; the model's embedding has {num_tokens - 30} rows." in letter
    assert "Use the tokenizer that belongs to the model." in letter


# --- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, fit_config: FitConfig) -> Path:
    """A checkpoint of the tiny student after 2 steps."""
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    main(["fit", "--config", str(fit_config(folder, trainer__max_steps=2, trainer__callbacks=[SAVE]))])
    return folder / "checkpoints" / "last.ckpt"


def test_a_checkpoint_of_another_model(tmp_path: Path, refused: Refused, tiny_world: Any, checkpoint: Path) -> None:
    config = Qwen3Config(
        vocab_size=700,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_world.student).save_pretrained(tmp_path / "other")
    letter = refused("--ckpt_path", str(checkpoint), model__student=str(tmp_path / "other"))
    assert (
        f"The checkpoint is of another model: '{tiny_world.student}' with hidden_size=32, num_hidden_layers=2" in letter
    )
    assert f"; this run trains '{tmp_path / 'other'}' with hidden_size=24, num_hidden_layers=1" in letter
    assert "Give a checkpoint of this model with --ckpt_path, or set model.student" in letter
    assert not (tmp_path / "run" / "config.yaml").exists(), "the next try is refused for a run that never began"


def test_another_rotation_is_another_model(tmp_path: Path, refused: Refused, tiny_world: Any, checkpoint: Path) -> None:
    """Every weight has its shape, so that loading them succeeds."""
    lm = Qwen3ForCausalLM.from_pretrained(tiny_world.student)
    lm.config.rope_parameters = {**lm.config.rope_parameters, "rope_theta": 77.0}
    lm.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_world.student).save_pretrained(tmp_path / "other")
    letter = refused("--ckpt_path", str(checkpoint), model__student=str(tmp_path / "other"))
    assert "this run trains" in letter and "77.0" in letter


def test_a_checkpoint_without_the_adapters_of_this_run(refused: Refused, checkpoint: Path) -> None:
    letter = refused("--ckpt_path", str(checkpoint), model__lora={"rank": 3})
    assert "with lora=None; this run trains" in letter and "'rank': 3" in letter and "model.lora" in letter


def test_a_checkpoint_that_is_cut_off(tmp_path: Path, refused: Refused, checkpoint: Path) -> None:
    cut = tmp_path / "run" / "checkpoints" / "last.ckpt"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(checkpoint.read_bytes()[:-5000])
    letter = refused("--ckpt_path", "last", trainer__callbacks=[SAVE])
    assert letter.startswith(f"{cut} is not a whole checkpoint (") and "Name another one, or start anew." in letter


def test_the_same_command_again_says_how_far_the_run_is(
    tmp_path: Path, refused: Refused, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 of 8 steps: the run's end is not reached. Nothing is loaded to say so."""
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parents[1], run)
    (run / "finished.json").unlink()
    monkeypatch.setattr(torch, "load", None)
    letter = refused()
    place = re.escape(str(run / "checkpoints" / "last.ckpt"))
    assert re.match(
        rf"The run directory {re.escape(str(run))} holds a run, stopped at step 2 of 2 \(epoch 0\); "
        rf"checkpoint {place}, written \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\nGo on:      .* --ckpt_path last\n"
        rf"Start anew: .* --trainer.default_root_dir={re.escape(str(run))}-2\n$",
        letter,
    ), letter


def test_last_where_there_is_no_checkpoint_yet_says_that_it_begins(
    tmp_path: Path, fit_config: FitConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that is queued again carries the same words in its first life."""
    with caplog.at_level("INFO"):
        main(["fit", "--config", str(fit_config(tmp_path / "run", trainer__max_steps=1)), "--ckpt_path", "last"])
    assert (
        f"There is no checkpoint in {tmp_path / 'run' / 'checkpoints'} yet: training begins at step 0." in caplog.text
    )


def test_steps_cannot_be_dealt_out_twice(tmp_path: Path, refused: Refused, fit_config: FitConfig) -> None:
    letter = refused(trainer__use_distributed_sampler=True)
    assert (
        "trainer.use_distributed_sampler=true would deal every optimizer step out to the processes a second" in letter
    )
    config = yaml.safe_load(fit_config(tmp_path / "run").read_text())
    del config["trainer"]["use_distributed_sampler"]
    config["trainer"]["max_steps"] = 1
    (tmp_path / "silent.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "silent.yaml")])
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["trainer"]["use_distributed_sampler"] is False, "where nothing is said, not Lightning's default"


# --- a full disk


@contextmanager
def limited(num_bytes: int) -> Iterator[None]:
    """Lets no file of this process grow beyond so many bytes: writes fail, as they do on a full disk.

    For a few lines only: pytest itself may be writing into a file.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, refused: Refused, fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while `last.ckpt` is overwritten after the fourth step."""
    real, folder = WholeCheckpointIO.save_checkpoint, tmp_path / "run" / "checkpoints"

    def full(self: Any, checkpoint: dict[str, Any], path: str, **options: Any) -> None:
        with monkeypatch.context() as patch:
            if checkpoint["global_step"] == 4 and Path(path).name == "last.ckpt":
                patch.setattr(os, "fsync", no_space)
            real(self, checkpoint, path, **options)

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", full)
    letter = refused(trainer__callbacks=[SAVE])
    assert f"The checkpoint {folder / 'last.ckpt'} (0." in letter and "cannot be written: No space left" in letter
    assert "go on: --ckpt_path last" in letter
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", *(f"step-{n}.ckpt" for n in range(1, 5))]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    monkeypatch.undo()
    main(["fit", "--config", str(fit_config(tmp_path / "run", trainer__callbacks=[SAVE])), "--ckpt_path", "last"])
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 8


def no_space(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_that_finds_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    file, io = tmp_path / "last.ckpt", WholeCheckpointIO()
    io.save_checkpoint({"weight": torch.arange(5000)}, file)
    too_large = pytest.raises(OSError, match=r"last.ckpt \(0.0 MiB\) cannot be written: File too large")
    with too_large, limited(20_000):
        io.save_checkpoint({"weight": torch.arange(6000)}, file)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(torch.load(file, weights_only=True)["weight"], torch.arange(5000))


TMPFS = """
import sys
from pathlib import Path
import torch
from w2sr.modules.checkpoints import WholeCheckpointIO
file = Path(sys.argv[1]) / "last.ckpt"
io = WholeCheckpointIO()
io.save_checkpoint({"weight": torch.arange(10000)}, file)
try:
    io.save_checkpoint({"weight": torch.arange(40000)}, file)
except OSError as error:
    print(error)
print(len(io.load_checkpoint(file)["weight"]), [path.name for path in file.parent.iterdir()])
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 300 KiB: the second checkpoint of 320 KB does not fit, the first of 80 KB is still whole."""
    unshare = shutil.which("unshare")
    mounted = ["sh", "-c", 'mount -t tmpfs -o size=300k tmpfs "$1" && shift && exec "$@"', "sh", str(tmp_path)]
    if unshare is None or subprocess.run([unshare, "-rm", *mounted, "true"], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    command = [unshare, "-rm", *mounted, sys.executable, "-c", TMPFS, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    letter, _, found = done.stdout.strip().partition("\n")
    assert "last.ckpt (0.3 MiB) cannot be written: No space left on device." in letter, done.stderr
    assert found == "10000 ['last.ckpt']"


# --- not a number


def poison(monkeypatch: pytest.MonkeyPatch, at_step: int) -> list[tuple[str, ...]]:
    """Makes the first loss of an optimizer step NaN. Returns a list that will hold that step's trace ids."""
    names: list[tuple[str, ...]] = []
    real_step, real_loss = sft.SFTModule.training_step, sft.sft_loss

    def training_step(self: Any, step: Any, batch_idx: int) -> None:
        poisoned = self.trainer.global_step == at_step
        if poisoned:
            names.append(step.trace_ids)
        with monkeypatch.context() as patch:
            patch.setattr(sft, "sft_loss", lambda *given: real_loss(*given) * (math.nan if poisoned else 1.0))
            real_step(self, step, batch_idx)

    monkeypatch.setattr(sft.SFTModule, "training_step", training_step)
    return names


def test_a_loss_that_is_no_number_stops_before_the_weights(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = poison(monkeypatch, at_step=5)
    letter = refused(trainer__callbacks=[SAVE])
    assert "Optimizer step 5 (epoch 1) has the loss nan and a gradient of norm nan." in letter
    (trace_ids,) = names
    assert len(trace_ids) == 4 and all(repr(name) in letter for name in trace_ids)
    assert letter.count("@tiny/weak#0") == 4, "the traces of that step and no others"
    folder = tmp_path / "run" / "checkpoints"
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())
    assert max(int(path.stem.partition("-")[2]) for path in folder.glob("step-*")) == 5


RANKS = """
import math, sys
from w2sr.cli import main
from w2sr.modules import sft
real = sft.SFTModule.training_step
def training_step(self, step, batch_idx):
    loss = sft.sft_loss
    if self.trainer.global_step == 2 and self.global_rank == 1:
        sft.sft_loss = lambda *given: loss(*given) * math.nan
        print("POISON", *step.trace_ids, flush=True)
    real(self, step, batch_idx)
sft.SFTModule.training_step = training_step
main(sys.argv[1:])
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_ranks_stop_together_and_name_the_traces_of_the_one(
    strategy: str, tmp_path: Path, fit_config: FitConfig
) -> None:
    config = fit_config(tmp_path / "run", trainer__devices=2, trainer__strategy=strategy, data__max_tokens=100)
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, str(script), "fit", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            pytest.fail("hangs")
    assert process.returncode == 2, err[-3000:]
    (poisoned,) = [line.split()[1:] for line in out.splitlines() if line.startswith("POISON")]
    (letter,) = [line for line in err.splitlines() if line.startswith("error: Optimizer step 2 ")]
    assert letter.count("@tiny/weak#0") == len(poisoned) > 0 and all(repr(name) in letter for name in poisoned)
    assert "Traceback" not in err
