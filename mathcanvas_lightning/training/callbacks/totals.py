"""A box with the figures of a whole run at its end, and progress lines without a terminal."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.common.box import duration, print_box
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.training.callbacks.monitor import (
    Counts,
    capacity,
    device_peak_flops,
    peak_memory_gib,
    summed,
)
from mathcanvas_lightning.training.optim import count_steps


@dataclass(slots=True, kw_only=True)
class RunTotals:
    """Figures of a whole run."""

    steps: int
    """Optimizer steps of this start of the run."""
    seconds: float
    """Time from the first batch to the end."""
    counts: Counts
    """Data and computation, over all ranks."""
    validation_s: float
    """Seconds of validation."""
    data_wait_s: float | None
    """Seconds that rank zero waited for data; None if it is not measured."""
    fill: float | None
    """Fraction of the packs' capacity that was used."""
    peak_flops: float | None
    """Peak operations per second of all devices together; None if it is not known."""
    peak_gib: float
    """Peak memory of rank zero."""

    @property
    def training_s(self) -> float:
        """Seconds outside of validation."""
        return max(self.seconds - self.validation_s, 1e-9)

    @property
    def mfu(self) -> float | None:
        """Fraction of the devices' peak, outside of validation; None if the peak is not known."""
        return self.counts.flops / self.training_s / self.peak_flops if self.peak_flops else None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values to show."""
        waits = f"validation {duration(self.validation_s)}"
        if self.data_wait_s is not None:
            waits = f"data {duration(self.data_wait_s)}, {waits}"
        rows = [
            ("time", f"{duration(self.seconds)}, {self.steps:,} steps"),
            ("samples", f"{self.counts.samples:,.0f}"),
            ("tokens", f"{self.counts.tokens:,.0f}"),
            ("tokens/s", f"{self.counts.tokens / self.training_s:,.0f}"),
        ]
        rows += [("fill of the packs", f"{self.fill:.1%}")] if self.fill is not None else []
        rows += [("MFU", f"{self.mfu:.1%}")] if self.mfu is not None else []
        return [*rows, ("peak memory", f"{self.peak_gib:,.2f} GiB"), ("waits", waits)]


class EndSummary(Callback):
    """Prints a box with the figures of the run at its end, on rank zero.

    Args:
        peak_flops: Peak operations per second of a device; by default that of a known GPU.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self._counts = Counts()
        self._started: float | None = None
        self._validation_s = self._validation_started = self._waited_before = 0.0
        self._loader: Any = None
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Resets the totals."""
        self._counts, self._started, self._loader = Counts(), None, None
        self._validation_s = self._waited_before = 0.0
        self._first_step = trainer.global_step

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Starts the clock, and adds up the waiting time of the loaders of finished epochs."""
        self._started = self._started or time.perf_counter()
        if trainer.train_dataloader is not self._loader:
            self._waited_before += getattr(self._loader, "waited_s", 0.0)
            self._loader = trainer.train_dataloader

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Counts the micro-batch."""
        if isinstance(batch, MicroBatch):
            config = getattr(pl_module, "config", None)
            known = self.peak_flops or device_peak_flops(pl_module.device)
            self._counts.add(batch, config if known and isinstance(config, BagelConfig) else None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock of the validation."""
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Stops the clock of the validation."""
        if self._started is not None:
            self._validation_s += time.perf_counter() - self._validation_started

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the box."""
        if self._started is None:
            return
        totals = self._totals(trainer, pl_module, time.perf_counter() - self._started)
        if trainer.is_global_zero:
            print_box("This run", totals.rows())

    def _totals(self, trainer: Trainer, module: LightningModule, seconds: float) -> RunTotals:
        counts = summed(self._counts, trainer, module.device)
        peak = self.peak_flops or device_peak_flops(module.device)
        size = capacity(trainer)
        waited = getattr(self._loader, "waited_s", None)
        return RunTotals(
            steps=trainer.global_step - self._first_step,
            seconds=seconds,
            counts=counts,
            validation_s=self._validation_s,
            data_wait_s=None if waited is None else self._waited_before + waited,
            fill=counts.tokens / (counts.packs * size) if size and counts.packs else None,
            peak_flops=peak and peak * trainer.world_size,
            peak_gib=peak_memory_gib(module.device),
        )


class ProgressLines(Callback):
    """Writes a line on the progress every so often, if standard error is not a terminal.

    A progress bar would fill a log file with its updates.

    Args:
        every_s: Seconds between two lines.
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
        self._written = 0.0

    @property
    def is_needed(self) -> bool:
        """Whether there is no terminal for a progress bar."""
        return not sys.stderr.isatty()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        now = time.monotonic()
        self._started, self._written = (now, trainer.global_step), now

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Writes a line if it is due."""
        now = time.monotonic()
        if not self.is_needed or self._started is None or now - self._written < self.every_s:
            return
        self._written = now
        started, first_step = self._started
        rank_zero_info(progress_line(trainer, (now - started), trainer.global_step - first_step))


def progress_line(trainer: Trainer, seconds: float, steps: int) -> str:
    """Describes the progress of a run.

    Args:
        trainer: The Trainer.
        seconds: Time since the start.
        steps: Optimizer steps since the start.

    Returns:
        A line such as "step 120 of 900, 3.2 s a step, 41:36 left, train/loss 0.512".
    """
    total = count_steps(trainer)
    parts = [f"step {trainer.global_step:,}" + (f" of {total:,}" if total else "")]
    if steps:
        parts.append(f"{seconds / steps:.3g} s a step")
        if total:
            left = (total - trainer.global_step) * seconds / steps
            parts.append(f"{duration(left)} left")
    metrics = trainer.callback_metrics
    names = ("train/loss", "train/ce", "train/mse", "speed/tokens_per_s")
    parts += [f"{name} {float(metrics[name]):.4g}" for name in names if name in metrics]
    return ", ".join(parts)
