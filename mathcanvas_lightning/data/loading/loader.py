"""The micro-batches of one rank: what a Trainer is given for a data loader."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.common.parallel import usable_cores
from mathcanvas_lightning.data.loading.dataset import LoadedPack, PackDataset, PackTask
from mathcanvas_lightning.data.loading.quarantine import Quarantine
from mathcanvas_lightning.data.plan.position import OwnProgress, Progress
from mathcanvas_lightning.errors import MathCanvasError

MOST_WORKERS = 8


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class WorkerConfig:
    """The processes that build packs."""

    num_workers: int | None = None
    """A rank; 0 builds them in the training process. None: its share of the cores, at most 8."""
    prefetch_factor: int = 2
    """Packs that each keeps ready."""
    pin_memory: bool = False
    """Page-lock them, for quicker copies to a GPU."""
    start_method: str | None = None
    """How processes start: fork, forkserver or spawn; None for Python's own choice."""

    def share(self, num_local_ranks: int) -> "WorkerConfig":
        """The same with a number of workers, for a machine with so many ranks."""
        if self.num_workers is not None:
            return self
        return replace(
            self, num_workers=max(1, min(MOST_WORKERS, usable_cores() // num_local_ranks))
        )


class PackLoader:
    """Micro-batches in the order of a plan.

    Nothing is decided before the first batch is asked for: a Trainer makes iterators before it
    restores a checkpoint.

    Args:
        dataset: Builds packs.
        tasks: Gives what is left to do, when the first batch is asked for.
        length: Number of micro-batches, those before a resumption included.
        quarantine: For the rows that couldn't be read.
        workers: Processes.
        progress: Is told what was processed.
    """

    def __init__(
        self,
        dataset: PackDataset,
        tasks: Callable[[], Iterator[PackTask]],
        length: int,
        quarantine: Quarantine,
        workers: WorkerConfig,
        progress: Progress | None = None,
    ) -> None:
        self._dataset = dataset
        self._tasks = tasks
        self._length = length
        self._quarantine = quarantine
        self._workers = workers
        self._progress = progress or OwnProgress()
        self.waited_s = 0.0
        """Seconds that its user has spent waiting for micro-batches."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[MicroBatch]:
        asked = time.perf_counter()
        for loaded in self._loader(self._tasks()):
            self.waited_s += time.perf_counter() - asked
            if isinstance(loaded, MathCanvasError):
                raise loaded
            self._quarantine.add(loaded.bad)
            yield MicroBatch(
                pack=loaded.pack,
                samples=loaded.samples,
                image_seeds=loaded.image_seeds,
                step_totals=loaded.task.step_totals,
                epoch=loaded.task.epoch,
                step=loaded.task.step,
            )
            self._progress.processed()
            asked = time.perf_counter()
        self._progress.epoch_over()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module's state says it all. That it is here tells Lightning so."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing, see `state_dict`."""

    def _loader(self, tasks: Iterator[PackTask]) -> DataLoader[LoadedPack | MathCanvasError]:
        workers = self._workers
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=_Tasks(tasks),
            num_workers=workers.num_workers or 0,
            prefetch_factor=workers.prefetch_factor if workers.num_workers else None,
            multiprocessing_context=workers.start_method if workers.num_workers else None,
            pin_memory=workers.pin_memory,
            generator=torch.Generator(),  # not the global one: loading changes no other draw
        )


class _Tasks(Sampler[PackTask]):
    def __init__(self, tasks: Iterator[PackTask]) -> None:
        self._tasks = tasks

    def __iter__(self) -> Iterator[PackTask]:
        return self._tasks
