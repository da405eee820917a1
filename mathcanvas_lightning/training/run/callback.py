"""Keeps the files of a run up to date while it trains."""

import logging
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.training.run.folder import RunFolder
from mathcanvas_lightning.training.run.logger import RunLogger
from mathcanvas_lightning.training.run.page import write_run_page

log = logging.getLogger(__name__)

MAX_SHARE = 0.05
"""Maximum share of the time that drawing may take."""


class RunFiles(Callback):
    """Writes curves and page of a run at each validation and at the end, on rank zero.

    A validation writes none if they would take more than 5 % of the time. The run continues if
    they can't be written.
    """

    def __init__(self) -> None:
        self._finished = self._seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Removes the metrics of steps that are done again."""
        self._finished = self._seconds = 0.0
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.resume_at(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Writes curves and page after a validation, if they are due."""
        is_due = MAX_SHARE * (time.monotonic() - self._finished) >= self._seconds
        if not trainer.sanity_checking and is_due:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Writes curves and page of the whole run."""
        self._write(trainer)

    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Writes curves and page of what was trained."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        has_metrics = any(isinstance(logger, RunLogger) for logger in trainer.loggers)
        run = RunFolder(Path(trainer.default_root_dir))
        if not trainer.is_global_zero or not has_metrics or not run.metrics.is_file():
            return
        started = time.monotonic()
        try:
            write_run_page(run)
        except (ConfigError, InputError, OSError, ValueError) as error:
            log.warning("No curves: %s", error)
            self._seconds = float("inf")  # once is enough
        else:
            self._finished = time.monotonic()
            self._seconds = self._finished - started
