"""Golden curves of the real modules: `python tests/golden/regenerate.py` writes them anew, and nothing else does.

Run it only where a change of the numbers is meant, and say in the commit what changed them. Each curve is a text file
with a line for each optimizer step or round, every value in full precision.

The numbers depend on no random generator of torch and on no hash: weights come from NumPy, every step has all traces,
every round has all problems, and the completions of a round are written below.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "numerics"), str(HERE.parent.parent)]

from steps_by_hand import trainer  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from w2sr.chat import Chat  # noqa: E402
from w2sr.datamodules import ProblemDataModule, TraceDataModule  # noqa: E402
from w2sr.losses import KL, Objective  # noqa: E402
from w2sr.miniature.tokenizer import build_tokenizer  # noqa: E402
from w2sr.modules import GRPOModule, SFTModule  # noqa: E402
from w2sr.packing import pack_row  # noqa: E402
from w2sr.policy import Policy  # noqa: E402
from w2sr.rewards import RewardTerm  # noqa: E402
from w2sr.rollouts import RolloutEngine  # noqa: E402
from w2sr.traces import write_store  # noqa: E402
from w2sr.types import (  # noqa: E402
    IGNORE_INDEX,
    Completion,
    DataFile,
    Rollout,
    SampleRequest,
    Sampling,
    Segment,
    Trace,
)

TEXTS = {
    "How many pens does Lee have?": "Lee has 12. So Lee has \\boxed{12}.",
    "Today Mia has 23 eggs. Tom has 4 more than Mia. How many eggs does Tom have?": (
        "Mia has 23. Tom has 23 + 4 = 27. So Tom has \\boxed{27}."
    ),
    "Today Zoe has 8 coins. Amy has half as many as Zoe. How many coins does Amy have?": (
        "Zoe has 8. Amy has 8 / 2 = 4. So Amy has \\boxed{4}."
    ),
    "Today Ben has 6 pens. How many pens does Ben have?": "Ben has 6. So \\boxed{6}.",
}
SHORTER = ("", "Lee has 12.", "So", "So \\boxed{27}. So \\boxed{4}.")
"""What the four rollouts of a group say."""
SFT_VALUES = ("train/loss", "train/grad_norm", "train/learning_rate", "train/loss_tokens", "train/fill")
GRPO_VALUES = (
    "train/loss", "train/grad_norm", "train/loss_tokens", "reward/mean", "advantage/std", "policy/ratio",
    "policy/clipped_low", "policy/clipped_high", "policy/kl", "policy/old_kl", "policy/entropy",
)  # fmt: skip

Curve = list[dict[str, float]]


def student(folder: Path) -> str:
    """A model of two layers whose weights are NumPy's."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    lm, rng = Qwen3ForCausalLM(config), np.random.default_rng(17)
    with torch.no_grad():
        for _, parameter in sorted(lm.named_parameters()):
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(parameter.shape))))
            else:
                parameter.fill_(1.0)
    lm.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    return str(folder / "student")


def sft_curve(folder: Path) -> Curve:
    """Six epochs of one step, AdamW, the gradient clipped in some steps, two rows a step."""
    traces = [
        Trace(f"p{number}", "toy", problem, "1", "weak", text, answer="1", verdict="correct", finish_reason="stop")
        for number, (problem, text) in enumerate(TEXTS.items())
    ]
    write_store(folder / "traces", traces)
    module = SFTModule(
        student(folder),
        optimizer=lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
        learning_rates={"sft": 0.01},
        warmup_frac=0.3,
        min_lr_frac=0.1,
        clip_norm=2.2,
    )
    data = TraceDataModule(
        [DataFile(str(folder / "traces"))], cache_dir=str(folder / "tokens"), max_tokens=100, step_sequences=4
    )
    return _watched(module, data, folder, SFT_VALUES, max_epochs=6)


def grpo_curve(folder: Path) -> Curve:
    """Five rounds of two passes over the same rollouts, with clips, a penalty and a bonus."""
    rows = [
        {"problem_id": f"q{number}", "problem": problem, "reference_answer": "1"}
        for number, problem in enumerate(list(TEXTS)[:3])
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = GRPOModule(
        student(folder),
        optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9),
        learning_rates={"grpo": 0.03},
        clip_norm=0.8,
        engine=Scripted(),
        rollouts=Sampling(0.7, max_new_tokens=12),
        group_size=len(SHORTER),
        rewards={"short": RewardTerm(shortness)},
        objective=Objective("grpo", 0.1, 0.15, kl=KL(0.1), entropy=0.01),
        passes=2,
        max_tokens=70,
    )
    data = ProblemDataModule(problems={"quiz": DataFile(str(folder / "problems.jsonl"))}, step_problems=3)
    return _watched(module, data, folder, GRPO_VALUES, max_epochs=5)


def shortness(rollout: Rollout) -> float:
    """Of the last problem all rollouts earn the same."""
    return 0.0 if rollout.problem.problem_id == "q2" else -len(rollout.completion.token_ids) / 10


class Scripted(RolloutEngine):
    """An engine that says `SHORTER`, with the log-probabilities that the policy gives it."""

    open = None  # type: ignore[assignment]

    @contextmanager
    def follow(self, policy: Policy, chat: Chat, device: torch.device) -> Iterator[Any]:
        yield Said(policy, chat)


class Said:
    """The generator of `Scripted`."""

    def __init__(self, policy: Policy, chat: Chat) -> None:
        self.policy, self.chat, self.policy_version = policy, chat, -1

    def update(self, version: int) -> None:
        self.policy_version = version

    def rest(self) -> None:
        pass

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            text = SHORTER[request.sample_index]
            spoken = self.chat.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
            prompt_ids, token_ids = list(request.prompt_ids), [*spoken, self.chat.stop_token_ids[0]]
            none = [IGNORE_INDEX] * (len(prompt_ids) - 1)
            segment = Segment("x", np.array(prompt_ids + token_ids), np.array([*none, *token_ids, IGNORE_INDEX]))
            with torch.no_grad():
                logprobs = self.policy(pack_row([segment]), sampling.temperature)[len(none) : -1]
            yield Completion(
                request.problem_id, request.sample_index, tuple(token_ids), text, "stop",
                logprobs=tuple(logprobs.tolist()), policy_version=self.policy_version,
            )  # fmt: skip


def _watched(module: Any, data: Any, folder: Path, names: Sequence[str], max_epochs: int) -> Curve:
    import lightning as L

    curve: Curve = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            curve.append({name: float(trainer.callback_metrics[name]) for name in names})

    trainer(folder, max_epochs=max_epochs, callbacks=[Watch()]).fit(module, datamodule=data)
    return curve


CURVES = {"sft": sft_curve, "grpo": grpo_curve}


def main() -> None:
    for name, make in CURVES.items():
        with tempfile.TemporaryDirectory() as folder:
            lines = [json.dumps(values) for values in make(Path(folder))]
        (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
