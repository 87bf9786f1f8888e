"""Problems for fit, test and predict: what each stage reads, rounds, and going on from any checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from w2sr.curriculum import Curriculum
from w2sr.datamodules import ProblemDataModule
from w2sr.datamodules.problems import RoundLoader
from w2sr.decontaminate import Overlap
from w2sr.types import DataFile, ProblemBatch, Round

NUM = 11


def write(path: Path, numbers: range, **fields: str) -> DataFile:
    """Problems "1 + n" with the answer n + 1."""
    rows = [{"problem": f"1 + {n}", "reference_answer": str(n + 1), **fields} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataFile(str(path))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, DataFile]]:
    return {
        "problems": {"sums": write(tmp_path / "train.jsonl", range(NUM))},
        "validation": {"sums-validation": write(tmp_path / "validation.jsonl", range(20, 25))},
        "benchmarks": {"sums": write(tmp_path / "test.jsonl", range(30, 33))},
    }


class Recorder(L.LightningModule):
    """Takes the problems of every round as GRPO does, one round in three a batch more, and records made-up results."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asked: dict[int, list[str]] = {}
        self.validated: list[int] = []

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Round, batch_idx: int) -> None:
        data = cast(ProblemDataModule, cast(Any, self.trainer).datamodule)
        assert data.stream is not None
        chosen = data.stream.take(data.step_problems)
        if batch.number % 3 == 1:
            chosen += data.stream.take(2)
        problems = [data.train_problems[index] for index in chosen]
        self.asked[batch.number] = [problem.problem_id for problem in problems]
        for index, problem in zip(chosen, problems, strict=True):
            data.stream.record(problem.problem_id, index % 5, 4, batch.number)
        optimizer = cast(Any, self.optimizers())
        self.manual_backward(self.weight.sum() * batch.number)
        optimizer.step()

    def validation_step(self, batch: ProblemBatch, batch_idx: int) -> None:
        self.validated.append(len(batch.problems))

    def test_step(self, batch: ProblemBatch, batch_idx: int) -> None:
        self.validated.append(len(batch.problems))


def trainer(folder: Path, epochs: int = 3, **options: Any) -> L.Trainer:
    every = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    ends = ModelCheckpoint(folder, "end-{step}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[every, ends],
        **options,
    )


def module(files: dict[str, dict[str, DataFile]], **changes: Any) -> ProblemDataModule:
    band = Curriculum(low=0.2, high=0.9, keep_frac=0.4)
    return ProblemDataModule(**{**files, "step_problems": 4, "seed": 3, "curriculum": band, **changes})


def run(folder: Path, data: ProblemDataModule, resume: Path | None = None, **options: Any) -> tuple[Recorder, str]:
    """The module that was driven, and the final state of the stream as text (NaN does not equal itself)."""
    model = Recorder()
    trainer(folder, **options).fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    assert data.stream is not None
    return model, json.dumps(data.stream.state_dict())


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 2}, {"val_check_interval": 2}])
def test_a_resumed_run_asks_what_the_uninterrupted_one_asks(
    options: dict[str, Any], tmp_path: Path, files: dict[str, dict[str, DataFile]]
) -> None:
    whole, state = run(tmp_path / "whole", module(files), **options)
    # 11 problems, 4 a round: 3 rounds an epoch (2 with the limit)
    num_rounds = 3 * options.get("limit_train_batches", 3)
    assert list(whole.asked) == list(range(num_rounds))
    assert [len(asked) for asked in whole.asked.values()] == [6 if n % 3 == 1 else 4 for n in range(num_rounds)]
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(checkpoints) == num_rounds + 3, "after every step, and at the end of every epoch"
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.rpartition("step=")[2])
        again, final = run(tmp_path / f"from-{checkpoint.stem}", module(files), checkpoint, **options)
        assert again.asked == {n: asked for n, asked in whole.asked.items() if n >= done}, checkpoint.stem
        assert final == state, checkpoint.stem


@pytest.mark.parametrize(("begun", "rest"), [(0, [0, 1, 2]), (2, [2]), (3, [3, 4, 5]), (7, [7, 8])])
def test_a_loader_has_the_rounds_that_remain_of_its_epoch(begun: int, rest: list[int]) -> None:
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=begun)))
    at = SimpleNamespace(num_training_batches=3.0, fit_loop=SimpleNamespace(epoch_loop=progress))
    loader = RoundLoader(5, cast(L.Trainer, at))
    assert [one.number for one in loader] == rest and len(loader) == 5


def test_an_epoch_has_rounds_for_all_problems(files: dict[str, dict[str, DataFile]], tmp_path: Path) -> None:
    for step_problems, num_rounds in ((1, 11), (4, 3), (11, 1)):
        model, _ = run(tmp_path, module(files, step_problems=step_problems), epochs=1, limit_val_batches=0)
        assert list(model.asked) == list(range(num_rounds)), step_problems


def test_without_a_curriculum_a_pass_asks_each_problem_once(files: dict[str, dict[str, DataFile]]) -> None:
    data = ProblemDataModule(**files, step_problems=4)  # type: ignore[arg-type]
    data.setup("fit")
    assert data.stream is not None
    assert sorted(data.stream.take(NUM)) == list(range(NUM))


def test_fit_reads_all_three_sets_and_verifies_each(files: dict[str, dict[str, DataFile]]) -> None:
    data = module(files)
    data.setup("fit")
    assert [len(x) for x in (data.train_problems, data.validation_problems, data.test_problems)] == [NUM, 5, 3]
    assert data.stream is not None and data.stream.curriculum == Curriculum(low=0.2, high=0.9, keep_frac=0.4)
    assert set(data.verifiers) == {"sums", "sums-validation"}
    assert (
        data.verifiers["sums"].verify(r"\boxed{12}", data.train_problems[NUM - 1].reference_answer).label == "incorrect"
    )
    data.teardown("fit")


@pytest.mark.parametrize(("stage", "sizes"), [("validate", (0, 5, 0)), ("test", (0, 0, 3)), ("predict", (NUM, 0, 0))])
def test_every_other_stage_reads_its_own_set(
    stage: str, sizes: tuple[int, int, int], files: dict[str, dict[str, DataFile]]
) -> None:
    data = module(files)
    data.setup(stage)
    assert (len(data.train_problems), len(data.validation_problems), len(data.test_problems)) == sizes
    assert data.stream is None and data.state_dict() == {}


@pytest.mark.parametrize(
    ("stage", "key"), [("fit", "problems"), ("validate", "validation"), ("test", "benchmarks"), ("predict", "problems")]
)
def test_a_stage_without_its_set_is_refused(stage: str, key: str, files: dict[str, dict[str, DataFile]]) -> None:
    with pytest.raises(ValueError, match=rf"data\.{key} names no file, .* data\.{key}='\{{NAME"):
        module(files, **{key: None}).setup(stage)


def test_fit_needs_neither_validation_nor_benchmarks(files: dict[str, dict[str, DataFile]], tmp_path: Path) -> None:
    model, _ = run(tmp_path, module(files, validation=None, benchmarks=None), epochs=1)
    assert len(model.asked) == 3 and model.validated == []


def test_test_with_the_checkpoint_of_a_training_run_has_no_stream(
    files: dict[str, dict[str, DataFile]], tmp_path: Path
) -> None:
    run(tmp_path, module(files), epochs=1)
    model, data = Recorder(), module(files)
    trainer(tmp_path / "test").test(model, datamodule=data, ckpt_path=tmp_path / "step=2.ckpt", verbose=False)
    assert model.validated == [3] and data.stream is None


def test_a_checkpoint_of_other_problems_is_refused(files: dict[str, dict[str, DataFile]], tmp_path: Path) -> None:
    run(tmp_path, module(files), epochs=1)
    files["problems"] = {"sums": write(tmp_path / "fewer.jsonl", range(NUM - 1))}
    with pytest.raises(ValueError, match=r"a run on 11 problems .*data\.problems now gives 10"):
        run(tmp_path / "again", module(files), tmp_path / "step=2.ckpt")


def test_a_name_has_one_verifier(files: dict[str, dict[str, DataFile]], tmp_path: Path) -> None:
    same = files["benchmarks"]["sums"]
    files["benchmarks"]["sums"] = DataFile(same.path, rules=("last_number",))
    letter = (
        r"data\.problems\.sums and data\.benchmarks\.sums have one name, .*rules boxed, .* against rules last_number"
    )
    with pytest.raises(ValueError, match=letter):
        module(files).setup("fit")
    module(files).setup("test")


@pytest.mark.parametrize("key", ["benchmarks", "validation"])
def test_a_training_problem_that_the_run_is_measured_by_is_refused(
    key: str, files: dict[str, dict[str, DataFile]], tmp_path: Path
) -> None:
    """Under another name and id, in other spacing: the text counts."""
    path = tmp_path / "leak.jsonl"
    path.write_text('{"problem": "9 + 9", "reference_answer": "18"}\n{"problem": " 1  + 4", "reference_answer": "5"}\n')
    files[key] = {"other": DataFile(str(path))}
    with pytest.raises(ValueError, match=rf"1 of 11 training problems .*'sums/.* is 'other/.*' of data\.{key}\."):
        module(files).setup("fit")
    data = module(files, decontaminate=Overlap())
    data.setup("fit")
    left = [problem.problem for problem in data.train_problems]
    assert len(left) == NUM - 1 and "1 + 4" not in left
    module(files).setup("predict")


def test_equal_ids_of_other_problems_are_no_leak(files: dict[str, dict[str, DataFile]], tmp_path: Path) -> None:
    for key, text in (("problems", "1 + 1"), ("benchmarks", "1 + 2")):
        path = tmp_path / f"{key}.jsonl"
        path.write_text(json.dumps({"problem_id": "1", "problem": text, "reference_answer": "2"}) + "\n")
        files[key] = {key: DataFile(str(path))}
    module(files, step_problems=1).setup("fit")


def test_wrong_settings_are_refused(files: dict[str, dict[str, DataFile]]) -> None:
    with pytest.raises(ValueError, match=r"data\.step_problems=0"):
        module(files, step_problems=0)
    refusal = (
        r"data\.step_problems=12: a round asks so many different problems, and data\.problems has 11 to train on\. "
        r"Set data\.step_problems=11 or lower, or add problems\."
    )
    with pytest.raises(ValueError, match=refusal):
        module(files, step_problems=12).setup("fit")
    module(files, step_problems=12).setup("predict")
    with pytest.raises(ValueError, match=r"data\.shard=2/3 is a share for predict"):
        module(files, shard="2/3").setup("fit")
