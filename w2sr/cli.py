"""The command line: LightningCLI, and the verbs that are not the Trainer's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry

EPILOG = """Verbs beside the Trainer's:
  ask STUDENT "QUESTION"    one answer of a model directory
"""


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration to `config.yaml` in the run directory, `trainer.default_root_dir`.

    Raises ValueError where that directory holds a run already and this one does not go on from its checkpoint.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        file = folder / "config.yaml"
        if file.exists() and not self.config.get("ckpt_path"):
            raise ValueError(
                f"The run directory {folder} holds a run already ({file.name}). Go on with it: add --ckpt_path last. "
                f"Or start anew elsewhere: add --trainer.default_root_dir={folder}-2 (or remove {folder})."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(file), skip_none=False, overwrite=True, multifile=False)
        self.already_saved = True


class W2SRCLI(LightningCLI):
    """LightningCLI with one directory a run: configuration, checkpoints, TensorBoard log and results lie together."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Parsers whose usage is one line: the full list of keys is what --help is for."""
        parser = super().init_parser(**kwargs)
        parser.usage = "%(prog)s [--config FILE ...] [--KEY VALUE ...]   (all keys: --help; the whole: --print_config)"
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0})

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that logs into the run directory unless the configuration names another logger."""
        wanted = self._get(self.config_init, "trainer", default={})
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
    from w2sr.policy import load_policy
    from w2sr.rollouts import EmbeddedGenerator
    from w2sr.types import SampleRequest, Sampling

    chat = Chat.load(args.student, template=args.template, instruction=args.instruction)
    policy = load_policy(args.student)
    chat.check_vocabulary(policy.vocab_size)
    sampling = Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed)
    generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode)
    request = SampleRequest("ask", 0, tuple(chat.prompt_ids(args.question)))
    (completion,) = generator.stream([request], sampling)
    print(completion.text)
    if completion.finish_reason == "length":
        print(f"[cut off at --max_new_tokens {args.max_new_tokens}]", file=sys.stderr)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {"ask": ask}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb, or hands over to LightningCLI. User errors end with one line and exit status 2."""
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
        save_config_kwargs={"save_to_log_dir": True},
        parser_kwargs={"epilog": EPILOG, "formatter_class": _formatter()},
        args=None if argv is None else words,
    )


def _formatter() -> Any:
    from jsonargparse import DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of the epilog."""

    return Formatter
