"""Progress of a fit: a bar on a terminal, lines without one, and lines in the run's log file."""

import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from mathcanvas_lightning.common.display.box import duration
from mathcanvas_lightning.common.logs import FILE_ONLY
from mathcanvas_lightning.common.progress import Advance, progress_bar
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.training.optim import count_steps

log = logging.getLogger(__name__)

SHOWN: Mapping[str, str] = {
    "train/ce": "ce {:.4g}",
    "train/mse": "mse {:.4g}",
    "lr": "lr {:.2e}",
    "speed/tokens_per_s": "{:,.0f} tokens/s",
    "memory/peak_gib": "{:.2f} GiB",
}
"""Metric -> how a line shows it."""


class ProgressLines(Callback):
    """Shows the progress of a run, on rank zero.

    On a terminal it is a bar, unless the Trainer has one. Without a terminal it is a line of text,
    because a bar would fill a log file with its updates. The lines are due at the Trainer's
    `log_every_n_steps`, and also `every_s` seconds after the last one. The log file of the run has
    them in both cases.

    Args:
        every_s: Seconds after which a line is due.
    """

    def __init__(self, every_s: float = 30.0) -> None:
        if every_s <= 0:
            raise ConfigError(
                "ProgressLines",
                found=f"every_s {every_s}",
                wanted="seconds, above 0",
                remedy="Set progress: null to write no lines.",
            )
        self.every_s = every_s
        self._started: tuple[float, int] | None = None
        self._written: tuple[float, int] = (0.0, 0)
        self._bar = contextlib.ExitStack()
        self._advance: Advance | None = None

    @property
    def is_needed(self) -> bool:
        """Whether there is no terminal for a progress bar."""
        return not sys.stderr.isatty()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock, and shows the bar."""
        self._started = self._written = (time.monotonic(), trainer.global_step)
        if trainer.is_global_zero and not self.is_needed and not trainer.progress_bar_callback:
            self._advance = self._bar.enter_context(progress_bar("Training", count_steps(trainer)))
            self._advance(trainer.global_step, "")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Writes a line if it is due."""
        step, (written_at, written_step) = trainer.global_step, self._written
        if self._started is None or step == written_step:
            return
        every = vars(trainer)["log_every_n_steps"]
        now = time.monotonic()
        if (not every or step % every) and now - written_at < self.every_s:
            return
        self._written = (now, step)
        started, first_step = self._started
        if self._advance is not None:
            self._advance(step - written_step, "  ".join(shown_metrics(trainer)))
        self._say(trainer, progress_line(trainer, now - started, step - first_step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Writes the results of a validation during a fit."""
        metrics = trainer.callback_metrics
        results = [
            f"{n} {float(v):.4g}" for n, v in sorted(metrics.items()) if n.startswith("val/")
        ]
        if self._started is not None and results and not trainer.sanity_checking:
            self._say(trainer, f"validation at step {trainer.global_step:,}  {'  '.join(results)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Closes the bar."""
        self._bar.close()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Closes the bar."""
        self._bar.close()

    def _say(self, trainer: Trainer, line: str) -> None:
        if self.is_needed:
            rank_zero_info(line)
        elif trainer.is_global_zero:
            log.info(line, extra=FILE_ONLY)


def progress_line(trainer: Trainer, seconds: float, steps: int) -> str:
    """Describes the progress of a run.

    Args:
        trainer: The Trainer.
        seconds: Time since the start.
        steps: Optimizer steps since the start.

    Returns:
        A line such as "step 40 of 120  ce 2.55  mse 1.01  lr 1.70e-03  5,610 tokens/s  0.68 GiB
        1.16 s a step  0:24 left".
    """
    total = count_steps(trainer)
    parts = [f"step {trainer.global_step:,}" + (f" of {total:,}" if total else "")]
    parts += shown_metrics(trainer)
    if steps:
        parts.append(f"{seconds / steps:.3g} s a step")
        if total:
            left = (total - trainer.global_step) * seconds / steps
            parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def shown_metrics(trainer: Trainer) -> list[str]:
    """Losses, rate, speed and memory of the last step that has them."""
    metrics = trainer.callback_metrics
    return [text.format(float(metrics[name])) for name, text in SHOWN.items() if name in metrics]
