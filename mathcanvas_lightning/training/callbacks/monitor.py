"""Speed, memory and fill of a training run, logged without slowing it down."""

import resource
import sys
import time
from dataclasses import astuple, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.flops import BACKWARD_FACTOR, forward_flops, peak_flops


@dataclass(slots=True, kw_only=True)
class Counts:
    """What was trained on; holes and fillers count as packs alone."""

    packs: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    """Of forward and backward passes."""

    def add(self, batch: MicroBatch, config: BagelConfig | None) -> None:
        """Adds a micro-batch.

        Args:
            batch: On any device; nothing of it is read from there.
            config: Sizes of the network; without them operations aren't counted.
        """
        whole = [sample for sample in batch.samples if not sample.is_hole]
        self.packs += 1
        self.samples += len(whole)
        self.tokens += sum(sample.num_tokens for sample in whole)
        if config is not None and not batch.is_filler:
            self.flops += forward_flops(config, batch.pack) * (1 + BACKWARD_FACTOR)


class ThroughputMonitor(Callback):
    """Logs speed, memory, fill and learning rate at the Trainer's `log_every_n_steps`.

    Each figure is of all steps since the one logged before it, over all ranks; memory is that of
    rank zero, the largest of the run so far. Time in validation is left out, that of saving
    checkpoints is not. Devices are waited for when a figure is logged, at no other step.

    Names: `speed/tokens_per_s`, `speed/samples_per_s`, `speed/mfu` (share of the devices' peak,
    counting only pairs of tokens that attend to each other, no recomputation, and backward passes
    as if nothing were frozen), `speed/data_wait` (share of the time in which rank zero waits for
    its loader), `memory/peak_gib`, `data/fill` (tokens of all that packs may hold) and `lr`.

    Args:
        peak_flops: Operations a second that a device can do; known for some GPUs. Without it MFU is
            not logged.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ConfigError(
                "peak_flops",
                found=str(peak_flops),
                wanted="operations a second, more than 0",
                remedy="Leave it out where it isn't known.",
            )
        self.peak_flops = peak_flops
        self._peak: float | None = None
        self._counts = Counts()
        self._started: float | None = None
        self._paused = self._pause_started = 0.0
        self._loader: Any = None
        self._waited_before = 0.0
        self._lr = 0.0
        self._logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        device = pl_module.device
        known = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = self.peak_flops or known
        self._started = None
        self._logged_step = trainer.global_step

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Starts the clock: the wait for a run's first batch, and its workers, isn't counted."""
        if self._started is None:
            _synchronise(pl_module.device)
            self._reset(trainer, time.perf_counter())

    def on_before_optimizer_step(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        """Remembers the learning rate of this step; afterwards it is that of the next."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Counts, and logs where an optimizer step ends that is to be logged."""
        if not isinstance(batch, MicroBatch):
            return
        config = getattr(pl_module, "config", None)
        known = isinstance(config, BagelConfig) and self._peak is not None
        self._counts.add(batch, config if known else None)
        step = trainer.global_step
        if step == self._logged_step or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        self._logged_step = step
        self._log(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Stops the clock."""
        _synchronise(pl_module.device)
        self._pause_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts it again."""
        _synchronise(pl_module.device)
        self._paused += time.perf_counter() - self._pause_started

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._started is not None
        _synchronise(pl_module.device)
        now = time.perf_counter()
        elapsed = max(now - self._started - self._paused, 1e-9)
        everyone = self._reduced(trainer, pl_module.device)
        values = {
            "speed/samples_per_s": everyone.samples / elapsed,
            "memory/peak_gib": peak_memory_gib(pl_module.device),
            "lr": self._lr,
        }
        if self._peak is not None and everyone.flops:
            values["speed/mfu"] = everyone.flops / elapsed / (self._peak * trainer.world_size)
        if (waited := self._waited(trainer)) is not None:
            values["speed/data_wait"] = min(1.0, waited / elapsed)
        if (capacity := _capacity(trainer)) is not None:
            values["data/fill"] = everyone.tokens / (everyone.packs * capacity)
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        pl_module.log(
            "speed/tokens_per_s",
            everyone.tokens / elapsed,
            prog_bar=True,
            on_step=True,
            batch_size=1,
        )
        self._reset(trainer, now)

    def _reduced(self, trainer: Trainer, device: torch.device) -> Counts:
        """Sums over all ranks."""
        if trainer.world_size == 1:
            return self._counts
        own = torch.tensor(astuple(self._counts), dtype=torch.float64, device=device)
        packs, samples, tokens, flops = trainer.strategy.reduce(own, reduce_op="sum").tolist()
        return Counts(packs=packs, samples=samples, tokens=tokens, flops=flops)

    def _waited(self, trainer: Trainer) -> float | None:
        """Seconds since the last reset, None for loaders that don't tell."""
        loader = trainer.train_dataloader
        total: float | None = getattr(loader, "waited_s", None)
        if total is None:
            return None
        return total - (self._waited_before if loader is self._loader else 0.0)

    def _reset(self, trainer: Trainer, now: float) -> None:
        self._counts = Counts()
        self._started, self._paused = now, 0.0
        self._loader = trainer.train_dataloader
        self._waited_before = getattr(self._loader, "waited_s", 0.0)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory this process had so far.

    Args:
        device: Where it computes.

    Returns:
        GiB that tensors took on a CUDA device; elsewhere the resident set of the process.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _capacity(trainer: Trainer) -> int | None:
    budget = getattr(getattr(trainer, "datamodule", None), "budget", None)
    return None if budget is None else int(budget.max_num_tokens)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
