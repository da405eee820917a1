"""Saves a checkpoint and stops after a signal, such as that of a preempted machine."""

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mathcanvas_lightning.training.checkpoint.resume import STOPPED_FILE

log = logging.getLogger(__name__)


class StopOnSignal(Callback):
    """After SIGTERM to any rank, all ranks finish their step, save, and exit with status 0.

    The checkpoint is `stopped.ckpt`, in the folder of the others. The same command, run again,
    resumes from it.

    Ctrl-C interrupts at once. Code that was running may swallow the exception (a bare `except` in
    the standard library does, while a checkpoint is written); then the batch's end raises it again.

    Args:
        signals: Names of the signals that stop the run.
    """

    def __init__(self, signals: tuple[str, ...] = ("SIGTERM",)) -> None:
        self.signals = signals
        self._received = self._interrupted = False
        self._previous: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Replaces Lightning's handlers, which would wait for other ranks forever."""
        self._install_handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Installs the handlers if there was no sanity check."""
        self._install_handlers()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Saves and stops at the end of an optimizer step, if any rank has received a signal.

        Raises:
            KeyboardInterrupt: If other code has swallowed that of a Ctrl-C.
        """
        self._raise_interrupt()
        if trainer.fit_loop._should_accumulate():
            return
        if not trainer.strategy.reduce_boolean_decision(self._received, all=False):
            return
        saver = trainer.checkpoint_callback
        folder = getattr(saver, "dirpath", None) or trainer.default_root_dir
        path = Path(folder, STOPPED_FILE)
        trainer.save_checkpoint(path)
        log.info("stopped by a signal after step %d; saved %s", trainer.global_step, path)
        trainer.limit_val_batches = 0  # validation would take too long
        trainer.should_stop = True

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Stops after a Ctrl-C.

        Raises:
            KeyboardInterrupt: If other code has swallowed that of a Ctrl-C.
        """
        self._raise_interrupt()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Restores the previous handlers."""
        self._restore_handlers()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Restores the previous handlers."""
        self._restore_handlers()

    def _install_handlers(self) -> None:
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self._received = self._interrupted = False
        for name in self.signals:
            number = signal.Signals[name]
            self._previous[number] = signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) in (self._receive, self._interrupt):
                signal.signal(number, handler)  # else Lightning ignores Ctrl-C until it has ended
        self._previous = {}

    def _interrupt(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._interrupted = True
        raise KeyboardInterrupt

    def _raise_interrupt(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._received = True
