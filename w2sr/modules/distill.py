"""A teacher answers problems: `python lightning_cli.py predict --config configs/distill.yaml`.

The store is the run directory. Every trace is verified and written as soon as its completion has ended, so a run that
was killed goes on with the same command. A module and not a callback writes the store: without it there is nothing to
show for the run, and what is in it decides what is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from w2sr.chat import Chat, Template
from w2sr.distillation import (
    FormatGate,
    Stamp,
    TraceProgress,
    Work,
    distill,
    make_recipe,
    problems_that_fit,
    summary,
)
from w2sr.policy import context_length
from w2sr.ranks import on_all_ranks, patient_group
from w2sr.rollouts import Embedded, RolloutEngine, ToolGenerator, sample_requests
from w2sr.runs import RefusedByAll
from w2sr.shards import WHOLE, Shard
from w2sr.tools import Calculator
from w2sr.traces import TraceWriter, claim, iter_store
from w2sr.types import Problem, ProblemBatch, SampleRequest, Sampling


class DistillModule(L.LightningModule):
    """Samples a teacher on problems, verifies what it wrote, and stores it in `trainer.default_root_dir`.

    Args:
        teacher: directory or hub name of the model that answers.
        student: not used; model overlays name it for the modules that train.
        engine: what runs the teacher.
        template: `auto` for the teacher's own chat template, or `qwen-base`, `qwen-instruct`, `simple`.
        stop_token: the token that ends a completion; found from the template without it.
        template_date: the day that a chat template with a date shows, as 2026-11-30; by default the day of the run.
        instruction: text appended to every problem; the template's own without it.
        trust_remote_code: allow code from the teacher's repository for its tokenizer and configuration.
        sampling: temperature, top_p, token limit and seed. The paper's teachers answer greedily.
        num_samples: traces a problem.
        calculator: the teacher may call a calculator while it writes (see `w2sr.tools`); what that inserts carries no
            loss when a student is trained on the traces.
        on_long_problem: a problem that does not fit into the teacher's context with its answer stops the run
            (`error`), or is left out and counted (`skip`).
        gate_traces: after so many traces the run stops if
        gate_min_answers: less than this share of them has an answer that can be extracted; 0 lets everything pass.
        log_every_s: seconds between two lines of progress where there is no terminal.
        num_slots, learning_rates: not used; model overlays name them for the student. An engine has its own settings.
    """

    def __init__(
        self,
        teacher: str,
        student: str | None = None,
        engine: RolloutEngine = Embedded(),
        template: Template = "auto",
        stop_token: str | None = None,
        template_date: str | None = None,
        instruction: str | None = None,
        trust_remote_code: bool = False,
        sampling: Sampling = Sampling(),
        num_samples: int = 1,
        calculator: Calculator | None = None,
        on_long_problem: Literal["error", "skip"] = "error",
        gate_traces: int = 200,
        gate_min_answers: float = 0.5,
        log_every_s: float = 30.0,
        num_slots: int | None = None,
        learning_rates: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.engine = teacher, engine
        self.template, self.stop_token, self.template_date = template, stop_token, template_date
        self.instruction = instruction
        self.trust_remote_code = trust_remote_code
        self.sampling, self.num_samples, self.on_long_problem = sampling, num_samples, on_long_problem
        self.calculator, self.log_every_s = calculator, log_every_s
        self.gate = FormatGate(gate_traces, gate_min_answers, self._advice())
        if num_samples < 1 or (num_samples > 1 and sampling.temperature == 0):
            raise ValueError(
                f"model.num_samples={num_samples} at temperature {sampling.temperature:g}: it must be at least 1, and "
                "greedy samples of one problem are all equal. Set model.sampling.temperature, or num_samples=1."
            )

    @cached_property
    def chat(self) -> Chat:
        """The teacher's tokenizer, template, stop token and instruction."""
        return Chat.load(
            self.teacher,
            template=self.template,
            stop_token=self.stop_token,
            instruction=self.instruction,
            template_date=self.template_date,
            trust_remote_code=self.trust_remote_code,
        )

    def setup(self, stage: str) -> None:
        """Everything that can be refused is refused here, before a model is loaded."""
        _refuse_sharding(self.trainer.strategy)
        data = cast(Any, self.trainer).datamodule
        problems = self._that_fit(data.train_problems)
        self.problems = {problem.problem_id: problem for problem in problems}
        self.shard: Shard = data.shard
        self.recipe = make_recipe(
            self.teacher,
            type(self.engine).__name__,
            self.chat,
            self.sampling,
            self.num_samples,
            data.problems,
            problems,
            self.shard.count,
            self.calculator,
        )
        claim(self.store, self.recipe)
        self.ranks = patient_group()

    @property
    def store(self) -> Path:
        """The trace store: the run directory."""
        return Path(self.trainer.default_root_dir)

    def predict_step(self, batch: ProblemBatch, batch_idx: int) -> None:
        """Samples what the store lacks of this rank's share. Returns nothing: the traces are in the store."""
        wanted = [
            request
            for problem in batch.problems
            if problem.problem_id in self.problems
            for request in sample_requests(problem, self.chat, self.num_samples)
        ]
        # the weights' dtype is the precision, as everywhere that completions are sampled
        with self._writer() as writer, torch.autocast(self.device.type, enabled=False):
            done = writer.done()
            left = [r for r in wanted if (r.problem_id, self.teacher, r.sample_index) not in done]
            self.progress = self._progress(len(wanted) - len(left), len(wanted))
            if left:
                self._sample(writer, left)

    def _sample(self, writer: TraceWriter, requests: list[SampleRequest]) -> None:
        """The stream: a trace is sampled, verified, written, counted."""
        if not self.gate.has_passed:
            for trace in iter_store(self.store):
                self.gate.add(trace)
            self.gate.check()
        verifiers = cast(Any, self.trainer).datamodule.verifiers
        stamp = Stamp(self.teacher, self.chat.template_hash, self._engine_name(), self.chat.opened)
        with self.engine.open(self.teacher, self.chat, self.device) as generator, self.progress:
            if self.calculator is not None:
                generator = ToolGenerator(generator, self.calculator, self.chat)
            for trace in distill(requests, self.problems, generator, verifiers, self.sampling, stamp):
                writer.append(trace)
                self.progress.add(trace)
                self.gate.add(trace)
                self.gate.check()

    def on_predict_end(self) -> None:
        """Waits for the slower ranks, then says what is there."""
        tally = self.progress.tally
        work = on_all_ranks(Work(tally.num_traces, tally.num_tokens, self.progress.seconds), self.ranks)
        if self.trainer.is_global_zero:
            mine = [t for t in iter_store(self.store) if self.shard.holds(t.problem_id)]
            num_problems = self.recipe.problems_by_shard[self.shard.number - 1]
            print(f"\n{summary(self.store, self.shard, self.teacher, num_problems, mine, work)}", flush=True)

    def _progress(self, num_done: int, num_all: int) -> TraceProgress:
        ranks = f"rank 0 of {self.trainer.world_size}: " if self.trainer.world_size > 1 else ""
        console = Console() if self.trainer.is_global_zero else None
        return TraceProgress(num_done, num_all, ranks, self.log_every_s, console)

    @contextmanager
    def _writer(self) -> Iterator[TraceWriter]:
        """This rank's writer. Where one rank cannot have its own, all raise: none writes beside another run."""
        name = "main" if self.shard == WHOLE else f"shard{self.shard.number}of{self.shard.count}"
        rank = self.trainer.global_rank
        writer, refusal = None, None
        try:
            writer = TraceWriter(self.store, writer=name if rank == 0 else f"{name}_rank{rank}")
        except ValueError as error:
            refusal = error
        refusals = [text for text in on_all_ranks(refusal and str(refusal), self.ranks) if text]
        if writer is None or refusals:
            if writer is not None:
                writer.close()
            raise ValueError(refusals[0]) from refusal
        with writer:
            yield writer

    def _that_fit(self, problems: list[Problem]) -> list[Problem]:
        positions = context_length(self.teacher, trust_remote_code=self.trust_remote_code)
        fitting, complaint = problems_that_fit(problems, self.chat, positions, self.sampling.max_new_tokens)
        if complaint and (self.on_long_problem == "error" or not fitting):
            raise ValueError(f"{complaint}. Lower max_new_tokens, or set model.on_long_problem=skip to leave such out.")
        if complaint:
            rank_zero_info(f"{complaint}. They are left out (model.on_long_problem=skip).")
        if not fitting:
            raise ValueError("There is no problem to ask: data.problems holds none whose reference answer can be used.")
        return fitting

    def _engine_name(self) -> str:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("w2sr", "torch", "transformers"))
        return f"{type(self.engine).__name__}, {versions}"

    def _advice(self) -> str:
        return (
            f"Is it the wrong template (model.template={self.template}), too few tokens "
            f"(sampling.max_new_tokens={self.sampling.max_new_tokens:,}), or an extraction rule that does not fit "
            "(data.problems)? What is there is kept. Change it and write to another trainer.default_root_dir; or, if "
            "this is what the teacher writes, set model.gate_min_answers=0 and run again: it goes on."
        )


def _refuse_sharding(strategy: Any) -> None:
    """Raises `RefusedByAll` under a strategy that shards models: each process asks a whole teacher."""
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise RefusedByAll(
            "trainer.strategy=fsdp2 shards a model over the processes, and `predict` gives each process a whole teacher"
            " with its share of the problems. Set trainer.strategy=auto. A teacher larger than a GPU is for vLLM: "
            "--config configs/engine/vllm.yaml with model.init_args.engine.init_args.tensor_parallel_size, or a server "
            "(configs/engine/server.yaml)."
        )
