"""Group relative policy optimisation of a student, with rewards that can be verified.

    loss = - Σ_i Σ_t w_it · min(ρ_it A_i, clip(ρ_it, 1 - ε_low, 1 + ε_high) A_i),    A_i = (r_i - mean_g) / std_g

Source: arXiv 2402.03300; its variants are in `w2sr.losses`. One batch is one round: problems, groups of rollouts, their
rewards and advantages, packed rows, and one or more optimizer steps. Not here: a value model, rewards of single tokens,
and generation that goes on while the policy is trained.

Legend: N groups of a round, G rollouts of a group, R = N·G, T packed tokens.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from w2sr.advantages import AdvantageRule, group_advantages
from w2sr.attention import Engine
from w2sr.chat import Chat
from w2sr.curriculum import DynamicSampling
from w2sr.groups import Experience, minibatches, num_tokens, round_metrics, step_weights
from w2sr.kernels import Kernels
from w2sr.losses import Objective, policy_loss
from w2sr.metrics import PassAtK
from w2sr.modules.cards import grpo_card
from w2sr.modules.checkpoints import check_same_student, student_identity, write_whole_checkpoints
from w2sr.modules.collect import Collected, Collector, check_positive, check_room, check_round, check_sampling
from w2sr.modules.fsdp2 import sharding_of
from w2sr.modules.optimization import (
    OptimizerCallable,
    WarmupCosine,
    build_optimizer,
    clip_gradients,
    gradient_sync,
    require_finite,
    seed_dropout,
)
from w2sr.modules.phases import Phases
from w2sr.modules.reference import load_reference
from w2sr.modules.round_log import DeadRounds, RoundLog, add_sums, policy_metrics
from w2sr.modules.row_maker import RowMaker
from w2sr.modules.students import place_policy, student_chat
from w2sr.modules.validation import EQUAL_ON_RANKS, answer_validation
from w2sr.policy import DTypeName, LoRA, Policy, Recompute
from w2sr.ranks import patient_group
from w2sr.rewards import Correct, RewardTerm
from w2sr.rollouts import Embedded, PolicyGenerator, RolloutEngine
from w2sr.sharding import save_policy
from w2sr.templates import Template
from w2sr.types import EvalRecord, ProblemBatch, Round, Sampling


class GRPOModule(L.LightningModule):
    """Trains a student by reinforcement learning on the rewards of its own rollouts. One batch is one round.

    Optimisation is manual: clipping is the key `clip_norm`, micro-steps follow from `max_tokens`, and
    `trainer.accumulate_grad_batches` stays 1.

    Args:
        student: directory or hub name of the model that is trained.
        teacher: directory or hub name of a weak teacher, for the final table; its row is left out without it.
        template: `auto` for the model's own chat template, or `qwen-base`, `qwen-instruct`, `simple`.
        stop_token: the token that ends a completion; found from the template without it.
        template_date: the day that a chat template with a date shows, as 2026-11-30; by default the day of the run.
        dtype: dtype of the weights. With `trainer.precision=bf16-mixed` leave float32.
        attention: packed attention engine.
        trust_remote_code: allow code from the model's repository.
        check_model: compare each model that is loaded with its own forward pass on a few packed tokens.
        gradient_checkpointing: compute each block's activations again in the backward pass.
        kernels: how the blocks are computed: by torch as written, compiled, or by Liger's kernels.
        lora: train low-rank adapters and the stop token's embedding instead of all weights.
        optimizer: optimizer class with its arguments; its `lr` is overruled by `learning_rates.grpo`.
        learning_rates: kind of training (`sft`, `grpo`) → peak learning rate that suits this student.
        warmup_frac: share of all optimizer steps with a rising learning rate.
        min_lr_frac: where the cosine after it ends, as a share of the peak; 1 keeps the peak.
        clip_norm: gradients are scaled down to this global norm; 0 leaves them.
        engine: what samples rollouts.
        rollouts: how they are sampled; without it like `sampling`, at temperature 1 and top_p 1.
        group_size: rollouts a problem, G.
        rewards: name → term; the reward of a rollout is their weighted sum. Without it the verifier's verdict, 1 or 0.
        advantage: how the rewards of a group become advantages.
        objective: the loss, its clipping, its KL and entropy terms, and the correction for a sampler that differs.
        mask_cut_off: rollouts that met the token limit stay in their group's baseline, and train nothing.
        dynamic_sampling: replace dead groups (all rewards equal) by other problems' groups, within a bound.
        minibatches: optimizer steps in a pass over the round's rollouts.
        passes: passes over the rollouts of a round.
        max_tokens: tokens of a packed row: one micro-step.
        max_staleness: rounds that the weights behind a rollout may lie back. Beyond it the run stops.
        reference: directory or hub name of the reference policy; without it the student before training. It is
            loaded only where `objective.kl` has a coefficient; with `lora` it is the student without adapters.
        offload_reference: keep the reference policy in the host's memory between two uses.
        dead_rounds: after so many rounds in a row without a group that teaches, a warning says why.
        sampling: how validation and test problems are answered.
        num_slots: sequences that are generated together, by the embedded engine in the final table.
    """

    last_collected: Collected | None = None

    def __init__(
        self,
        student: str,
        teacher: str | None = None,
        template: Template = "auto",
        stop_token: str | None = None,
        template_date: str | None = None,
        dtype: DTypeName = "float32",
        attention: Engine | Literal["auto"] = "auto",
        trust_remote_code: bool = False,
        check_model: bool = True,
        gradient_checkpointing: Recompute = False,
        kernels: Kernels = Kernels(),
        lora: LoRA | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        learning_rates: dict[str, float] | None = None,
        warmup_frac: float = 0.0,
        min_lr_frac: float = 1.0,
        clip_norm: float = 1.0,
        engine: RolloutEngine = Embedded(),
        rollouts: Sampling | None = None,
        group_size: int = 8,
        rewards: dict[str, RewardTerm] | None = None,
        advantage: AdvantageRule = AdvantageRule(),
        objective: Objective = Objective(),
        mask_cut_off: bool = False,
        dynamic_sampling: DynamicSampling | None = None,
        minibatches: int = 1,
        passes: int = 1,
        max_tokens: int = 16_384,
        max_staleness: int = 0,
        reference: str | None = None,
        offload_reference: bool = False,
        dead_rounds: int = 10,
        sampling: Sampling = Sampling(),
        num_slots: int = 128,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student, self.teacher, self.max_tokens, self.check_model = student, teacher, max_tokens, check_model
        self.template, self.stop_token, self.template_date = template, stop_token, template_date
        self.dtype_name, self.attention, self.trust_remote_code = dtype, attention, trust_remote_code
        self.gradient_checkpointing, self.kernels, self.lora = gradient_checkpointing, kernels, lora
        self.optimizer, self.warmup_frac, self.min_lr_frac = optimizer, warmup_frac, min_lr_frac
        self.clip_norm, self.learning_rate = clip_norm, (learning_rates or {}).get("grpo", 1e-6)
        self.engine, self.max_staleness, self.sampling, self.num_slots = engine, max_staleness, sampling, num_slots
        self.rollouts = rollouts or Sampling(1.0, 1.0, sampling.max_new_tokens, sampling.seed)
        self.group_size, self.mask_cut_off, self.dynamic_sampling = group_size, mask_cut_off, dynamic_sampling
        self.rewards = rewards or {"correct": RewardTerm(Correct())}
        self.advantage, self.objective, self.minibatches, self.passes = advantage, objective, minibatches, passes
        self.reference, self.offload_reference, self.dead_rounds = reference, offload_reference, DeadRounds(dead_rounds)
        counts = {"group_size": group_size, "minibatches": minibatches, "passes": passes, "max_tokens": max_tokens}
        check_positive(**counts, num_slots=num_slots)
        check_sampling(self.rollouts)
        advantage.check(group_size)
        self.policy: Policy | None = None
        self.policy_version = self.num_trained_tokens = self.num_generated_tokens = 0
        self.phases, self._open = Phases(), ExitStack()
        self.validation_records: list[EvalRecord] = []
        self._pass_at_k: PassAtK | None = None

    @cached_property
    def chat(self) -> Chat:
        """The student's tokenizer, template and stop token."""
        return student_chat(self)

    def setup(self, stage: str) -> None:
        write_whole_checkpoints(self.trainer.strategy)

    def configure_model(self) -> None:
        """Loads the student, sharded where the strategy says so. Lightning calls this again for every stage."""
        if self.policy is not None:
            return
        self.policy = place_policy(
            self.student,
            sharding_of(self),
            self.chat,
            dtype=self.dtype_name,
            attention=self.attention,
            trust_remote_code=self.trust_remote_code,
            checked=self.check_model,
            lora=self.lora,
            gradient_checkpointing=self.gradient_checkpointing,
            kernels=self.kernels,
        )

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer, self.learning_rate, self.named_parameters())
        scheduler = WarmupCosine(optimizer, self.num_steps(), self.warmup_frac, self.min_lr_frac)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def num_steps(self) -> int:
        """Optimizer steps of the whole run. `trainer.max_steps` counts those; an epoch counts rounds."""
        self.trainer.fit_loop.setup_data()
        rounds = (self.trainer.max_epochs or -1) * int(self.trainer.num_training_batches)
        limits = [rounds * self.minibatches * self.passes, self.trainer.max_steps]
        if max(limits) < 1:
            raise ValueError("trainer.max_epochs=-1 and trainer.max_steps=-1 give the run no end. Set one of them.")
        return min(limit for limit in limits if limit > 0)

    def on_fit_start(self) -> None:
        policy, data = self._loaded(), cast(Any, self.trainer).datamodule
        rank_zero_info(f"Packed attention on {self.device}: {policy.engine()} (attention={self.attention}).")
        check_round(policy, self.minibatches, data.step_problems)
        check_room(data.train_problems, self.chat, self.rollouts, policy.max_positions, self.max_tokens)
        self._seed = torch.initial_seed()
        self._reference = None
        if self.objective.kl.coefficient:
            own = self.reference is None and self.lora is not None
            name = None if own else self.reference or self.student
            self._reference = load_reference(self, policy, name, offload=self.offload_reference)
        self.ranks = patient_group()
        self.collector = Collector(
            self.chat, data.verifiers, self.rewards, self.rollouts, self.group_size, self.max_staleness,
            self.dynamic_sampling, self.global_rank, self.trainer.world_size, self.phases, self.ranks,
        )  # fmt: skip
        self.rows = RowMaker(self.trainer, self.rollouts.temperature, self.max_tokens, self.ranks)
        self.generator: PolicyGenerator = self._open.enter_context(self.engine.follow(policy, self.chat, self.device))

    def on_sanity_check_start(self) -> None:
        self.generator.update(self.policy_version)

    def on_train_start(self) -> None:
        """By now a checkpoint's weights are in the policy."""
        self.generator.update(self.policy_version)
        self.log_file = RoundLog(Path(self.trainer.default_root_dir), self.policy_version, self.trainer.is_global_zero)

    def teardown(self, stage: str) -> None:
        self._open.close()

    def training_step(self, batch: Round, batch_idx: int) -> None:
        collected = self._collect()
        experience, advantages_NG = self._experience(collected)
        sums: dict[str, Tensor] = {}
        self._num_round_tokens = 0
        num_groups, seed, number = len(collected.groups), self.rollouts.seed, self.policy_version
        with self.phases("train"):
            for members in minibatches(num_groups, self.group_size, self.minibatches, self.passes, seed, number):
                add_sums(sums, self._update(experience, members))
        self.policy_version += 1
        with self.phases("sync"):
            self.generator.update(self.policy_version)
        self._log_round(collected, advantages_NG, sums)

    def _collect(self) -> Collected:
        """Groups of this round's problems with their rewards."""
        data = cast(Any, self.trainer).datamodule
        # in the weights' own precision, whatever the trainer's autocast
        with torch.autocast(self.device.type, enabled=False):
            collected = self.collector.collect(
                data.train_problems, data.stream, self.generator, data.step_problems, self.policy_version
            )
        self.generator.rest()
        self.num_generated_tokens += collected.num_tokens
        self.last_collected = collected
        return collected

    def _experience(self, collected: Collected) -> tuple[Experience, np.ndarray]:
        """Advantages, and what frozen policies say of the rollouts where the objective asks for that."""
        rollouts = [rollout for group in collected.groups for rollout in group.rollouts]
        old = ref = None
        with self.phases("score"):
            if self.minibatches * self.passes > 1:
                old = self.rows.logprobs(self._loaded(), rollouts)
            if self._reference is not None:
                with self._reference.ready() as reference:
                    ref = self.rows.logprobs(reference, rollouts)
        advantages_NG = group_advantages(collected.rewards.total, self.advantage)
        return Experience(rollouts, advantages_NG.ravel(), old, ref), advantages_NG

    def _update(self, experience: Experience, members: np.ndarray) -> dict[str, Tensor]:
        """One optimizer step on the rollouts `members`. Returns the sums of what is watched, over this rank's rows."""
        optimizer, scheduler = cast(Any, self.optimizers()), cast(Any, self.lr_schedulers())
        optimizer.zero_grad()
        seed_dropout(self._seed, optimizer_step=self.trainer.global_step, rank=self.global_rank)
        sums: dict[str, Tensor] = {}
        weights_R, used = step_weights(
            experience, members, self.objective, self.rollouts.max_new_tokens, mask_cut_off=self.mask_cut_off
        )
        rows = self.rows.of_rank(experience, weights_R, used)
        for index, row in enumerate(rows):
            with gradient_sync(cast(Any, self.trainer.strategy.model), last=index == len(rows) - 1):
                logprobs_T, entropies_T = self._loaded()(row.packed, self.rollouts.temperature, entropies=True)
                loss, row_sums = policy_loss(logprobs_T, entropies_T, row, self.objective)
                # DDP and FSDP average over ranks; the parts of a step are summed
                self.manual_backward(loss * self.trainer.world_size)
            add_sums(sums, {"loss": loss.detach(), **row_sums})
        grad_norm = clip_gradients(self.parameters(), self.clip_norm)
        names = (experience.rollouts[member].problem.problem_id for member in members)
        require_finite(f"Round {self.policy_version}", "Problems", names, sums["loss"], grad_norm, "grpo")
        self._rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        torch.clear_autocast_cache()  # else the next step of this round reads the weights as they were
        scheduler.step()
        self._num_round_tokens += num_tokens(experience.rollouts[member] for member in used)
        return {**sums, "grad_norm": grad_norm / self.trainer.world_size}

    def _log_round(self, collected: Collected, advantages_NG: np.ndarray, sums: dict[str, Tensor]) -> None:
        """Everything that is watched: into the logger, `rounds.jsonl` and the progress bar."""
        over_ranks = {
            name: float(cast(Tensor, self.trainer.strategy.reduce(value.double(), reduce_op="sum")))
            for name, value in sums.items()
        }
        seconds = self.phases.take()
        metrics = {
            **round_metrics(collected.groups, collected.rewards.total, advantages_NG),
            **{f"reward/{name}": float(part_NG.mean()) for name, part_NG in collected.rewards.parts.items()},
            **policy_metrics(over_ranks, self.minibatches * self.passes),
            **cast(Any, self.trainer).datamodule.stream.metrics(),
            "train/learning_rate": self._rate,
            "groups/sampled": float(collected.num_sampled),
            **{f"seconds/{phase}": value for phase, value in seconds.items()},
            "speed/rollout_tokens_per_s": collected.num_tokens / seconds["rollouts"],
            "speed/train_tokens_per_s": self._num_round_tokens / seconds["train"],
        }
        self.num_trained_tokens += self._num_round_tokens
        self.dead_rounds.add(collected.groups, metrics["groups/dead_frac"])
        self.log_file.add(self.policy_version - 1, metrics)
        self.log_dict(metrics)
        kl = "policy/mismatch_kl" if self._reference is None else "policy/kl"
        shown = {"reward": metrics["reward/mean"], "length": metrics["rollouts/tokens_mean"], "kl": metrics[kl]}
        self.log_dict(shown, prog_bar=True, logger=False)

    def validation_step(self, batch: ProblemBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Pass@1 on validation problems, by the engine that samples rollouts."""
        assert self._pass_at_k is not None, "validation problems come from validation sources"
        verifiers = cast(Any, self.trainer).datamodule.verifiers
        # in the weights' own precision, as `test` and the final table generate, whatever the trainer's autocast
        with torch.autocast(self.device.type, enabled=False):
            self.validation_records += answer_validation(
                batch, self.chat, self.generator, verifiers, self.sampling, self._pass_at_k
            )

    def on_validation_epoch_start(self) -> None:
        self.validation_records = []
        sources = tuple(cast(Any, self.trainer).datamodule.validation)
        self._pass_at_k = PassAtK(sources=sources).to(self.device) if sources else None

    def on_validation_epoch_end(self) -> None:
        if self._pass_at_k is not None:
            self.log("val/pass@1", self._pass_at_k.scalars()["pass@1/pooled"], prog_bar=True, **EQUAL_ON_RANKS)

    def save_student(self, folder: Path) -> None:
        """Writes the policy and its tokenizer as a Hugging Face directory. Every process must call it."""
        save_policy(self._loaded(), folder, self.chat)

    @property
    def arm(self) -> str:
        """What tables call this student."""
        return "GRPO"

    def watched(self) -> dict[str, Any]:
        """What `result.json` says of training beyond its cost: the last round, seconds by phase, tokens sampled."""
        return {"num_rollout_tokens": self.num_generated_tokens, **self.log_file.summary()}

    def card(self) -> tuple[str, str]:
        """Title and text of the model card."""
        data = cast(Any, self.trainer).datamodule
        return grpo_card(
            sources=list(data.problems),
            num_problems=len(data.train_problems),
            rewards={name: term.weight for name, term in self.rewards.items()},
            loss=self.objective.loss,
            group_size=self.group_size,
            rounds=self.policy_version,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["student"] = student_identity(self.student, self._loaded(), self.lora)
        checkpoint["grpo"] = {
            "policy_version": self.policy_version,
            "num_trained_tokens": self.num_trained_tokens,
            "num_generated_tokens": self.num_generated_tokens,
            "dead_rounds": self.dead_rounds.num_in_a_row,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same_student(checkpoint.get("student"), student_identity(self.student, self._loaded(), self.lora))
        if "grpo" not in checkpoint:
            raise ValueError(
                "The checkpoint is of supervised fine-tuning, not of GRPO. To train its student on, give the run's "
                "student/ directory as model.student; --ckpt_path is for a GRPO run that was stopped."
            )
        saved = checkpoint["grpo"]
        self.policy_version = saved["policy_version"]
        self.num_trained_tokens, self.num_generated_tokens = saved["num_trained_tokens"], saved["num_generated_tokens"]
        self.dead_rounds.num_in_a_row = saved["dead_rounds"]

    def _loaded(self) -> Policy:
        assert self.policy is not None, "configure_model loads the policy"
        return self.policy
