"""The command line: LightningCLI, and the verbs that are not the Trainer's."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from w2sr.config_errors import Parser

EPILOG = """Verbs beside the Trainer's:
  ask STUDENT "QUESTION"    one answer of a model directory
  report RESULT ...         one table of result files; RGR and PGR where a ceiling is named
"""


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration to `config.yaml` in the run directory, `trainer.default_root_dir`."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)
        self.already_saved = True


class W2SRCLI(LightningCLI):
    """LightningCLI with one directory a run: configuration, checkpoints, TensorBoard log and results lie together."""

    def _parse_ckpt_path(self) -> None:
        """Nothing: the configuration is what the command line says, and fit opens the checkpoint."""

    def before_fit(self) -> None:
        """Refuses a run directory that holds a run, unless this one goes on from its checkpoint."""
        self._refuse_a_used_directory("fit", "Go on with it: add --ckpt_path last. Or start anew")

    def before_test(self) -> None:
        """Refuses a run directory that holds a run: its results would be overwritten."""
        self._refuse_a_used_directory("test", "Write")

    def _refuse_a_used_directory(self, verb: str, way_out: str) -> None:
        folder = Path(self.trainer.default_root_dir)
        goes_on = verb == "fit" and self._get(self.config, "ckpt_path")
        if (folder / "config.yaml").exists() and not goes_on:
            raise ValueError(
                f"The run directory {folder} holds a run already. {way_out} elsewhere: "
                f"add --trainer.default_root_dir={folder}-2 (or remove {folder})."
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0})

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that logs into the run directory unless the configuration names another logger."""
        wanted = self._get(self.config_init, "trainer", default={})
        if wanted.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"trainer.accelerator={wanted['accelerator']} needs a CUDA device; torch {torch.__version__} sees none "
                "on this machine. Leave the GPU overlay out, or put --config configs/trainer/cpu.yaml after it."
            )
        folder = wanted.get("default_root_dir") or "runs/unnamed"
        if wanted.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(folder, name="", version="")
        return super().instantiate_trainer(**{"default_root_dir": folder, **kwargs})


def register_strategies() -> None:
    """`trainer.strategy: fsdp2`, so that trainer overlays need no class path."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    if "fsdp2" not in StrategyRegistry.available_strategies():
        StrategyRegistry.register("fsdp2", ModelParallelStrategy, description="FSDP2 over all devices")


def ask(argv: Sequence[str]) -> None:
    """`ask STUDENT "QUESTION"`: prints one completion as the model writes it."""
    parser = argparse.ArgumentParser(prog="ask", description="One answer of a model directory or hub name.")
    parser.add_argument("student")
    parser.add_argument("question")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", default="auto")
    parser.add_argument("--instruction", help="text appended to the question, such as a chain-of-thought prompt")
    args = parser.parse_args(argv)

    from w2sr.chat import Chat
    from w2sr.locations import locate_model
    from w2sr.policy import load_policy
    from w2sr.rollouts import EmbeddedGenerator
    from w2sr.types import SampleRequest, Sampling

    student = locate_model(args.student)
    chat = Chat.load(student, template=args.template, instruction=args.instruction)
    policy = load_policy(student)
    chat.check_vocabulary(policy.vocab_size)
    sampling = Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed)
    generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode)
    request = SampleRequest("ask", 0, tuple(chat.prompt_ids(args.question)))
    (completion,) = generator.stream([request], sampling)
    print(completion.text)
    if completion.finish_reason == "length":
        print(f"[cut off at --max_new_tokens {args.max_new_tokens}]", file=sys.stderr)


def report(argv: Sequence[str]) -> None:
    """`report RESULT ...`: one table of result files, with RGR and PGR where a ceiling is named."""
    parser = argparse.ArgumentParser(prog="report", description="One table of result.json files.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="result.json, or a folder of them")
    parser.add_argument("--plain", help="arm of the plain student: the floor of RGR")
    parser.add_argument("--teacher", help="arm of the weak teacher: the floor of PGR")
    parser.add_argument("--ceiling", help="arm of the reinforcement-learned student")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)

    from w2sr.report import to_markdown, to_text
    from w2sr.results import read_result

    files = [file for path in args.results for file in (sorted(path.rglob("result.json")) if path.is_dir() else [path])]
    if not files:
        raise ValueError(
            f"There is no result.json under {', '.join(map(str, args.results))}. Run `test` or `fit` first."
        )
    render = to_markdown if args.markdown else to_text
    results = [read_result(file) for file in files]
    print(render(results, plain=args.plain, teacher=args.teacher, ceiling=args.ceiling), end="")


VERBS: dict[str, Callable[[Sequence[str]], None]] = {"ask": ask, "report": report}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb, or hands over to LightningCLI.

    What a user can mend ends with one message and exit status 2; W2SR_TRACEBACK=1 shows where it was raised.
    """
    try:
        _main(argv)
    except (ValueError, OSError, MisconfigurationException) as error:
        if os.environ.get("W2SR_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _main(argv: Sequence[str] | None) -> None:
    _quieten()
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in VERBS:
        VERBS[words[0]](words[1:])
        return
    register_strategies()
    W2SRCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=RunConfig,
        parser_class=Parser,
        parser_kwargs={"epilog": EPILOG, "formatter_class": _formatter()},
        args=None if argv is None else words,
    )


def _quieten() -> None:
    """Leaves out what says nothing about the user's run: advertisements, and bars of loads that take milliseconds."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=".*treespec.*")
    for message in ("does not have many workers", "across ranks is zero", "dataloader is not resumable"):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    # one batch is one optimizer step, so the state after it is the one to resume from
    warnings.filterwarnings("ignore", message=".*ModelCheckpoint with manual optimization.*")


def _formatter() -> Any:
    from jsonargparse import DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of the epilog."""

    return Formatter
