"""A signal: the optimizer step in progress is finished, a whole checkpoint written, and the way on said."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from w2sr.modules import GRPOModule
from w2sr.runs import Progress, StopOutside, Stopped, mark_finished, mark_unfinished, ways_on
from w2sr.slurm import REQUEUE
from w2sr.stops import SIGNALS, STOP

STOPPING = b"\nStopping: the state after the last whole optimizer step is saved first."
AGAIN = b" Ctrl-C again ends at once."


class StopOnSignal(L.Callback):
    """Ends `fit` on one of SIGNALS with a checkpoint from which it goes on bit by bit.

    The signal's handler only notes that a stop is asked for. What ends the run is `Stopped`, raised when an optimizer
    step is complete, so that no torn state is saved and no `on_fit_end` (export, table) follows. Two parts of a run are
    left at once, because they change nothing that a checkpoint holds: validation, and the first half of a round of GRPO
    (sampling, verification, rewards). A resumed run begins them again. Several processes leave them together, when the
    slowest has seen the signal; the first process passes it on to those that it started.

    Before and after training, and in the other commands of the Trainer, the run ends at once.
    A second SIGINT has its default effect; the others are sent more than once by those who send them.

    Args:
        words: the command line without the program, for the commands of the message.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words = list(words)
        self._validation_due = False
        self._before: dict[signal.Signals, Any] = {}
        self._outside = StopOutside()
        self._batch = ExitStack()
        self._trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning's own handler of SIGTERM only takes a note, which nothing but its training loop reads, and has
        ranks exchange it wherever they are. Outside of training the command line's takes its place."""
        self._trainer, handler = trainer, signal.getsignal(signal.SIGTERM)
        self._outside = handler if isinstance(handler, StopOutside) else StopOutside()
        self._outside.pass_on = self._pass_on
        connector: Any = trainer._signal_connector
        connector._sigterm_notifier_fn = self._outside

    def _pass_on(self, signum: int) -> None:
        """Sends a signal to the processes that this one started, as those are told it that SLURM started. A terminal
        sends Ctrl-C to all of them itself."""
        launcher: Any = None if self._trainer is None else self._trainer.strategy.launcher
        if signum != signal.SIGINT and hasattr(launcher, "kill"):
            launcher.kill(signum)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            mark_unfinished(Path(trainer.default_root_dir))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on there is a state worth saving.

        A requeue that was asked for before, and whose `Stopped` a library caught, is obeyed after the first step.

        Only the main thread may set handlers. A process that was told to ignore SIGINT (a script's background job)
        goes on ignoring it.
        """
        _count_new_epoch(trainer)
        STOP.asked = None
        if threading.current_thread() is threading.main_thread():
            heard = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
            self._before = {signum: signal.signal(signum, self._note) for signum in heard}
            outside = self._before.get(REQUEUE)
            if self._outside.asked:
                STOP.asked = signal.SIGTERM
            elif isinstance(outside, StopOutside) and outside.asked:
                STOP.asked = REQUEUE

    def _note(self, signum: int, frame: Any) -> None:
        if STOP.asked is not None:
            if signum == STOP.asked == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            return
        self._pass_on(signum)
        # print is not safe in a handler: it may have interrupted a print
        os.write(2, STOPPING + (AGAIN if signum == signal.SIGINT else b"") + b"\n")
        STOP.note(signum)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked, self._validation_due = self._asked_anywhere(trainer), _validation_follows(trainer)
        if asked is not None and not self._validation_due:
            _log_step(trainer)
            raise Stopped(asked)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_due = False
        self._leave_validation(trainer)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # between the batches callbacks may be writing files
        self._leave_validation(trainer)
        self._batch.enter_context(STOP.at_once(trainer.world_size == 1 and not trainer.sanity_checking))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batch.close()
        self._leave_validation(trainer)

    def _leave_validation(self, trainer: L.Trainer) -> None:
        if not trainer.sanity_checking and (asked := self._asked_anywhere(trainer)) is not None:
            raise Stopped(asked)

    def _asked_anywhere(self, trainer: L.Trainer) -> signal.Signals | None:
        """The signal that any process was sent: it reaches them in different steps, and they must stop in one."""
        mine = -1 if STOP.asked is None else SIGNALS.index(STOP.asked)
        told: Any = trainer.strategy.reduce(torch.tensor(mine, device=trainer.strategy.root_device), reduce_op="max")
        return None if told < 0 else SIGNALS[int(told)]

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._batch.close()
        if isinstance(exception, Stopped) and self._before:  # in training: else there is no state worth saving
            if trainer.validating:
                _begin_validation_anew(trainer)
            else:
                _begin_round_anew(trainer)
            file = self._save(trainer)
            exception.args = (
                f"Stopped at optimizer {progress(trainer)}. Checkpoint: {file}\n"
                f"{ways_on(Path(trainer.default_root_dir), self.words)}",
            )
        self._restore_handlers()

    def _save(self, trainer: L.Trainer) -> Path:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        file = folder / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last and _same(callback.dirpath, folder):
                # the file is its own: otherwise it would write last-v1.ckpt beside it when the run goes on
                callback.last_model_path = str(Path(str(callback.dirpath)) / file.name)
        trainer.save_checkpoint(file, weights_only=False)
        return file

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (asked := self._asked_anywhere(trainer)) is not None:  # since the last step, or its validation
            raise Stopped(asked)
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before, STOP.asked = {}, None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["num_steps"] = progress(trainer).num_steps
        if self._validation_due:
            _let_validation_follow(checkpoint["loops"]["fit_loop"])

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the callbacks of the configuration: the run's results are written."""
        mark_finished(Path(trainer.default_root_dir), progress(trainer))


def progress(trainer: L.Trainer) -> Progress:
    """How far `fit` is."""
    total = trainer.estimated_stepping_batches
    num_steps = None if total == float("inf") else int(total)
    if isinstance(trainer.lightning_module, GRPOModule):  # a round is several optimizer steps
        num_steps = trainer.lightning_module.num_steps()
    return Progress(trainer.global_step, num_steps, trainer.current_epoch)


def _count_new_epoch(trainer: L.Trainer) -> None:
    """Lets a run that goes on behind the last step of an epoch count the next epoch as begun.

    Lightning takes it for the middle of that epoch and does not count the next one; a second stop there would then save
    the counts of a run between two epochs, and what goes on from it would train an epoch too many.
    """
    loop = trainer.fit_loop
    counts: Any = loop.epoch_progress.total
    if loop.restarted_mid_epoch and counts.processed == counts.started:
        loop.reset_restart_stage()


def _log_step(trainer: L.Trainer) -> None:
    """Logs the step that just ended, which the Trainer does after this hook: a resumed run begins with the next."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether the step that just ended is one after which the Trainer validates, by its own rule."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None, "a training step has just ended"
    if not loop._should_check_val_fx(fetcher):
        return False
    loop.val_loop.setup_data()
    return not loop.val_loop.skip


def _begin_validation_anew(trainer: L.Trainer) -> None:
    """Puts the validation loop where its first batch was begun and not finished.

    A Trainer that resumes from there validates before it trains on, from the first batch. One that resumes from any
    later place would give the metrics of a part of the problems, one from an earlier place none at all.
    """
    counts: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for count in (counts.total, counts.current):
        count.reset()
        count.ready = count.started = 1


def _begin_round_anew(trainer: L.Trainer) -> None:
    """Takes back that a batch was begun which was not trained on: a Trainer that resumes begins it again."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    if progress.total.processed == progress.total.ready:
        return
    for count in (progress.total, progress.current):
        count.ready = count.started = count.processed
    progress.is_last_batch = False


def _let_validation_follow(saved: dict[str, Any]) -> None:
    """Makes the state of a checkpoint after a step the one of `_begin_validation_anew`.

    A ModelCheckpoint saves between the step and the validation that follows it; Lightning takes it that both are over,
    so what goes on from there, a killed run, would lack that validation.
    """
    for count in ("total", "current"):
        steps = saved["epoch_loop.batch_progress"][count]
        steps["completed"] = steps["processed"]
        saved["epoch_loop.val_loop.batch_progress"][count].update(ready=1, started=1, processed=0, completed=0)


def _same(one: Any, other: Path) -> bool:
    return one is not None and Path(one).resolve() == other.resolve()
