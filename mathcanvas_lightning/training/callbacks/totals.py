"""A box with the figures of a whole run at its end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.common.display.box import duration, print_box
from mathcanvas_lightning.common.display.short import counted
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.training.callbacks.monitor import (
    Counts,
    capacity,
    device_peak_flops,
    peak_memory_gib,
    summed,
)
from mathcanvas_lightning.training.callbacks.progress import ProgressLines
from mathcanvas_lightning.training.run.folder import next_commands

__all__ = ["EndSummary", "ProgressLines", "RunTotals", "written_checkpoints"]


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
    checkpoints: Sequence[tuple[str, str]] = ()
    """Kind and path of the checkpoints to use."""

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
            ("time", f"{duration(self.seconds)}, {counted(self.steps, 'step')}"),
            ("samples", f"{self.counts.samples:,.0f}"),
            ("tokens", f"{self.counts.tokens:,.0f}"),
            ("tokens/s", f"{self.counts.tokens / self.training_s:,.0f}"),
        ]
        rows += [("fill of the packs", f"{self.fill:.1%}")] if self.fill is not None else []
        rows += [("MFU", f"{self.mfu:.1%}")] if self.mfu is not None else []
        rows += [("peak memory", f"{self.peak_gib:,.2f} GiB"), ("waits", waits)]
        return [*rows, *(self.checkpoints or [("last checkpoint", "none was saved")])]


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
            if totals.checkpoints:
                lines = "\n".join(next_commands(Path(trainer.default_root_dir)))
                Console().out(f"Next:\n{lines}", highlight=False)

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
            checkpoints=written_checkpoints(trainer),
        )


def written_checkpoints(trainer: Trainer) -> list[tuple[str, str]]:
    """Finds the checkpoints that a run has written.

    Args:
        trainer: The Trainer.

    Returns:
        "last checkpoint" and its path; "best checkpoint" with the value by which it was chosen, if
        a metric is monitored.
    """
    found: list[tuple[str, str]] = []
    savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
    for saver in savers:
        paths = [
            p for p in (saver.last_model_path, saver.best_model_path) if p and Path(p).exists()
        ]
        if paths and not found:
            found.append(("last checkpoint", _shown_path(Path(paths[0]))))
        if saver.monitor not in (None, "step") and saver.best_model_path:
            path, score = Path(saver.best_model_path), saver.best_model_score
            value = "" if score is None else f" ({saver.monitor} {float(score):.4g})"
            found.append(("best checkpoint", f"{_shown_path(path)}{value}"))
    return found


def _shown_path(path: Path) -> str:
    """The file that a link leads to, relative to the working folder if it is below it."""
    real = path.resolve()
    here = Path.cwd().resolve()
    return str(real.relative_to(here)) if real.is_relative_to(here) else str(real)
