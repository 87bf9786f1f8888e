"""Evaluations that a run leaves behind: completions and `result.json` of each arm, and one table."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from w2sr.chat import Chat
from w2sr.evaluation import Stopwatch, evaluate
from w2sr.metrics import records_to_result
from w2sr.modules.students import frozen_policy
from w2sr.policy import Policy
from w2sr.report import to_text
from w2sr.results import RunResult, write_result
from w2sr.rollouts import EmbeddedGenerator
from w2sr.templates import COT_INSTRUCTION
from w2sr.types import EvalRecord, Problem


class FinalTable(L.Callback):
    """When `fit` ends: the plain student, the plain student with a chain-of-thought prompt, the teacher and the trained
    student on the test problems, each with its completions and `result.json` under `eval/`, and one table.

    Args:
        num_samples: completions a problem.
        instruction: the chain-of-thought prompt, appended to each problem in that one arm.
    """

    def __init__(self, num_samples: int = 1, instruction: str = COT_INSTRUCTION) -> None:
        self.num_samples, self.instruction = num_samples, instruction
        self._training = Stopwatch()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._training.__enter__()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._training.__exit__()

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.datamodule.test_problems:  # type: ignore[attr-defined]
            return
        chat: Chat = pl_module.chat
        trust = pl_module.trust_remote_code
        plain = frozen_policy(pl_module, pl_module.student, chat, dtype=pl_module.dtype_name, trust_remote_code=trust)
        results = [
            self._arm(trainer, "plain student", pl_module.student, plain, chat),
            self._arm(
                trainer, "plain student, CoT prompt", pl_module.student, plain, chat.with_instruction(self.instruction)
            ),
        ]
        del plain
        if pl_module.teacher is not None:
            results.append(self._teacher(trainer, pl_module))
        student = str(Path(trainer.default_root_dir) / "student")
        trained = {
            "train_seconds": self._training.seconds,
            "num_train_tokens": pl_module.num_trained_tokens,
            "extra": pl_module.watched(),
        }
        results.append(self._arm(trainer, pl_module.arm, student, pl_module.policy, chat, trained))
        show(results, Path(trainer.default_root_dir))

    def _teacher(self, trainer: L.Trainer, pl_module: Any) -> RunResult:
        chat = Chat.load(
            pl_module.teacher,
            template_date=pl_module.template_date,
            trust_remote_code=pl_module.trust_remote_code,
        )
        teacher = frozen_policy(pl_module, pl_module.teacher, chat, trust_remote_code=pl_module.trust_remote_code)
        return self._arm(trainer, "teacher", pl_module.teacher, teacher, chat)

    def _arm(
        self,
        trainer: L.Trainer,
        name: str,
        model: str,
        policy: Policy,
        chat: Chat,
        trained: dict[str, Any] | None = None,
    ) -> RunResult:
        problems: list[Problem] = trainer.datamodule.test_problems  # type: ignore[attr-defined]
        verifiers = trainer.datamodule.verifiers  # type: ignore[attr-defined]
        module: Any = trainer.lightning_module
        generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode, num_slots=module.num_slots)
        mine = problems[trainer.global_rank :: trainer.world_size]
        with Stopwatch() as watch:
            records = list(evaluate(mine, chat, generator, verifiers, module.sampling, self.num_samples))
        folder = Path(trainer.default_root_dir) / "eval" / _slug(name)
        return write_arm(
            folder,
            gather(records),
            problems,
            name=name,
            model=model,
            num_samples=self.num_samples,
            seconds=watch.seconds,
            sampling=asdict(module.sampling),
            **(trained or {}),
        )


class EvalWriter(L.Callback):
    """When `test` ends: completions and `result.json` in the run directory, and the table.

    Args:
        name: label of the arm.
        ks: the k of Pass@k, each at most `num_samples` of the module.
    """

    def __init__(self, name: str = "student", ks: tuple[int, ...] = (1,)) -> None:
        self.name, self.ks = name, ks
        self._watch = Stopwatch()

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._watch.__enter__()

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._watch.__exit__()
        folder = Path(trainer.default_root_dir)
        result = write_arm(
            folder,
            gather(pl_module.records),
            trainer.datamodule.test_problems,  # type: ignore[attr-defined]
            name=self.name,
            model=pl_module.student,
            num_samples=pl_module.num_samples,
            seconds=self._watch.seconds,
            sampling=asdict(pl_module.sampling),
            ks=self.ks,
        )
        show([result], folder)


def gather(records: Sequence[EvalRecord]) -> list[EvalRecord]:
    """The records of all ranks, on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(records)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, list(records))
    return [record for part in parts for record in part]


def write_arm(folder: Path, records: Sequence[EvalRecord], problems: Sequence[Problem], **details: Any) -> RunResult:
    """Writes `completions.jsonl` (in the problems' order) and `result.json`, on rank 0. Returns the result on all."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    result = records_to_result(records, problems, command=command, **details)
    _write(folder, records, problems, result)
    return result


@rank_zero_only
def _write(folder: Path, records: Sequence[EvalRecord], problems: Sequence[Problem], result: RunResult) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    place = {problem.problem_id: index for index, problem in enumerate(problems)}
    ordered = sorted(records, key=lambda record: (place[record.problem_id], record.sample_index))
    with (folder / "completions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in ordered)
    write_result(result, folder / "result.json")


@rank_zero_only
def show(results: Sequence[RunResult], folder: Path) -> None:
    """Prints the table and where everything lies."""
    print(f"\n{to_text(results)}Run directory: {folder}", flush=True)


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
