"""The command line: LightningCLI, and the verbs that are not the Trainer's."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from w2sr import runs, verbs
from w2sr.config_errors import Parser, config_letter
from w2sr.rows import nearest
from w2sr.runs import (
    OUTSIDE,
    RefusedByAll,
    StopOutside,
    Stopped,
    check_checkpoint,
    holds_a_run,
    newest_checkpoint,
    ways_on,
    where_it_stands,
)
from w2sr.slurm import REQUEUE, check_tasks, is_requeued, job_id, let_requeue_through, requeue

TRAINER_VERBS = ("fit", "validate", "test", "predict")

EPILOG = """Verbs beside the Trainer's:
  ask STUDENT "QUESTION"    one answer of a model directory
  audit TRACES              where two verifiers disagree, and which wrong answers may be right
  export CHECKPOINT_OR_RUN_DIR OUT
                            a checkpoint, sharded or not, as a Hugging Face directory
  merge STORE ... --out DIR whether all shards of `predict` are there, and one store of them
  puzzles KIND --out FILE   generated logic puzzles with worked solutions
  report RESULT ...         one table of result files; RGR and PGR where a ceiling is named
  score STORE               structure, difficulty and likelihood of a store's traces, kept beside them
  submit SCRIPT --nodes N --gpus G -- ...
                            a script of slurm/ with the configuration's nodes and devices checked
  traces STORE --out x.html verdicts, lengths and loops of stored traces; a page to browse them
  corrupt STORE OUT         a trace store with systematic errors of a known kind and rate
  decontaminate TRAIN --against FILE ...
                            training problems that are in benchmarks, or like one there
  vote STORE OUT            a new store whose verdicts come from the majority's answer, without references
"""


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration to `config.yaml` in the run directory, `trainer.default_root_dir`.

    That file says that a run has begun. So it is written when all is loaded and about to begin: what is refused before,
    a checkpoint of another student for example, leaves no run behind that would be in the way of the next try.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As the other hooks: whichever comes first."""
        if self.already_saved or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".config-{socket.gethostname()}-{os.getpid()}.yaml"  # shards may write at the same time
        self.parser.save(self.config, str(temporary), skip_none=False, overwrite=True, multifile=False)
        temporary.replace(folder / "config.yaml")
        self.already_saved = True

    on_validation_start = on_test_start = on_predict_start = on_train_start


class W2SRCLI(LightningCLI):
    """LightningCLI with one directory a run: configuration, checkpoints, TensorBoard log and results lie together.

    Args:
        words: the command line without the program, for messages that name the next one.
        held: holds the lock of the run directory until the program ends.
    """

    def __init__(self, *args: Any, words: Sequence[str] = (), held: ExitStack, **kwargs: Any) -> None:
        self.words, self.held = words, held
        super().__init__(*args, **kwargs)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the configuration is what the command line says, and fit opens the checkpoint."""

    def before_instantiate_classes(self) -> None:
        """From here on SLURM may ask for a requeue. Until now the parser would take it for a flaw of a value."""
        let_requeue_through()
        runs.set_run_date(*(self._get(self.config, key) for key in ("model", "trainer", "ckpt_path")))

    def before_fit(self) -> None:
        """Refuses a run directory that another process trains in, or that holds a run, unless this one goes on from its
        checkpoint."""
        wanted, folder = self._get(self.config, "ckpt_path"), Path(self.trainer.default_root_dir)
        if cast(Any, rank_zero_only).rank == 0:
            self.held.enter_context(_locked(folder))
        if not wanted and holds_a_run(folder):
            raise ValueError(f"{where_it_stands(folder)}\n{ways_on(folder, self.words)}")
        if wanted and holds_a_run(folder):
            self._report_changes(folder / "config.yaml")
        if wanted == "last" and (last := newest_checkpoint(folder)) is not None:
            check_checkpoint(last)
            self.config_init["fit"]["ckpt_path"] = str(last)  # config.yaml keeps the word
        elif wanted == "last":
            rank_zero_info(f"There is no checkpoint in {folder / 'checkpoints'} yet: training begins at step 0.")
            self.config_init["fit"]["ckpt_path"] = None

    @rank_zero_only
    def _report_changes(self, file: Path) -> None:
        """Logs the keys of the configuration that differ from those that the run began with."""
        from w2sr.traces.recipe import flat  # here, because it imports pyarrow

        before = flat(yaml.safe_load(file.read_text()) or {})
        now = flat(yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False)))
        names = sorted((before.keys() | now.keys()) - {"ckpt_path"})
        changed = [
            f"{name}: {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)
        ]
        if changed:
            lines = "\n  ".join(changed)
            rank_zero_info(f"The configuration differs from that of {file} (before -> now):\n  {lines}")

    def before_test(self) -> None:
        """Refuses a run directory that holds a run: its results would be overwritten. A requeued job's are its own."""
        folder = Path(self.trainer.default_root_dir)
        if holds_a_run(folder) and not is_requeued():
            raise ValueError(
                f"The run directory {folder} holds a run already. Write elsewhere: "
                f"add --trainer.default_root_dir={folder}-2 (or remove {folder})."
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0})

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that logs into the run directory unless the configuration names another logger.

        It stops on a signal with a checkpoint (`StopOnSignal`), whatever callbacks the configuration names. Under SLURM
        that callback alone hears the signals: Lightning's own requeue saves in the middle of whatever it interrupts.
        From here on SIGTERM ends the program with a message.
        """
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, StopOutside())
        from w2sr.callbacks import StopOnSignal  # here, because it imports the engines

        wanted = self._get(self.config_init, "trainer", default={})
        if wanted.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"trainer.accelerator={wanted['accelerator']} needs a CUDA device; torch {torch.__version__} sees none "
                "on this machine. Leave the GPU overlay out, or put --config configs/trainer/cpu.yaml after it."
            )
        if wanted.get("use_distributed_sampler"):
            raise ValueError(
                "trainer.use_distributed_sampler=true would deal every optimizer step out to the processes a second "
                "time: the loaders give each process its own share already. Remove the key, or set it to false."
            )
        _refuse_automatic_optimization(wanted)
        folder = wanted.get("default_root_dir") or runs.UNNAMED
        if wanted.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(folder, name="", version="")
        if SLURMEnvironment.detect():
            check_tasks(wanted.get("num_nodes", 1), _devices_a_node(wanted))
            plugins = wanted.get("plugins") or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            kwargs["plugins"] = [*plugins, SLURMEnvironment(auto_requeue=False)]
        named = wanted.get("callbacks") or []
        callbacks = [*(named if isinstance(named, list) else [named]), StopOnSignal(self.words)]
        return super().instantiate_trainer(**{**kwargs, "default_root_dir": folder, "callbacks": callbacks})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the run directory for this process. Raises a ValueError where another one holds it.

    A lock goes with its process, also when that is killed.
    """
    from w2sr.traces.locks import acquire, release  # here, because it imports pyarrow

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".fit.lock"
    descriptor = acquire(file, blocking=False, remedy=f"add --trainer.default_root_dir={folder}-2")
    try:
        yield
    finally:
        release(file, descriptor)
        if not any(folder.iterdir()):
            folder.rmdir()  # the run was refused before it began


def _devices_a_node(trainer: Mapping[str, Any]) -> int:
    """How many devices `trainer.devices` names on each node, as Lightning counts them."""
    devices = trainer.get("devices") or "auto"
    if isinstance(devices, list):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return 1 if trainer.get("accelerator") == "cpu" else max(1, torch.cuda.device_count())
    return int(devices)


def _refuse_automatic_optimization(wanted: Any) -> None:
    """Raises a ValueError for keys of the trainer that are keys of our modules: their optimisation is manual."""
    if wanted.get("gradient_clip_val"):
        value = wanted["gradient_clip_val"]
        raise ValueError(
            f"trainer.gradient_clip_val={value}: the modules clip by the norm of the whole optimizer step themselves. "
            f"Remove the key, and set model.init_args.clip_norm={value}."
        )
    if wanted.get("accumulate_grad_batches") not in (None, 1):
        raise ValueError(
            f"trainer.accumulate_grad_batches={wanted['accumulate_grad_batches']}: one batch is one whole optimizer "
            "step (of GRPO, one round) already. Remove the key; the size of a step is "
            "data.init_args.step_sequences (of GRPO, data.init_args.step_problems and model.init_args.group_size)."
        )


def register_strategies() -> None:
    """`trainer.strategy: fsdp2`, so that trainer overlays need no class path."""
    if "fsdp2" not in StrategyRegistry.available_strategies():
        StrategyRegistry.register("fsdp2", _fsdp2, description="FSDP2 over all devices")


def _fsdp2(**settings: Any) -> Any:
    from w2sr.modules.fsdp2 import FSDP2  # here, because it imports the engines

    return FSDP2(**settings)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb, or hands over to LightningCLI.

    What a user can mend ends with one message and exit status 2; W2SR_TRACEBACK=1 shows where it was raised. Ctrl-C
    ends with 130, as shells expect of it, another signal alike. A job that SLURM asks to make room is requeued, and
    ends with 0: it has not failed.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in verbs.VERBS:
        verbs.run(words)
        return
    try:
        _refuse_unknown_verb(words)
        with _as_before(signal.SIGTERM), _requeued_when_asked():
            _main(argv, words)
    except Stopped as stop:
        _end_as_interrupted(str(stop), stop.signum)
    except KeyboardInterrupt:
        _end_as_interrupted("Stopped.")
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # Lightning's answer to Ctrl-C before the first training step, in a test, or while results are written
        _end_as_interrupted(OUTSIDE)
    except BrokenPipeError:
        verbs.end_unread()
    except (ValueError, OSError, MisconfigurationException, RuntimeError) as error:
        lost = _lost_rank(error)
        if os.environ.get("W2SR_TRACEBACK") or (isinstance(error, RuntimeError) and not lost):
            raise
        if isinstance(error, RefusedByAll) and cast(Any, rank_zero_only).rank:
            sys.exit(0)  # the first process says it, and ends with 2
        # what a module's constructor refuses comes wrapped by the parser, as what it finds while parsing does
        wrapped = str(error).startswith("Does not validate")
        # one write, because print's two are mixed with those of another rank
        sys.stderr.write(f"error: {lost or (config_letter(str(error)) if wrapped else error)}\n")
        sys.exit(2)


def _refuse_unknown_verb(words: Sequence[str]) -> None:
    """Raises a ValueError for a first word that is no verb: the parser knows the Trainer's only."""
    known = (*TRAINER_VERBS, *verbs.VERBS)
    if words and not words[0].startswith("-") and words[0] not in known:
        raise ValueError(f"There is no verb {words[0]!r}.{nearest(words[0], known)} Verbs: {', '.join(known)}.")


def _lost_rank(error: Exception) -> str | None:
    """What to say where another process of the run died, or gave no sign for the time of the process group."""
    reason = str(error).splitlines()[0] if str(error) else ""
    died = isinstance(error, torch.distributed.DistBackendError | torch.distributed.DistStoreError) or re.search(
        r"gloo.*(Connection|Timed out)", reason
    )
    if not died:
        return None
    return (
        f"Rank {cast(Any, rank_zero_only).rank} waits for another rank that died or hangs ({reason}). What that one "
        "wrote last says why. Every checkpoint written so far is whole: go on with --ckpt_path last. How long ranks "
        "wait is trainer.strategy.init_args.timeout, 30 minutes by default."
    )


@contextmanager
def _as_before(signum: signal.Signals) -> Iterator[None]:
    """At the end of the block a signal has the handler that it had at the beginning."""
    before = signal.getsignal(signum)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signum, before)


@contextmanager
def _requeued_when_asked() -> Iterator[None]:
    """In a job of SLURM: the signal that asks for it ends the program and requeues the job.

    Outside of training nothing has to be saved first: a trace store is whole at any moment. Where the signal is held
    (`w2sr.__main__`), it goes on waiting until `let_requeue_through`.
    """
    job = job_id()
    if job is None:
        yield
        return
    before = signal.signal(REQUEUE, StopOutside())
    try:
        yield
    except Stopped as stop:
        if stop.signum != REQUEUE:
            raise
        signal.signal(REQUEUE, signal.SIG_IGN)
        if cast(Any, rank_zero_only).rank == 0:
            where = str(stop).partition("\n")[0]
            print(f"{where}\nSLURM is asked to requeue job {job}.", file=sys.stderr, flush=True)  # it ends us then
            requeue(job)
        sys.exit(0)
    finally:
        signal.signal(REQUEUE, before)


def _end_as_interrupted(message: str, signum: signal.Signals = signal.SIGINT) -> NoReturn:
    """Says the message once. Other ranks end with 0: on a failed one, Lightning kills the process that says it."""
    if cast(Any, rank_zero_only).rank:
        sys.exit(0)
    print(message, file=sys.stderr)
    sys.exit(128 + signum)


def _main(argv: Sequence[str] | None, words: Sequence[str]) -> None:
    _quieten()
    register_strategies()
    with ExitStack() as held:
        W2SRCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            parser_class=Parser,
            parser_kwargs={"epilog": EPILOG, "formatter_class": _formatter()},
            args=None if argv is None else list(words),
            words=words,
            held=held,
            trainer_defaults={"use_distributed_sampler": False},
        )


def _quieten() -> None:
    """Leaves out what says nothing about the user's run: advertisements."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(words in record.getMessage() for words in ("Tip:", "Detected KeyboardInterrupt"))
    )
    warnings.filterwarnings("ignore", message=".*treespec.*")
    for message in (
        "does not have many workers",
        "predict returned None",
        "across ranks is zero",
        "dataloader is not resumable",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    if job_id() is None:  # SLURM's programs are installed, but no job is theirs
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # a run that goes on writes its checkpoints where they are
    warnings.filterwarnings("ignore", message=".*checkpoints exists and is not empty.*")
    # one batch is one optimizer step, so the state after it is the one to resume from
    warnings.filterwarnings("ignore", message=".*ModelCheckpoint with manual optimization.*")


def _formatter() -> Any:
    from jsonargparse import DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of the epilog."""

    return Formatter
