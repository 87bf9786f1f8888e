"""Problems to sample from: a training set for `fit` and `predict`, benchmarks for `test`, both beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from w2sr.curriculum import Curriculum, ProblemStream
from w2sr.datamodules.refusals import askable
from w2sr.datamodules.sources import OnBadReference, build_verifiers, load_problems, problem_loader
from w2sr.decontaminate import Overlap, decontaminate
from w2sr.rows import OnBadRow, problem_hash
from w2sr.shards import WHOLE, parse_shard, share
from w2sr.types import DataFile, Problem, ProblemBatch, Round
from w2sr.verify import Verifier

_ASKED = {
    "fit": ("problems", "validation", "benchmarks"),
    "validate": ("validation",),
    "test": ("benchmarks",),
    "predict": ("problems",),
}
"""Stage → the keys whose files it reads. The first must name one."""


class ProblemDataModule(L.LightningDataModule):
    """Problems that the policy learns from in `fit`, that a teacher answers in `predict`; benchmarks for `test`.

    In `fit` a batch is a round (see `Round`), and the problems of a round are taken from `stream`. Its state is in
    every checkpoint, so that a run that goes on asks what it would have asked. An epoch has so many rounds that all
    problems could be asked once.

    Args:
        benchmarks: name → file of test problems. The name is the source under which results are reported.
        problems: name → file of training problems. The name is the source of rollouts and traces.
        shard: the share of `problems` that `predict` answers: `3/16` is the third of sixteen.
        validation: name → file of validation problems, for Pass@1 while training.
        step_problems: problems of a round, at most as many as there are.
        curriculum: which problems are asked less often (see `Curriculum`).
        decontaminate: `fit` leaves out the problems that are in `benchmarks` or `validation` (see `w2sr.decontaminate`;
            `{}` takes the defaults of `Overlap`). Without it an equal problem stops the run.
        traces, step_sequences, max_tokens: not used here; data overlays name them for the module that trains on traces.
        batch_problems: problems of a batch of `validation` or `benchmarks`; the engine refills its slots inside one.
        on_bad_row: a row that cannot be read, or that the tokenizer or the chat template cannot hold, stops the run, or
            is skipped and counted.
        on_bad_reference: likewise a reference answer that cannot be used.
        timeout_s: seconds that the verifier may spend on one answer.
        seed: of the order of training problems, and of the option shuffle of multiple-choice problems.

    Attributes:
        stream: the order of `train_problems` with what is known of each; None outside of `fit`.
    """

    def __init__(
        self,
        benchmarks: dict[str, DataFile] | None = None,
        problems: dict[str, DataFile] | None = None,
        shard: str = "1/1",
        validation: dict[str, DataFile] | None = None,
        step_problems: int = 32,
        curriculum: Curriculum = Curriculum(),
        decontaminate: Overlap | None = None,
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
        if step_problems < 1:
            raise ValueError(f"data.step_problems={step_problems} must be at least 1: a round asks something.")
        self.benchmarks, self.problems, self.shard = benchmarks or {}, problems or {}, parse_shard(shard)
        self.validation = validation or {}
        self.step_problems, self.curriculum, self.overlap = step_problems, curriculum, decontaminate
        self.batch_problems = batch_problems
        self.on_bad_row, self.on_bad_reference, self.timeout_s = on_bad_row, on_bad_reference, timeout_s
        self.seed = seed
        self.test_problems: list[Problem] = []
        self.train_problems: list[Problem] = []
        self.validation_problems: list[Problem] = []
        self.verifiers: dict[str, Verifier] = {}
        self.stream: ProblemStream | None = None

    def setup(self, stage: str) -> None:
        files: dict[str, Mapping[str, DataFile]] = {key: getattr(self, key) for key in _ASKED[stage]}
        needed = _ASKED[stage][0]
        if not files[needed]:
            raise ValueError(
                f"data.{needed} names no file, so there is nothing to ask. Set "
                f"data.{needed}='{{NAME: {{path: FILE}}}}'."
            )
        self.verifiers = build_verifiers(_by_name(files), self.timeout_s)
        read = {key: self._load(of_key) for key, of_key in files.items()}
        self.validation_problems, self.test_problems = read.get("validation", []), read.get("benchmarks", [])
        self.train_problems = read.get("problems", [])
        if stage == "fit":
            self.train_problems = self._apart(self.train_problems)
            check_enough(self.step_problems, len(self.train_problems))
            self.stream = ProblemStream(self.train_problems, self.seed, self.curriculum)

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
        # a module that renders no prompts has no chat
        chat = getattr(self.trainer and self.trainer.lightning_module, "chat", None)
        return problems if chat is None else askable(problems, chat, self.on_bad_row)

    def _apart(self, problems: list[Problem]) -> list[Problem]:
        """The training problems that may be trained on."""
        if self.shard != WHOLE:
            raise ValueError(f"data.shard={self.shard} is a share for predict; fit trains on all. Remove the key.")
        held_out = {"data.benchmarks": self.test_problems, "data.validation": self.validation_problems}
        if self.overlap is None:
            _refuse_leaks(problems, held_out)
            return problems
        found = decontaminate(problems, held_out, self.overlap)
        rank_zero_info(found.format_table())
        return found.clean

    def train_dataloader(self) -> RoundLoader:
        assert self.trainer is not None
        return RoundLoader(-(-len(self.train_problems) // self.step_problems), self.trainer)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self._loader(self.validation_problems)] if self.validation_problems else []

    def test_dataloader(self) -> Any:
        return self._loader(self.test_problems)

    def _loader(self, problems: Sequence[Problem]) -> DataLoader[Any]:
        assert self.trainer is not None
        return problem_loader(problems, self.batch_problems, self.trainer.global_rank, self.trainer.world_size)

    def predict_dataloader(self) -> Any:
        """One batch: all problems of this rank's share. The module streams through it."""
        assert self.trainer is not None
        mine = share(self.train_problems, self.shard, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader([ProblemBatch(tuple(mine), (1.0,) * len(mine))], batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.stream is None else {"stream": self.stream.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the stream of a checkpoint. Lightning calls this after `setup` and before the first round.

        `test` and `validate` with the checkpoint of a training run have no stream, and leave it.
        """
        if self.stream is not None:
            self.stream.load_state_dict(state_dict["stream"])

    def teardown(self, stage: str) -> None:
        for verifier in self.verifiers.values():
            verifier.close()


class RoundLoader:
    """The rounds that remain of the trainer's present epoch, by their number in the run.

    The place follows from the number of batches begun, which every checkpoint holds, so this has no state of its own.
    It is read when the first round is asked for: the Trainer makes the iterator before it restores a checkpoint.
    """

    def __init__(self, num_rounds: int, trainer: L.Trainer) -> None:
        self.num_rounds, self.trainer = num_rounds, trainer

    def __len__(self) -> int:
        return self.num_rounds

    def __iter__(self) -> Iterator[Round]:
        num_epoch_rounds = min(self.num_rounds, int(self.trainer.num_training_batches))
        begun = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        for number in range(begun, begun + num_epoch_rounds - begun % num_epoch_rounds):
            yield Round(number)


def _by_name(files: Mapping[str, Mapping[str, DataFile]]) -> dict[str, DataFile]:
    """name → a file of that name. A name can stand under several keys (the parts of one data set), verified alike."""
    found: dict[str, tuple[str, DataFile]] = {}
    for key, of_key in files.items():
        for name, file in of_key.items():
            other, known = found.setdefault(name, (key, file))
            if _verified(file) != _verified(known):
                raise ValueError(
                    f"data.{other}.{name} and data.{key}.{name} have one name, and completions that answer them are "
                    f"verified differently: {_verified(known)} against {_verified(file)}. A name has one verifier: "
                    "give both the same rules, kind and tolerance, or rename one."
                )
    return {name: file for name, (_, file) in found.items()}


def _verified(file: DataFile) -> str:
    return f"rules {', '.join(file.rules)}, kind {file.kind}, tolerance {file.tolerance}"


def check_enough(step_problems: int, num_problems: int) -> None:
    """Raises a ValueError where a round cannot ask as many problems as it should."""
    if 0 < num_problems < step_problems:
        raise ValueError(
            f"data.step_problems={step_problems:,}: a round asks so many different problems, and data.problems has "
            f"{num_problems:,} to train on. Set data.step_problems={num_problems} or lower, or add problems."
        )


def _refuse_leaks(problems: Sequence[Problem], held_out: Mapping[str, Sequence[Problem]]) -> None:
    """Raises ValueError where a training problem has the text of one that the run is measured by."""
    measured = {problem_hash(p.problem): (key, p.problem_id) for key, others in held_out.items() for p in others}
    leaks = [(problem, measured[name]) for problem in problems if (name := problem_hash(problem.problem)) in measured]
    if leaks:
        problem, (key, other) = leaks[0]
        raise ValueError(
            f"{len(leaks):,} of {len(problems):,} training problems are problems that this run is measured by; the "
            f"first is '{problem.problem_id}' of data.problems, which is '{other}' of {key}. Leave them out with "
            "data.decontaminate='{}', or name other files."
        )
