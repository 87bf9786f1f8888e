"""Pretrains the miniature's models from scratch: `python -m w2sr.miniature.pretrain student --out runs/pretrain`.

Two models of one world. The *student* is wide and well trained, and plain: after a bare question its documents mostly
state the answer; worked chains stand mostly after an instruction to reason, and there most of them are sketches that
jump over steps. The *teacher* is small and briefly trained, but its documents always reason step by step.

Chains grow from one step to eight over the first half. Only completions carry loss. Validation and test problems are
refused by hash. The run writes a checkpoint every minute and goes on from it when started again.

The shipped teacher is the recipe as it stands. The shipped student was trained to the recipe's 15 million tokens and
then resumed twice, with `--num-tokens 27000000` and `--num-tokens 35000000` (the learning rate rises again each time).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config

from w2sr.miniature.tokenizer import INSTRUCTION, build_tokenizer
from w2sr.miniature.world import MAX_STEPS, Style, WordProblem, answer_text, arithmetic_drill, generate
from w2sr.packing import pack_row
from w2sr.policy import Policy, new_policy
from w2sr.types import IGNORE_INDEX, PackedBatch, Segment


@dataclass(frozen=True)
class Recipe:
    """How one model is made: its shape, its diet and its budget.

    `plain` and `instructed`: probabilities of (chain, sketch, direct) after a bare question and after an instruction to
    reason. `instructed_frac`, `drill_frac`: shares of documents with that instruction, and of bare arithmetic.
    """

    hidden_size: int
    num_layers: int
    num_tokens: int
    learning_rate: float
    plain: tuple[float, float, float]
    instructed: tuple[float, float, float]
    instructed_frac: float
    drill_frac: float
    docs_per_step: int = 40


RECIPES = {
    "student": Recipe(128, 3, 15_000_000, 2.5e-3, (0.02, 0.03, 0.95), (0.44, 0.56, 0.0), 0.8, 0.1),
    "teacher": Recipe(64, 2, 7_000_000, 3e-3, (1.0, 0.0, 0.0), (1.0, 0.0, 0.0), 0.0, 0.0),
}
STYLES: tuple[Style, ...] = ("chain", "sketch", "direct")


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """A Qwen3 of the recipe's width and depth: heads of 32, two query heads for a key head.

    Not a Qwen2: transformers 5 gives every directory of that type Qwen2's own tokenizer and ignores its tokenizer.json.
    """
    heads = recipe.hidden_size // 32
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def training_problem(rng: random.Random, num_steps: int) -> WordProblem:
    """A problem of the training split: others are refused."""
    while True:
        word_problem = generate(rng, num_steps)
        if word_problem.split == "train":
            return word_problem


class Documents:
    """An endless stream of pretraining documents, as tokenised segments."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> None:
        self.recipe, self.tokenizer, self.rng = recipe, tokenizer, rng
        self.equals = tokenizer.convert_tokens_to_ids(" = ")

    def sample(self, num_steps: int) -> Segment:
        """One document about a problem of `num_steps` steps, or a line of bare arithmetic."""
        if self.rng.random() < self.recipe.drill_frac:
            return self._drill()
        problem = training_problem(self.rng, num_steps)
        instructed = self.rng.random() < self.recipe.instructed_frac
        weights = self.recipe.instructed if instructed else self.recipe.plain
        style = self.rng.choices(STYLES, weights)[0]
        question = problem.text() + (INSTRUCTION if instructed else "")
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids, completion_ids = self._encode(prompt), self._encode(answer_text(problem, style, self.rng))
        input_ids = np.array([*prompt_ids, *completion_ids, self.tokenizer.eos_token_id])
        labels = np.append(input_ids[1:], IGNORE_INDEX)
        labels[: len(prompt_ids) - 1] = IGNORE_INDEX
        return Segment("", input_ids, labels)

    def _drill(self) -> Segment:
        """Only results carry loss: operands are random."""
        input_ids = np.array(self._encode(arithmetic_drill(self.rng, 10)))
        labels = np.where(input_ids == self.equals, np.append(input_ids[1:], IGNORE_INDEX), IGNORE_INDEX)
        return Segment("", input_ids, labels)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def batches(documents: Documents, progress: float) -> tuple[PackedBatch, int]:
    """One step's row and its number of loss tokens. Longest chains grow with progress up to one half."""
    longest = max(1, min(MAX_STEPS, math.ceil(2 * progress * MAX_STEPS)))
    rng = documents.rng
    segments = [documents.sample(rng.randint(1, longest)) for _ in range(documents.recipe.docs_per_step)]
    return pack_row(segments), sum(segment.num_loss_tokens for segment in segments)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up over 2 %, then cosine to 5 %."""
    warm = min(1.0, progress / 0.02)
    return recipe.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


@dataclass
class Run:
    """A pretraining run that can be stopped and resumed."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    documents: Documents
    num_tokens: int = 0
    step: int = 0

    def save(self, path: Path) -> None:
        state = {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": list(self.documents.rng.getstate()[1]),
            "num_tokens": self.num_tokens,
            "step": self.step,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def restore(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.documents.rng.setstate((3, tuple(state["rng"]), None))
        self.num_tokens, self.step = state["num_tokens"], state["step"]


def train(run: Run, recipe: Recipe, checkpoint: Path, seconds_between_saves: float = 60.0) -> None:
    """Trains to the recipe's token budget, printing a line every 50 steps."""
    parameters = list(run.policy.parameters())
    saved = began = time.monotonic()
    first = run.num_tokens
    while run.num_tokens < recipe.num_tokens:
        progress = run.num_tokens / recipe.num_tokens
        batch, num_loss_tokens = batches(run.documents, progress)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, progress)
        loss = -run.policy(batch, reduction="sum") / num_loss_tokens
        run.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        run.optimizer.step()
        run.step += 1
        run.num_tokens += batch.input_ids.numel()
        if run.step % 50 == 0:
            rate = (run.num_tokens - first) / (time.monotonic() - began)
            print(f"step {run.step} tokens {run.num_tokens:,} loss {loss.item():.4f} tokens/s {rate:,.0f}", flush=True)
        if time.monotonic() - saved > seconds_between_saves:
            run.save(checkpoint)
            saved = time.monotonic()
    run.save(checkpoint)


def export(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a Hugging Face directory: safetensors, tokenizer, generation config that stops on `<|im_end|>`."""
    policy.lm.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    policy.lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def new_run(recipe: Recipe, seed: int) -> Run:
    """A run at its first step."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    policy = new_policy(model_config(recipe, tokenizer))
    optimizer = torch.optim.AdamW(policy.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    return Run(policy, optimizer, Documents(recipe, tokenizer, random.Random(seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-tokens", type=int, help="instead of the recipe's budget")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = RECIPES[args.model]
    if args.num_tokens is not None:
        recipe = Recipe(**{**vars(recipe), "num_tokens": args.num_tokens})
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / f"{args.model}.pt"
    run = new_run(recipe, args.seed)
    if checkpoint.exists():
        run.restore(checkpoint)
        print(f"going on from {checkpoint} at {run.num_tokens:,} tokens")
    train(run, recipe, checkpoint)
    export(run.policy, run.documents.tokenizer, args.out / args.model)
    print(f"wrote {args.out / args.model}")


if __name__ == "__main__":
    main()
