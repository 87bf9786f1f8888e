"""One GRPO step: the same model, prompts and group size through us and through TRL's GRPOTrainer.

    OMP_NUM_THREADS=1 python benchmarks/grpo_step.py --data ../shared/data --out docs/results/grpo_step.md

Both run their real trainer for one optimizer step on the CPU in float32: rollouts, rewards, loss, update. Each side is
tried in several settings once; then the best of each alternate. `make demo` leaves the student that is the default.

The models and problems are those of `grpo_jobs.py`. Legend: N problems, G rollouts of each, R = N·G.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import lightning as L
import numpy as np
import torch
from grpo_jobs import GROUP_SIZE, STOP_PROBABILITY, Job, gsm8k_job, miniature_job, read
from lightning.pytorch.callbacks import Callback
from sft_throughput import quiet
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from w2sr.chat import Chat
from w2sr.datamodules import ProblemDataModule
from w2sr.flops import num_parameters
from w2sr.modules import GRPOModule
from w2sr.modules.phases import Phases
from w2sr.policy import load_policy
from w2sr.rewards import RewardTerm
from w2sr.rollouts import Embedded
from w2sr.types import Rollout, Sampling

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
AIM = 0.5
"""Of TRL's time, at most."""
LEARNING_RATE = 1e-6
ROLLOUTS, VERDICTS, TRAIN, REST = "rollouts", "verify and reward", "train", "rest"
PHASES = (ROLLOUTS, VERDICTS, TRAIN, REST)


class Step(NamedTuple):
    """One step: CPU and wall seconds, tokens of its completions, their lengths, and CPU seconds by phase."""

    cpu_s: float
    seconds: float
    lengths: tuple[int, ...]
    phases: dict[str, float]

    @property
    def rate(self) -> float:
        """Completion tokens a CPU second."""
        return sum(self.lengths) / self.cpu_s


class Watch(Callback):
    """Times rounds of Lightning's trainer."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.began = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        cpu_s, seconds = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        took = {name: float(trainer.callback_metrics[f"seconds/{name}"]) for name in ("rollouts", "verify", "rewards")}
        train = float(trainer.callback_metrics["seconds/train"])
        phases = {ROLLOUTS: took["rollouts"], VERDICTS: took["verify"] + took["rewards"], TRAIN: train}
        lengths = [len(one.completion.token_ids) for group in module.last_collected.groups for one in group.rollouts]
        self.steps.append(Step(cpu_s, seconds, tuple(lengths), {**phases, REST: cpu_s - sum(phases.values())}))


def by_chance(text: str) -> float:
    """A reward in [0, 1) that the text decides and nothing else: no group is dead, so no rollout is left out."""
    return zlib.crc32(text.encode()) / 2**32


def chance_reward(rollout: Rollout) -> float:
    return by_chance(rollout.completion.text)


def run_ours(job: Job, num_slots: int) -> Step:
    """One round with GRPOModule, ProblemDataModule and Lightning's Trainer."""
    L.seed_everything(0, verbose=False)
    module = GRPOModule(
        student=str(job.folder),
        template=job.template,
        optimizer=partial(torch.optim.AdamW, fused=True),
        learning_rates={"grpo": LEARNING_RATE},
        engine=Embedded(num_slots=num_slots),
        group_size=GROUP_SIZE,
        rewards={"chance": RewardTerm(chance_reward)},
        sampling=Sampling(max_new_tokens=job.max_new_tokens),
        max_tokens=8192,
    )
    module.phases = Phases(time.process_time)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=1,
            default_root_dir=folder,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = ProblemDataModule(problems={"asked": job.problems}, step_problems=job.num_problems)
        trainer.fit(module, datamodule=data)
    return watch.steps[0]


class PeerWatch(TrainerCallback):
    """Times optimizer steps of TRL's trainer, and three of its methods inside them."""

    def __init__(self) -> None:
        self.phases = Phases(time.process_time)
        self.lengths: list[int] = []
        self.steps: list[Step] = []

    def attach(self, trainer: Any) -> None:
        for method, name in (
            ("_prepare_inputs", "prepare"),
            ("_generate_single_turn", ROLLOUTS),
            ("_calculate_rewards", VERDICTS),
        ):
            setattr(trainer, method, self._timed(getattr(trainer, method), name))

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **keys: Any) -> Any:
            with self.phases(name):
                result = method(*args, **keys)
            if name == ROLLOUTS:
                self.lengths += [len(token_ids) for token_ids in result[0]]
            return result

        return timed

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.process_time(), time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        cpu_s, seconds = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        took = self.phases.take()
        train = cpu_s - took["prepare"]
        phases = {ROLLOUTS: took[ROLLOUTS], VERDICTS: took[VERDICTS], TRAIN: train}
        self.steps.append(Step(cpu_s, seconds, tuple(self.lengths), {**phases, REST: cpu_s - sum(phases.values())}))


class Setting(NamedTuple):
    """A setting of the peer: rollouts of a micro-step, and into how many parts the round's generation is cut."""

    batch_size: int
    parts: int = 1
    keys: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        parts = f", generation in {self.parts} parts" if self.parts > 1 else ""
        return f"batch {self.batch_size}{parts}" + "".join(f", {key}={value}" for key, value in self.keys)


def peer_settings(job: Job) -> list[Setting]:
    """Micro-steps of several sizes; then other ways to generate, with one that is good for training."""
    sizes = [size for size in (8, 16, 32, 64) if size <= job.num_rollouts]
    settings = [Setting(size) for size in sizes]
    return [*settings, Setting(8, parts=2), Setting(8, keys=(("cache_implementation", "static"),))]


def run_peer(job: Job, setting: Setting) -> Step:
    """One optimizer step with TRL's GRPOTrainer: no checkpointing of activations, no saving, no reports."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    L.seed_everything(0, verbose=False)
    chat = Chat.load(job.folder, template=job.template)
    prompts = [chat.render_prompt(problem.problem) for problem in read(job)]
    accumulate = job.num_rollouts // setting.batch_size
    watch = PeerWatch()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            learning_rate=LEARNING_RATE,
            max_steps=1,
            per_device_train_batch_size=setting.batch_size,
            gradient_accumulation_steps=accumulate,
            steps_per_generation=accumulate // setting.parts,
            num_generations=GROUP_SIZE,
            max_completion_length=job.max_new_tokens,
            temperature=1.0,
            **dict(setting.keys),
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, attn_implementation="sdpa"),
            reward_funcs=lambda completions, **_: [by_chance(text) for text in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=AutoTokenizer.from_pretrained(job.folder, padding_side="left"),
            callbacks=[watch],
        )
        watch.attach(trainer)
        trainer.train()
    return watch.steps[0]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--student", type=Path, default=Path("runs/demo/student"), help="of the miniature, trained")
    parser.add_argument("--rounds", type=int, default=3, help="steps of ours and of the peer's best, alternating")
    parser.add_argument("--slots", type=int, nargs="+", default=[128, 256], help="what our engine is tried with")
    parser.add_argument("--miniature-problems", type=int, default=32)
    parser.add_argument("--gsm8k-problems", type=int, default=2)
    args = parser.parse_args()
    quiet()
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        for job in (
            miniature_job(args.student, args.miniature_problems),
            gsm8k_job(args.data, Path(folder), args.gsm8k_problems),
        ):
            sections.append(section(job, args.slots, args.rounds))
            print(sections[-1], flush=True)
    common.write(args.out, page(sections, args.rounds))


def section(job: Job, slots: list[int], rounds: int) -> str:
    """Measures one job: every setting of both sides once, then the best of each in turns."""
    small = job._replace(num_problems=2, problems=replace(job.problems, limit=2))
    run_ours(small, 16)
    run_peer(small, Setting(8))
    numbers = sorted({min(number, job.num_rollouts) for number in slots})
    sides: dict[str, Callable[[], Step]] = {
        f"w2sr, {number} slots": partial(run_ours, job, number) for number in numbers
    }
    peers = {f"TRL, {setting.name}": partial(run_peer, job, setting) for setting in peer_settings(job)}
    once = {}
    for name, run in (sides | peers).items():
        once[name] = step = run()
        print(f"{job.name}: {name}: CPU {step.cpu_s:.1f} s, wall {step.seconds:.1f} s, {step.phases}", flush=True)
    # by tokens a second: what is sampled differs from side to side
    best, best_peer = (max(tried, key=lambda name: once[name].rate) for tried in (sides, peers))
    measured: dict[str, list[Step]] = {best: [], best_peer: []}
    for _ in range(rounds):
        for name in measured:
            measured[name].append((sides | peers)[name]())
    return section_text(job, once, measured)


def section_text(job: Job, once: dict[str, Step], measured: dict[str, list[Step]]) -> str:
    """One part of the page: the model, the two sides, their phases, and every setting that was tried."""
    policy = load_policy(job.folder)
    rates = {name: median(step.rate for step in steps) for name, steps in measured.items()}
    (ours, theirs) = rates
    share = rates[theirs] / rates[ours]
    verdict = "reached" if share <= AIM else "NOT reached"
    sides = [
        [
            name,
            ", ".join(f"{step.cpu_s:.1f}" for step in steps),
            ", ".join(f"{step.seconds:.1f}" for step in steps),
            f"{sum(steps[0].lengths):,}",
            f"{rates[name]:,.0f}",
            f"{rates[theirs] / rates[name]:.2f}",
        ]
        for name, steps in measured.items()
    ]
    phases = [
        [phase, *(f"{median(step.phases[phase] for step in steps):.2f}" for steps in measured.values())]
        for phase in PHASES
    ]
    settings = [
        [name, f"{step.cpu_s:.1f}", f"{step.seconds:.1f}", f"{sum(step.lengths):,}", f"{step.rate:,.0f}"]
        for name, step in once.items()
    ]
    tails = "; ".join(
        f"{side}: " + ", ".join(f"{np.percentile(steps[0].lengths, q):.0f}" for q in (10, 50, 90, 100))
        for side, steps in zip(("w2sr", "TRL"), measured.values(), strict=True)
    )
    return f"""## {job.name}

{type(policy.lm).__name__}, {num_parameters(policy.lm) / 1e6:.1f}M parameters, vocabulary {policy.vocab_size:,}; {job.num_problems} problems ×
{GROUP_SIZE} rollouts of at most {job.max_new_tokens} tokens. Completion tokens at the 10th, 50th, 90th and 100th percentile: {tails}.
**At most {AIM:g} of TRL's time for a completion token: {verdict} ({share:.2f}).**

{common.table(["side", "CPU s", "wall s", "completion tokens", "tokens / CPU s", "of TRL's time"], sides)}
CPU seconds by phase, the median of the rounds:

{common.table(["phase", *measured], phases)}
Every setting, once each:

{common.table(["setting", "CPU s", "wall s", "completion tokens", "tokens / CPU s"], settings)}"""


def page(sections: list[str], rounds: int) -> str:
    note = f"""{torch.get_num_threads()} threads on both sides, float32, AdamW (fused) on both, {rounds} rounds, the two sides in turns (the median
counts)."""
    body = "\n".join(sections)
    return f"""{common.head("One GRPO step beside TRL", ("torch", "transformers", "lightning", "trl"), note)}
- Both sides run their own trainer for one optimizer step from the same weights and prompts: `GRPOModule` with the embedded
  engine, `GRPOTrainer` with its transformers generation. The loss is `dapo` on both, at temperature 1, without a KL term,
  with SDPA attention; TRL without gradient checkpointing, which it would turn on by default. The clock runs from the begin
  of the step to the end of the update; loading is outside.
- *Lengths*: both sides sample from the same distribution, each with noise of its own. The miniature's student ends its
  chains by itself. The random model's stop token has the odds of {STOP_PROBABILITY:.4g} at every position, which its weights fix; so
  lengths are geometric up to the limit. Because the sums of the lengths differ by chance, what is compared is time for a
  completion token.
- *The reward* is a hash of the text on both sides, so that no group is dead: rollouts of advantage 0, which we leave out of
  training and TRL does not, are no part of the comparison. We verify every rollout besides.
- *CPU seconds* of the process count: other processes shared the machine, which stretches wall time and leaves CPU time
  almost alone. *Train* is forward, loss, backward and update.

{body}
Not run: GPUs; vLLM; several updates a round, and a reference policy. TRL's `use_transformers_continuous_batching` gave no result on this CPU within four minutes.
"""


if __name__ == "__main__":
    main()
