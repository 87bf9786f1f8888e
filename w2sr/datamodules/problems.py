"""Problems to sample from: benchmarks for `test`, and a training set for `predict`, where a teacher answers it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from w2sr.datamodules.sources import OnBadReference, build_verifiers, load_problems, problem_loader
from w2sr.rows import OnBadRow
from w2sr.shards import parse_shard, share
from w2sr.types import DataFile, Problem, ProblemBatch
from w2sr.verify import Verifier


class ProblemDataModule(L.LightningDataModule):
    """Benchmarks for `test`, problems for `predict`.

    Args:
        benchmarks: name → file of test problems. The name is the source under which results are reported.
        problems: name → file of problems that a teacher answers. The name is the source of its traces.
        shard: the share of `problems` that `predict` answers: `3/16` is the third of sixteen.
        validation: like `benchmarks`, for modules that validate; not used in evaluation.
        traces, step_sequences, max_tokens: not used here; data overlays name them for the module that trains on traces.
        batch_problems: problems of a batch; the engine refills its slots inside one batch.
        on_bad_row: an unreadable row stops the run, or is skipped and counted.
        on_bad_reference: likewise a reference answer that cannot be used.
        timeout_s: seconds that the verifier may spend on one answer.
        seed: of the option shuffle of multiple-choice problems.
    """

    def __init__(
        self,
        benchmarks: dict[str, DataFile] | None = None,
        problems: dict[str, DataFile] | None = None,
        shard: str = "1/1",
        validation: dict[str, DataFile] | None = None,
        traces: list[DataFile] | None = None,
        step_sequences: int | None = None,
        max_tokens: int | None = None,
        batch_problems: int = 512,
        on_bad_row: OnBadRow = "error",
        on_bad_reference: OnBadReference = "error",
        timeout_s: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.benchmarks, self.problems, self.shard = benchmarks or {}, problems or {}, parse_shard(shard)
        self.batch_problems = batch_problems
        self.on_bad_row, self.on_bad_reference, self.timeout_s = on_bad_row, on_bad_reference, timeout_s
        self.seed = seed
        self.test_problems: list[Problem] = []
        self.train_problems: list[Problem] = []
        self.verifiers: dict[str, Verifier] = {}

    def setup(self, stage: str) -> None:
        files = self.problems if stage == "predict" else self.benchmarks
        if not files:
            key = "problems" if stage == "predict" else "benchmarks"
            raise ValueError(
                f"data.{key} names no file, so there is nothing to ask. Set data.{key}='{{NAME: {{path: FILE}}}}'."
            )
        self.verifiers = build_verifiers(files, self.timeout_s)
        problems = self._load(files)
        if stage == "predict":
            self.train_problems = problems
        else:
            self.test_problems = problems

    def _load(self, files: Mapping[str, DataFile]) -> list[Problem]:
        problems: list[Problem] = []
        for name, file in files.items():
            problems += load_problems(
                name,
                file,
                self.verifiers[name],
                seed=self.seed,
                on_bad_row=self.on_bad_row,
                on_bad_reference=self.on_bad_reference,
            )
        twice = [name for name, count in Counter(problem.problem_id for problem in problems).items() if count > 1]
        if twice:
            raise ValueError(
                f"{len(twice):,} problem ids are in more than one of {', '.join(files)}, the first {twice[0]!r}. Ids "
                "must be unique in a run: leave columns.problem_id out, and they are made of source and problem."
            )
        return problems

    def test_dataloader(self) -> Any:
        assert self.trainer is not None
        return problem_loader(
            self.test_problems, self.batch_problems, self.trainer.global_rank, self.trainer.world_size
        )

    def predict_dataloader(self) -> Any:
        """One batch: all problems of this rank's share. The module streams through it."""
        assert self.trainer is not None
        mine = share(self.train_problems, self.shard, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader([ProblemBatch(tuple(mine), (1.0,) * len(mine))], batch_size=None)  # type: ignore[arg-type]

    def teardown(self, stage: str) -> None:
        for verifier in self.verifiers.values():
            verifier.close()
