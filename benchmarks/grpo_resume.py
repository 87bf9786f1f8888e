"""Does a GRPO run that was killed go on bit for bit? `kill -9` at random moments, beside the run that nobody killed.

Everything that has a state is on: two mini-batches in two passes, a reference policy, dynamic sampling, a curriculum. All
values of all rounds (rewards, losses, KL, entropy, pass rates; not what a clock says) and the exported weights must be
those of the uninterrupted run.

    OMP_NUM_THREADS=1 python benchmarks/grpo_resume.py --out docs/results/grpo_resume.md
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from common import head, table, write
from resume import MINIATURE, WEIGHTS, run, yes

from w2sr.runs import newest_checkpoint, read_label

CLOCK = ("seconds/", "speed/")


def config(folder: Path, epochs: int) -> Path:
    """Writes the configuration of a run beside its folder."""
    shortness = {"class_path": "w2sr.rewards.Overlong", "init_args": {"max_tokens": 60, "buffer_tokens": 60}}
    made: dict[str, Any] = {
        "model": {
            "class_path": "w2sr.modules.GRPOModule",
            "init_args": {
                "student": str(MINIATURE / "student"),
                "learning_rates": {"grpo": 3e-4},
                "warmup_frac": 0.2,
                "group_size": 4,
                "rewards": {
                    "correct": {"reward": {"class_path": "w2sr.rewards.Correct"}},
                    "short": {"reward": shortness, "weight": 0.1},
                },
                "objective": {"loss": "dapo", "kl": {"coefficient": 0.01, "estimator": "k3"}},
                "dynamic_sampling": {"max_batches": 3},
                "minibatches": 2,
                "passes": 2,
                "sampling": {"max_new_tokens": 60},
            },
        },
        "data": {
            "class_path": "w2sr.datamodules.ProblemDataModule",
            "init_args": {
                "problems": {"miniature-train": {"path": str(MINIATURE / "data" / "train.jsonl.gz"), "limit": 40}},
                "validation": {"miniature": {"path": str(MINIATURE / "data" / "validation.jsonl.gz"), "limit": 20}},
                "step_problems": 8,
                "curriculum": {"low": 0.01, "high": 0.99, "keep_frac": 0.3},
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(folder),
            "max_epochs": epochs,
            "check_val_every_n_epoch": None,
            "val_check_interval": 4,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 8, "save_last": True, "save_top_k": 1},
                },
                {"class_path": "w2sr.callbacks.ExportStudent"},
            ],
        },
    }
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(made))
    return file


def rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCK)} for line in lines]


def kill_after(seconds: float) -> None:
    """`kill -9` of this process after so many seconds, whatever it does then."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, lines = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = folder / "whole"
        file, began = config(whole, args.epochs), time.monotonic()
        assert run(file, []) == 0, file.with_suffix(".log").read_text()[-2000:]
        duration, expected = time.monotonic() - began, rounds(whole)
        assert len({line["train/loss"] for line in expected}) == len(expected) > 15, "guard: rounds differ"
        for number in range(args.kills):
            killed = folder / f"killed-{number}"
            file = config(killed, args.epochs)
            while (code := run(file, [], before=partial(kill_after, rng.uniform(0.2, 0.95) * duration))) == 0:
                killed = folder / f"{killed.name}-again"  # it was faster than the killer
                file = config(killed, args.epochs)
            assert code == -signal.SIGKILL, file.with_suffix(".log").read_text()[-2000:]
            last = newest_checkpoint(killed)
            label = None if last is None else read_label(last)
            num_before = len(rounds(killed)) if (killed / "rounds.jsonl").exists() else 0
            words = ["--ckpt_path", "last"]
            assert run(file, words) == 0, file.with_suffix(".log").read_text()[-2000:]
            equal = rounds(killed) == expected
            same = (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
            at = "none" if label is None else f"{label.step} of {label.num_steps}"
            lines.append([str(number + 1), str(num_before), at, yes(equal), yes(same)])
    note = (
        f"The miniature's student, {len(expected)} rounds of 8 problems with 4 rollouts each, 4 optimizer steps a round, a "
        "checkpoint every second round. Equal means bit for bit.\n"
    )
    bad = sum(cell != "equal" for line in lines for cell in line[3:])
    header = ["kill", "rounds finished", "checkpoint at optimizer step", "all rounds", "weights"]
    page = head("A GRPO run, killed and resumed", ["torch", "lightning"], note)
    write(args.out, f"{page}\n{table(header, lines)}\n{len(lines)} kills, {bad} cells not equal.\n")


if __name__ == "__main__":
    main()
