"""Problems to sample from: evaluation (and, with a training set, reinforcement learning and distillation)."""

from __future__ import annotations

from typing import Any

import lightning as L

from w2sr.datamodules.sources import OnBadReference, build_verifiers, load_problems, problem_loader
from w2sr.rows import OnBadRow
from w2sr.types import DataFile, Problem


class ProblemDataModule(L.LightningDataModule):
    """Benchmarks for `test`.

    Args:
        benchmarks: name → file of test problems. The name is the source under which results are reported.
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
        benchmarks: dict[str, DataFile],
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
        self.benchmarks = benchmarks
        self.batch_problems = batch_problems
        self.on_bad_row, self.on_bad_reference, self.timeout_s = on_bad_row, on_bad_reference, timeout_s
        self.seed = seed
        self.test_problems: list[Problem] = []
        self.verifiers = build_verifiers(benchmarks, timeout_s)

    def setup(self, stage: str) -> None:
        if self.test_problems:
            return
        for name, file in self.benchmarks.items():
            self.test_problems += load_problems(
                name,
                file,
                self.verifiers[name],
                seed=self.seed,
                on_bad_row=self.on_bad_row,
                on_bad_reference=self.on_bad_reference,
            )

    def test_dataloader(self) -> Any:
        assert self.trainer is not None
        return problem_loader(
            self.test_problems, self.batch_problems, self.trainer.global_rank, self.trainer.world_size
        )

    def teardown(self, stage: str) -> None:
        for verifier in self.verifiers.values():
            verifier.close()
