"""Evaluation of a model directory on benchmarks: `python lightning_cli.py test --config configs/eval.yaml`."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, cast

import lightning as L
import torch

from w2sr.attention import Engine
from w2sr.chat import Chat
from w2sr.evaluation import evaluate
from w2sr.modules.collect import check_positive
from w2sr.modules.fsdp2 import sharding_of
from w2sr.modules.students import place_policy, student_chat
from w2sr.policy import DTypeName, Policy
from w2sr.rollouts import EmbeddedGenerator, Generator, ToolGenerator
from w2sr.templates import Template
from w2sr.tools import Calculator
from w2sr.types import EvalRecord, ProblemBatch, Sampling


class EvalModule(L.LightningModule):
    """Samples a model on benchmarks and verifies what it wrote. Writing result files is the `EvalWriter`'s work.

    Args:
        student: directory or hub name of the model that is evaluated.
        teacher: not used; model overlays name it for the modules that train.
        template: `auto` for the model's own chat template, or `qwen-base`, `qwen-instruct`, `simple`.
        stop_token: the token that ends a completion; found from the template without it.
        template_date: the day that a chat template with a date shows, as 2026-11-30; by default the day of the run.
        instruction: text appended to every problem (a chain-of-thought prompt), or none.
        dtype: dtype of the weights.
        attention: packed attention engine.
        trust_remote_code: allow code from the model's repository.
        check_model: compare each model that is loaded with its own forward pass on a few packed tokens.
        sampling: temperature, top_p, token limit and seed. The paper evaluates at 0.6 and 0.95.
        num_samples: completions a problem.
        num_slots: sequences that are generated together.
        calculator: the model may call a calculator while it writes (see `w2sr.tools`).
        learning_rates: not used; model overlays name them for the modules that train.
    """

    def __init__(
        self,
        student: str,
        teacher: str | None = None,
        template: Template = "auto",
        stop_token: str | None = None,
        template_date: str | None = None,
        instruction: str | None = None,
        dtype: DTypeName = "float32",
        attention: Engine | Literal["auto"] = "auto",
        trust_remote_code: bool = False,
        check_model: bool = True,
        sampling: Sampling = Sampling(),
        num_samples: int = 1,
        num_slots: int = 128,
        calculator: Calculator | None = None,
        learning_rates: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_slots=num_slots)
        self.student, self.teacher = student, teacher
        self.template, self.stop_token, self.template_date = template, stop_token, template_date
        self.instruction = instruction
        self.dtype_name, self.attention, self.trust_remote_code = dtype, attention, trust_remote_code
        self.sampling, self.num_samples, self.num_slots = sampling, num_samples, num_slots
        self.calculator, self.check_model = calculator, check_model
        self.policy: Policy | None = None
        self.records: list[EvalRecord] = []

    @cached_property
    def chat(self) -> Chat:
        """The student's tokenizer, template, stop token and instruction."""
        return student_chat(self, instruction=self.instruction)

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        sharding = sharding_of(self)
        if sharding is not None and self.calculator is not None:
            raise ValueError(
                "model.calculator under trainer.strategy=fsdp2: after each call the engine is asked again, and ranks "
                "that call it unequally often would wait for each other for ever. Set trainer.strategy=ddp."
            )
        self.policy = place_policy(
            self.student,
            sharding,
            self.chat,
            dtype=self.dtype_name,
            attention=self.attention,
            trust_remote_code=self.trust_remote_code,
            checked=self.check_model,
        )

    def on_test_epoch_start(self) -> None:
        self.records = []

    def test_step(self, batch: ProblemBatch, batch_idx: int) -> None:
        assert self.policy is not None, "configure_model loads the policy"
        generator: Generator = EmbeddedGenerator(
            self.policy, self.chat.stop_token_ids, self.chat.decode, num_slots=self.num_slots
        )
        if self.calculator is not None:
            generator = ToolGenerator(generator, self.calculator, self.chat)
        problems = [problem for problem, weight in zip(*batch, strict=True) if weight]
        verifiers = cast(Any, self.trainer).datamodule.verifiers
        # the weights' dtype is the precision, as everywhere that completions are sampled
        with torch.autocast(self.device.type, enabled=False):
            self.records += evaluate(problems, self.chat, generator, verifiers, self.sampling, self.num_samples)
