"""Teacher traces to fine-tune on: read, corrupt, verify, decontaminate, select, tokenise, pack; and problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch.utils.data import DataLoader

from w2sr import chance
from w2sr.chat import Chat
from w2sr.conversation import RefusedText
from w2sr.corruption import Corruption
from w2sr.datamodules.refusals import SKIP, askable, teachable
from w2sr.datamodules.sources import OnBadReference, build_verifiers, load_problems, load_traces, problem_loader
from w2sr.datamodules.steps import HeldOutSteps, StepDataset, StepLoader, check_same_steps
from w2sr.decontaminate import Decontamination, Overlap, decontaminate
from w2sr.locations import locate, locate_model
from w2sr.packing import Overlong, handle_overlong
from w2sr.policy import context_length
from w2sr.rows import OnBadRow
from w2sr.scores import scores_for, student_hash
from w2sr.selection import Gates, Selection, select
from w2sr.supervision import Supervision, with_answer
from w2sr.token_cache import cached_segments
from w2sr.traces import is_store
from w2sr.types import DataFile, Keep, Problem, Segment, Trace


def with_token_counts(traces: Sequence[Trace], chat: Chat) -> list[Trace]:
    """The traces, with the student's token counts where their source gives none (a foreign file, a cut at stop_text).

    Counts that are there are kept, although a teacher's tokenizer may have made them.
    """
    unknown = [trace for trace in traces if trace.num_tokens < 0]
    counts = iter(chat.count_tokens(unknown))
    return [trace if trace.num_tokens >= 0 else replace(trace, num_tokens=next(counts)) for trace in traces]


class TraceDataModule(L.LightningDataModule):
    """Selected traces as packed optimizer steps for `fit`; validation and test problems beside them.

    The student's tokens come from the module's `chat`: `trainer.lightning_module.chat`.

    Args:
        traces: trace stores or files of a teacher's outputs. Rows without a verdict are verified by the file's rules.
        keep: `P` right answers; `N` wrong answers; `N_paper` everything not right; `all`.
        gates: what else a trace must be (see `Gates`).
        supervision: which tokens carry loss: `full` all of the completion; `process_only` all but the final answer;
            `outcome_only` the final answer alone, after the reasoning; `outcome_hard` likewise, without the reasoning.
            All but `full` leave out the traces that have no final answer. See `w2sr.supervision`.
        corruption: errors that are put into traces before they are verified (see `Corruption`).
        decontaminate: leaves out the traces of problems that are in `benchmarks` or `validation` (see
            `w2sr.decontaminate`; `{}` takes the defaults of `Overlap`).
        benchmarks: name → file of test problems, for the final table.
        validation: name → file of validation problems, for Pass@1 while training.
        problems: not used here; data overlays name them for the teacher that answers them.
        held_out_frac: share of problems whose traces are held out for the validation loss.
        max_tokens: tokens that a packed row holds.
        step_sequences: traces of one optimizer step over all ranks (the authors' 128), or
        step_tokens: its tokens; exactly one of the two.
        window: optimizer steps that are packed together; more fill rows better.
        overlong: what happens to a trace longer than a row: `error`, `drop` or `truncate`.
        pad_rows: fill every row up to max_tokens (one shape for a compiled model).
        on_bad_row: a row that cannot be read, or that the tokenizer or the chat template cannot hold, stops the run, or
            is skipped and counted.
        on_bad_reference: likewise a reference answer that cannot be used.
        timeout_s: seconds that the verifier may spend on one answer.
        batch_problems: validation problems of a batch.
        num_workers: threads that pack rows ahead; 0 packs between two steps.
        cache_dir: where the tokens of traces are kept (see `w2sr.token_cache`); `.tokens` beside the run directory
            without it.
        seed: of the order of traces.
    """

    def __init__(
        self,
        traces: list[DataFile],
        keep: Keep = "P",
        gates: Gates = Gates(),
        supervision: Supervision = "full",
        corruption: Corruption | None = None,
        decontaminate: Overlap | None = None,
        benchmarks: dict[str, DataFile] | None = None,
        validation: dict[str, DataFile] | None = None,
        problems: dict[str, DataFile] | None = None,
        held_out_frac: float = 0.0,
        max_tokens: int = 8192,
        step_sequences: int | None = 128,
        step_tokens: int | None = None,
        window: int = 1,
        overlong: Overlong = "error",
        pad_rows: bool = False,
        on_bad_row: OnBadRow = "error",
        on_bad_reference: OnBadReference = "error",
        timeout_s: float = 5.0,
        batch_problems: int = 512,
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.traces, self.keep, self.gates = traces, keep, gates
        self.supervision, self.corruption, self.overlap = supervision, corruption, decontaminate
        self.benchmarks, self.validation = benchmarks or {}, validation or {}
        self.held_out_frac = held_out_frac
        self.max_tokens, self.overlong, self.pad_rows = max_tokens, overlong, pad_rows
        self.step_sequences, self.step_tokens, self.window = step_sequences, step_tokens, window
        self.on_bad_row, self.on_bad_reference, self.timeout_s = on_bad_row, on_bad_reference, timeout_s
        self.batch_problems, self.num_workers, self.seed = batch_problems, num_workers, seed
        self.cache_dir = cache_dir
        self.verifiers = build_verifiers({**self.benchmarks, **self.validation}, timeout_s)
        self.validation_problems: list[Problem] = []
        self.test_problems: list[Problem] = []
        self.selection: Selection | None = None
        self.train_segments: list[Segment] = []
        self.held_out_segments: list[Segment] = []
        self.decontamination: Decontamination | None = None
        self._overlong_report = ""
        self._num_without_answer = self._num_without_loss = 0

    def setup(self, stage: str) -> None:
        """Reads everything. Done once: Lightning calls it for every stage."""
        if self.selection is not None:
            return
        self.validation_problems = self._problems(self.validation)
        self.test_problems = self._problems(self.benchmarks)
        traces = load_traces(
            self.traces,
            corruption=self.corruption,
            on_bad_row=self.on_bad_row,
            on_bad_reference=self.on_bad_reference,
            timeout_s=self.timeout_s,
        )
        traces = self._answered(self._decontaminated(traces))
        chat: Chat = cast(Any, self._trainer.lightning_module).chat
        self.validation_problems = askable(self.validation_problems, chat, self.on_bad_row)
        self.test_problems = askable(self.test_problems, chat, self.on_bad_row)
        if self.on_bad_row == "skip":  # else the selected ones are checked where they are tokenised
            traces = teachable(traces, chat, self.supervision, self.on_bad_row)
        if self.gates.need_tokens:
            traces = with_token_counts(traces, chat)
        # vars, not asdict: the parts of a mixture stay what they are
        self.selection = select(traces, keep=self.keep, scores=self._scores(traces), **vars(self.gates))
        rank_zero_info(self.selection.format_table())
        if self.selection.num_label_free:
            rank_zero_info(
                f"{self.selection.num_label_free:,} of {len(self.selection.traces):,} selected traces have a "
                "label-free verdict: other answers were counted, and no reference answer was looked at."
            )
        segments = self._segments(chat, self.selection.traces)
        sides: dict[bool, list[Segment]] = {True: [], False: []}
        for trace, segment in zip(self.selection.traces, segments, strict=True):
            sides[self._is_held_out(trace)].append(segment)
        self.train_segments, self._overlong_report = self._fitting(sides[False])
        self.held_out_segments, _ = self._fitting(sides[True])
        chat.check_positions([*self.train_segments, *self.held_out_segments], self._positions())
        if self._overlong_report:
            rank_zero_info(self._overlong_report)
        rank_zero_info(self._supervision_report())

    def train_dataloader(self) -> DataLoader[Any]:
        # not in setup, which comes before the run directory is found to be free
        self._write_selection(Path(self._trainer.default_root_dir))
        return StepLoader(self._steps(), self._trainer, self.num_workers)

    def _steps(self) -> StepDataset:
        return StepDataset(
            self.train_segments,
            seed=self.seed,
            max_tokens=self.max_tokens,
            step_sequences=self.step_sequences,
            step_tokens=self.step_tokens,
            window=self.window,
            rank=self._trainer.global_rank,
            world_size=self._trainer.world_size,
            pad_rows=self.pad_rows,
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return self._steps().identity()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint whose run had other optimizer steps; `validate` with a checkpoint has none."""
        if self._trainer.state.fn == "fit":
            check_same_steps(state_dict["steps"], self._identity)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        loaders: list[DataLoader[Any]] = []
        if self.held_out_segments:
            held_out = HeldOutSteps(self.held_out_segments, self.max_tokens, rank, world_size)
            loaders.append(DataLoader(held_out, batch_size=None))
        if self.validation_problems:
            loaders.append(problem_loader(self.validation_problems, self.batch_problems, rank, world_size))
        return loaders

    def teardown(self, stage: str) -> None:
        for verifier in self.verifiers.values():
            verifier.close()

    @property
    def _trainer(self) -> L.Trainer:
        assert self.trainer is not None, "the datamodule is used by a trainer"
        return self.trainer

    def _problems(self, files: dict[str, DataFile]) -> list[Problem]:
        return [
            problem
            for name, file in files.items()
            for problem in load_problems(
                name,
                file,
                self.verifiers[name],
                seed=self.seed,
                on_bad_row=self.on_bad_row,
                on_bad_reference=self.on_bad_reference,
            )
        ]

    def _segments(self, chat: Chat, traces: Sequence[Trace]) -> list[Segment]:
        try:
            return cached_segments(chat, traces, self._cache_folder(), supervision=self.supervision)
        except RefusedText as error:
            raise RefusedText(f"{error} {SKIP}") from error

    def _positions(self) -> int | None:
        """Positions of the student; None where its configuration does not say."""
        module = cast(Any, self._trainer.lightning_module)
        return context_length(module.student, trust_remote_code=module.trust_remote_code)

    def _scores(self, traces: Sequence[Trace]) -> dict[str, dict[str, float]]:
        """The scores that the gates ask for. A likelihood is by the student of this run."""
        if not self.gates.need_scores:
            return {}
        module = cast(Any, self._trainer.lightning_module)
        options = [("template", module.template), ("stop_token", module.stop_token)]
        options += [("template_date", module.chat.template_date or None)]
        said = "".join(f" --{name} '{value}'" for name, value in options if value not in (None, "auto", "model"))
        stores = [path for file in self.traces if is_store(path := locate(file.path))]
        table, lines = scores_for(
            traces,
            stores,
            self.gates.need_scores,
            student=module.student + said,
            hash_of=lambda: student_hash(locate_model(module.student), module.chat),
        )
        for line in lines:
            rank_zero_info(line)
        return table

    def _is_held_out(self, trace: Trace) -> bool:
        """By a hash of the problem's id: all traces of a problem are on one side, whatever else is selected."""
        return chance.uniform("held_out", self.seed, trace.problem_id) < self.held_out_frac

    def _cache_folder(self) -> Path:
        """Beside the run directory, so that the runs of a study share it, and a refused run leaves no trace in one."""
        return Path(self.cache_dir or Path(self._trainer.default_root_dir).absolute().parent / ".tokens")

    def _decontaminated(self, traces: list[Trace]) -> list[Trace]:
        if self.overlap is None:
            return traces
        if not (self.test_problems or self.validation_problems):
            raise ValueError(
                "data.decontaminate needs problems to compare with: name data.benchmarks, or set it to null."
            )
        others: dict[str, list[Problem]] = {}
        for problem in (*self.test_problems, *self.validation_problems):
            others.setdefault(problem.source, []).append(problem)
        problems = {t.problem_id: Problem(t.problem_id, t.source, t.problem, t.reference_answer) for t in traces}
        self.decontamination = decontaminate(list(problems.values()), others, self.overlap)
        rank_zero_info(self.decontamination.format_table())
        return [trace for trace in traces if trace.problem_id not in self.decontamination.removed_ids]

    def _answered(self, traces: list[Trace]) -> list[Trace]:
        """The traces of which the variant of supervision can be made."""
        kept = traces if self.supervision == "full" else with_answer(traces)
        self._num_without_answer = len(traces) - len(kept)
        if not kept:
            raise ValueError(
                f"data.supervision={self.supervision}: none of {len(traces):,} traces is left. It needs a final answer "
                "that the rules of data.traces find; data.decontaminate may have removed others."
            )
        return kept

    def _supervision_report(self) -> str:
        """The share of tokens that carry loss, and what was left out for the want of any."""
        num_loss = sum(segment.num_loss_tokens for segment in self.train_segments)
        num_tokens = sum(map(len, self.train_segments))
        parts = [f"supervision={self.supervision}: {num_loss:,} of {num_tokens:,} tokens carry loss"]
        parts[0] += f" ({100 * num_loss / num_tokens:.1f} %)" if num_tokens else ""
        if self._num_without_answer:
            parts.append(f"{self._num_without_answer:,} traces without a final answer are left out")
        if self._num_without_loss:
            parts.append(f"{self._num_without_loss:,} traces without a token that carries loss are left out")
        return "; ".join(parts)

    def _fitting(self, segments: Sequence[Segment]) -> tuple[list[Segment], str]:
        kept, report = handle_overlong(segments, self.max_tokens, self.overlong)
        teaching = [segment for segment in kept if segment.num_loss_tokens]
        self._num_without_loss += len(kept) - len(teaching)
        return teaching, str(report) if report.num_overlong else ""

    @rank_zero_only
    def _write_selection(self, folder: Path) -> None:
        assert self.selection is not None
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "keep": self.keep,
            "gates": asdict(self.gates),
            "table": json.loads(self.selection.to_json()),
            "supervision": self._supervision_report(),
            "num_loss_tokens": sum(segment.num_loss_tokens for segment in self.train_segments),
            "corruption": self.corruption and asdict(self.corruption),
            "num_corrupted_traces": sum(bool(trace.corruption) for trace in self.selection.traces),
            "decontamination": self.decontamination and json.loads(self.decontamination.to_json()),
            "overlong": self._overlong_report,
            "num_train_traces": len(self.train_segments),
            "num_held_out_traces": len(self.held_out_segments),
            "num_train_tokens": sum(map(len, self.train_segments)),
            "teachers": sorted({trace.teacher for trace in self.selection.traces}),
        }
        (folder / "selection.json").write_text(json.dumps(record, indent=2) + "\n")
