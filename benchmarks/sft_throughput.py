"""Training throughput: the same model, traces, tokens and precision through us and through TRL's SFTTrainer.

    OMP_NUM_THREADS=2 python benchmarks/sft_throughput.py --data ../shared/data --out docs/results/sft_throughput.md

Both run their real trainer over one epoch of the same tokenised traces on the CPU in float32. TRL is tried in every
setting of `PEER_SETTINGS` once; then its best one and ours alternate.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import datasets
import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from transformers import AutoModelForCausalLM, Qwen3Config, TrainerCallback
from transformers.utils import logging as transformers_logging

from w2sr.chat import Chat
from w2sr.datamodules.steps import StepDataset, StepLoader
from w2sr.flops import matmul_peak, num_parameters, training_flops
from w2sr.modules import SFTModule
from w2sr.policy import new_policy
from w2sr.templates import Template
from w2sr.traces import read_traces
from w2sr.types import Segment, Trace

AIM = 2.0
LEARNING_RATE = 1e-6
MINIATURE = Path(__file__).resolve().parent.parent / "w2sr" / "miniature"


class Job(NamedTuple):
    """What both sides train: a directory with model and tokenizer, tokenised traces, and how many make a step."""

    name: str
    folder: Path
    template: Template
    segments: list[Segment]
    step_sequences: int
    max_tokens: int

    @property
    def loss_tokens(self) -> int:
        return sum(segment.num_loss_tokens for segment in self.segments)


class Setting(NamedTuple):
    """A setting of the peer. `batch_size` counts traces, or packed rows of `row_tokens`."""

    name: str
    batch_size: int
    grouped: bool = False
    row_tokens: int = 0


class Run(NamedTuple):
    """One epoch: wall and CPU seconds between the trainer's begin and end, and the mean loss."""

    seconds: float
    cpu_s: float
    loss: float


def peer_settings(job: Job) -> list[Setting]:
    """Padded, grouped by length, and packed, each at several batch sizes; a step is the same everywhere."""
    sizes = [size for size in (1, 4, 16) if size <= job.step_sequences]
    settings = [Setting(f"padded, batch {size}", size) for size in sizes]
    settings += [Setting(f"length-grouped, batch {size}", size, grouped=True) for size in sizes[1:]]
    rows = sorted({job.max_tokens // 4, job.max_tokens // 2, job.max_tokens})
    return settings + [Setting(f"packed (bfd), rows of {row:,}", 1, row_tokens=row) for row in rows]


class Clock:
    """Wall and CPU time between two calls."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        self.wall, self.cpu = -time.perf_counter(), -time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


class PeerClock(TrainerCallback):
    """Starts when TRL's trainer begins its loop and stops when that ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.clock.stop()


class OurClock(Callback):
    """The same for Lightning's, and the losses of the steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.losses: list[float] = []

    def on_train_start(self, *_: Any) -> None:
        self.clock.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, *_: Any) -> None:
        self.clock.stop()


def run_ours(job: Job) -> Run:
    """One epoch with SFTModule, StepDataset and Lightning's Trainer."""
    L.seed_everything(0, verbose=False)
    module = SFTModule(
        student=str(job.folder),
        template=job.template,
        optimizer=partial(torch.optim.AdamW, fused=True),
        learning_rates={"sft": LEARNING_RATE},
    )
    dataset = StepDataset(
        job.segments,
        seed=0,
        max_tokens=job.max_tokens,
        step_sequences=job.step_sequences,
        step_tokens=None,
        window=1,
        rank=0,
        world_size=1,
    )
    clock = Clock()
    watch = OurClock(clock)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=StepLoader(dataset, trainer, 0))
    return Run(clock.wall, clock.cpu, float(np.mean(watch.losses)))


def run_peer(job: Job, setting: Setting) -> Run:
    """One epoch with TRL's SFTTrainer: no checkpointing of activations, no saving, no reports."""
    from trl import SFTConfig, SFTTrainer  # here, because our side is measured without it too

    L.seed_everything(0, verbose=False)
    clock = Clock()
    # one row of T tokens holds about T / mean length traces
    per_row = setting.row_tokens * len(job.segments) / sum(map(len, job.segments)) if setting.row_tokens else 1
    accumulate = max(1, round(job.step_sequences / (setting.batch_size * per_row)))
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=setting.batch_size,
            gradient_accumulation_steps=accumulate,
            train_sampling_strategy="group_by_length" if setting.grouped else "random",
            packing=bool(setting.row_tokens),
            max_length=setting.row_tokens or None,
            gradient_checkpointing=False,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, attn_implementation="sdpa"),
            args=config,
            train_dataset=peer_dataset(job.segments),
            processing_class=Chat.load(job.folder, template=job.template).tokenizer,
            callbacks=[PeerClock(clock)],
        )
        loss = trainer.train().training_loss
    return Run(clock.wall, clock.cpu, loss)


def peer_dataset(segments: Sequence[Segment]) -> datasets.Dataset:
    """The same tokens; the peer's labels stand at the token itself, ours at the one before."""
    return datasets.Dataset.from_dict(
        {
            "input_ids": [segment.input_ids.tolist() for segment in segments],
            "labels": [[-100, *segment.labels[:-1].tolist()] for segment in segments],
        }
    )


def miniature_job(num_traces: int) -> Job:
    """The miniature's student and its traces."""
    traces, _ = read_traces(MINIATURE / "traces", None)
    segments = Chat.load(MINIATURE / "student").segments(traces[:num_traces])
    return Job("miniature", MINIATURE / "student", "auto", segments, 64, 4096)


def gsm8k_job(data: Path, folder: Path, num_traces: int) -> Job:
    """A random Qwen3 with the 49k vocabulary of SmolLM2 and right GSM8K traces of seven models."""
    chat = Chat.load(data / "tokenizers" / "smollm2-135m-instruct", template="qwen-base")
    columns = {"problem": "problem", "completion": "response", "reference_answer": "gold", "teacher": "model"}
    rows = list(common.rows(data / "traces" / "zeroeval_gsm8k_weak_to_strong.jsonl.gz"))
    right = [number for number, row in enumerate(rows) if row["exact_match"]]
    chosen = right[:: max(1, len(right) // num_traces)][:num_traces]
    traces = [
        Trace(
            problem_id=str(number), source="gsm8k", **{ours: rows[number][theirs] for ours, theirs in columns.items()}
        )
        for number in chosen
    ]
    torch.manual_seed(0)
    policy = new_policy(
        Qwen3Config(
            vocab_size=len(chat.tokenizer),
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=8,
            num_attention_heads=6,
            head_dim=64,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )
    policy.save(folder, chat)
    return Job("GSM8K", folder, "qwen-base", chat.segments(traces), 16, 2048)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours and of the peer's best, alternating")
    parser.add_argument("--miniature-traces", type=int, default=512)
    parser.add_argument("--gsm8k-traces", type=int, default=32)
    args = parser.parse_args()
    quiet()
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        for job in (
            miniature_job(args.miniature_traces),
            gsm8k_job(args.data, Path(folder), args.gsm8k_traces),
        ):
            sections.append(section(job, args.rounds))
            print(sections[-1], flush=True)
    common.write(args.out, page(sections, args.rounds))


def quiet() -> None:
    """Silences the trainers' chatter on standard error."""
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def section(job: Job, rounds: int) -> str:
    """Measures one job: every setting of the peer once, then its best one and ours in turns."""
    small = job._replace(segments=job.segments[:2])
    run_ours(small)
    run_peer(small, Setting("warm-up", 1))
    tried = {}
    for setting in peer_settings(job):
        tried[setting] = run = run_peer(job, setting)
        print(
            f"{job.name}: TRL {setting.name}: {run.seconds:.1f} s, CPU {run.cpu_s:.1f} s, loss {run.loss:.4f}",
            flush=True,
        )
    best = min(tried, key=lambda setting: tried[setting].cpu_s)
    ours, peer, peaks = [], [tried[best]], []
    for _ in range(rounds):
        peaks.append(matmul_peak(torch.device("cpu"), torch.float32, clock=time.process_time))
        ours.append(run_ours(job))
        peer.append(run_peer(job, best))
    return section_text(job, tried, best, ours, peer[1:], median(peaks))


def section_text(
    job: Job, tried: dict[Setting, Run], best: Setting, ours: list[Run], peer: list[Run], peak: float
) -> str:
    """One part of the page: the model, the two sides, and every setting of the peer."""
    lm = SFTModule(student=str(job.folder), template=job.template)
    lm.configure_model()
    assert lm.policy is not None
    flops = training_flops(lm.policy.lm, map(len, job.segments), job.loss_tokens)
    sides = {"w2sr": ours, f"TRL, {best.name}": peer}
    rates = {name: job.loss_tokens / median(run.cpu_s for run in runs) for name, runs in sides.items()}
    theirs = rates[f"TRL, {best.name}"]
    lines = [
        [
            name,
            ", ".join(f"{run.cpu_s:.1f}" for run in runs),
            ", ".join(f"{run.seconds:.1f}" for run in runs),
            f"{rates[name]:,.0f}",
            f"{rates[name] / theirs:.2f}×",
            f"{100 * flops / median(run.cpu_s for run in runs) / peak:.0f} %",
            f"{runs[0].loss:.4f}",
        ]
        for name, runs in sides.items()
    ]
    settings = [
        [
            setting.name,
            f"{run.cpu_s:.1f}",
            f"{run.seconds:.1f}",
            f"{job.loss_tokens / run.cpu_s:,.0f}",
            f"{run.loss:.4f}",
        ]
        for setting, run in tried.items()
    ]
    verdict = "reached" if rates["w2sr"] >= AIM * theirs else "NOT reached"
    config = lm.policy.lm.config
    return f"""## {job.name}

{type(lm.policy.lm).__name__}, {num_parameters(lm.policy.lm) / 1e6:.1f}M parameters, vocabulary {config.vocab_size:,};
{len(job.segments):,} traces, {sum(map(len, job.segments)):,} tokens, {job.loss_tokens:,} completion tokens;
{job.step_sequences} traces an optimizer step; our rows hold {job.max_tokens:,} tokens. Matmul rate measured in the same run:
{peak / 1e9:.0f} GFLOP/s. **At least {AIM:g}×: {verdict} ({rates["w2sr"] / theirs:.2f}×).**

{common.table(["side", "CPU s", "wall s", "completion tokens / CPU s", "ratio", "of matmul rate", "mean loss"], lines)}
TRL in every setting, once each:

{common.table(["setting", "CPU s", "wall s", "completion tokens / CPU s", "mean loss"], settings)}"""


def page(sections: list[str], rounds: int) -> str:
    note = f"""{torch.get_num_threads()} threads on both sides, float32, AdamW (fused) on both, {rounds} rounds, the two sides in turns."""
    body = "\n".join(sections)
    return f"""{common.head("SFT throughput beside TRL", ("torch", "transformers", "lightning", "trl"), note)}
- Both sides run their own trainer on the same weights and the same token ids for one epoch; the clock runs from the first
  step to the end of the last. Tokenising, packing by TRL and loading are outside. TRL runs without gradient checkpointing,
  which it would turn on by default, and with SDPA attention.
- *Ratios are of CPU seconds* of the training process: other processes shared the machine, which stretches wall time and
  leaves CPU time almost alone. Wall seconds stand beside them.
- *Of matmul rate*: the model's operations (`w2sr.flops.training_flops`: loss tokens only at the head, nothing
  recomputed) a CPU second over the rate of a 1024³ product in the same run.
- The mean losses of the sides agree to the extent that their steps hold the same traces: order and step sizes differ
  (packed rows of TRL are counted in rows, not in traces).

{body}
Not run: GPUs, bfloat16, models above 60M parameters, TRL with Liger kernels (they need a GPU) or through torch.compile.
"""


if __name__ == "__main__":
    main()
