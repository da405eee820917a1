"""Logs speed, memory and fill of a training run, with little overhead."""

import resource
import sys
import time
import warnings
from dataclasses import astuple, dataclass
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.flops import BACKWARD_FACTOR, forward_flops

DENSE_FLOPS = {"H200": 989e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
"""Peak bfloat16 operations per second of GPUs for which Lightning's table lacks the value of tensor
cores without sparsity. Source: NVIDIA's data sheets."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """Amount of data and computation since the last log entry."""

    packs: float = 0.0
    """Number of packs, with fillers."""
    samples: float = 0.0
    """Number of samples, without holes."""
    tokens: float = 0.0
    """Number of tokens of these samples."""
    flops: float = 0.0
    """Operations of forward and backward passes."""

    def add(self, batch: MicroBatch, config: BagelConfig | None) -> None:
        """Adds a micro-batch.

        Args:
            batch: The micro-batch. Its tensors are not read, so a device needs no synchronization.
            config: Sizes of the network; None doesn't count operations.
        """
        present = [sample for sample in batch.samples if not sample.is_hole]
        self.packs += 1
        self.samples += len(present)
        self.tokens += sum(sample.num_tokens for sample in present)
        if config is not None and not batch.is_filler:
            self.flops += forward_flops(config, batch.pack) * (1 + BACKWARD_FACTOR)


class ThroughputMonitor(Callback):
    """Logs speed, memory, fill and learning rate at the Trainer's `log_every_n_steps`.

    Each value covers all steps since the previous log entry, over all ranks. Memory is the maximum
    of rank zero since the start of the run. The time excludes validation, but includes saving
    checkpoints. Devices are synchronized only at logged steps.

    Names: `speed/tokens_per_s`, `speed/samples_per_s`, `speed/mfu` (fraction of the devices' peak;
    counts only pairs of tokens that the mask allows, no recomputation, and backward passes as if
    nothing were frozen), `speed/data_wait` (fraction of the time that rank zero waits for its
    loader), `memory/peak_gib`, `data/fill` (fraction of the packs' capacity that is used) and `lr`.

    Args:
        peak_flops: Peak operations per second of a device. By default that of bfloat16, if the GPU
            is known; MFU is not logged for other devices.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ConfigError(
                "peak_flops",
                found=str(peak_flops),
                wanted="operations per second, above 0",
                remedy="Leave it out if it is not known.",
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
        """Resets the state."""
        self._peak = self.peak_flops or device_peak_flops(pl_module.device)
        self._started = None
        self._logged_step = trainer.global_step

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Starts the clock. The start of the workers and the first batch are not counted."""
        if self._started is None:
            _synchronise(pl_module.device)
            self._reset(trainer, time.perf_counter())

    def on_before_optimizer_step(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        """Stores the learning rate of this step, before the scheduler changes it."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Counts the micro-batch, and logs at the end of an optimizer step that is due."""
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
        """Pauses the clock."""
        _synchronise(pl_module.device)
        self._pause_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Resumes the clock."""
        _synchronise(pl_module.device)
        self._paused += time.perf_counter() - self._pause_started

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._started is not None
        _synchronise(pl_module.device)
        now = time.perf_counter()
        elapsed = max(now - self._started - self._paused, 1e-9)
        everyone = summed(self._counts, trainer, pl_module.device)
        values = {
            "speed/samples_per_s": everyone.samples / elapsed,
            "memory/peak_gib": peak_memory_gib(pl_module.device),
            "lr": self._lr,
        }
        if self._peak is not None and everyone.flops:
            values["speed/mfu"] = everyone.flops / elapsed / (self._peak * trainer.world_size)
        if (waited := self._waited(trainer)) is not None:
            values["speed/data_wait"] = min(1.0, waited / elapsed)
        if (size := capacity(trainer)) is not None:
            values["data/fill"] = everyone.tokens / (everyone.packs * size)
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        pl_module.log(
            "speed/tokens_per_s",
            everyone.tokens / elapsed,
            prog_bar=True,
            on_step=True,
            batch_size=1,
        )
        self._reset(trainer, now)

    def _waited(self, trainer: Trainer) -> float | None:
        """Seconds of waiting since the last reset; None for loaders that don't measure it."""
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


def device_peak_flops(device: torch.device) -> float | None:
    """Looks up the peak bfloat16 operations per second of a device.

    Args:
        device: Device of the computation.

    Returns:
        The peak without sparsity; None for a CPU and for unknown GPUs.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    dense = next((peak for known, peak in DENSE_FLOPS.items() if known in name), None)
    if dense is not None:
        return dense
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unknown GPUs
        try:
            return get_available_flops(device, torch.bfloat16)
        except IndexError:  # names of GeForce cards without NVIDIA in front
            return None


def peak_memory_gib(device: torch.device) -> float:
    """Returns the maximum memory of this process so far.

    Args:
        device: Device of the computation.

    Returns:
        GiB of allocated tensors on a CUDA device; otherwise the resident set of the process.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def summed(counts: Counts, trainer: Trainer, device: torch.device) -> Counts:
    """Sums counts over all ranks.

    Args:
        counts: Counts of this rank.
        trainer: The Trainer.
        device: Device of the communication.
    """
    if trainer.world_size == 1:
        return counts
    own = torch.tensor(astuple(counts), dtype=torch.float64, device=device)
    packs, samples, tokens, flops = trainer.strategy.reduce(own, reduce_op="sum").tolist()
    return Counts(packs=packs, samples=samples, tokens=tokens, flops=flops)


def capacity(trainer: Trainer) -> int | None:
    """Tokens of a pack; None if the data have none."""
    budget = getattr(getattr(trainer, "datamodule", None), "budget", None)
    return None if budget is None else int(budget.max_num_tokens)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
