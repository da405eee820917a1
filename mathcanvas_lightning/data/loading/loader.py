"""The data loader of one rank, given to the Trainer."""

import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.common.parallel import protect_server, signals_blocked
from mathcanvas_lightning.data.loading.config import WorkerConfig
from mathcanvas_lightning.data.loading.lookahead import with_wanted_rows
from mathcanvas_lightning.data.loading.pack_dataset import LoadedPack, PackDataset, PackTask
from mathcanvas_lightning.data.loading.quarantine import Quarantine
from mathcanvas_lightning.data.loading.worker import end_workers, set_up_worker
from mathcanvas_lightning.data.plan.position import Position
from mathcanvas_lightning.errors import MathCanvasError


class PackLoader:
    """Yields micro-batches in the order of a plan.

    The tasks are computed when the first batch is requested, not earlier: a Trainer creates the
    iterators before it restores a checkpoint.

    Args:
        dataset: Builds packs.
        tasks: Returns the remaining tasks; called when the first batch is requested.
        length: Number of micro-batches; in training, `Position.length`.
        quarantine: Records unreadable rows.
        workers: Configuration of the worker processes.
        position: Position of the training, which counts the processed micro-batches.
    """

    def __init__(
        self,
        dataset: PackDataset,
        tasks: Callable[[], Iterator[PackTask]],
        length: int,
        quarantine: Quarantine,
        workers: WorkerConfig,
        position: Position | None = None,
    ) -> None:
        self._dataset = dataset
        self._tasks = tasks
        self._length = length
        self._quarantine = quarantine
        self._workers = workers
        self._position = position
        self.waited_s = 0.0
        """Seconds that the training loop has waited for micro-batches."""

    def __len__(self) -> int:
        return self._length if self._position is None else self._position.length

    def __iter__(self) -> Iterator[MicroBatch]:
        requested = time.perf_counter()
        loader = self._loader(self._tasks())
        others = active_children()
        with signals_blocked():  # a new worker would fail if this process stopped sending its work
            batches = iter(loader)
        workers = [process for process in active_children() if process not in others]
        Finalize(batches, end_workers, (workers,), exitpriority=0)  # before multiprocessing does it
        for loaded in batches:
            self.waited_s += time.perf_counter() - requested
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
            if self._position is not None:
                self._position.count_batch()
            requested = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Empty: the data module saves the position; Lightning warns without this method."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing, see `state_dict`."""

    def _loader(self, tasks: Iterator[PackTask]) -> DataLoader[LoadedPack | MathCanvasError]:
        workers = self._workers
        num_workers = workers.num_workers or 0
        if num_workers:
            protect_server(workers.start_method)
        pin_memory = workers.pin_memory
        if pin_memory is None:
            pin_memory = torch.cuda.is_available()
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=_TaskSampler(with_wanted_rows(tasks, num_workers)),
            num_workers=num_workers,
            prefetch_factor=workers.prefetch_factor if num_workers else None,
            multiprocessing_context=workers.start_method if num_workers else None,
            pin_memory=pin_memory,
            worker_init_fn=set_up_worker,
            generator=torch.Generator(),  # leaves the state of the global generator unchanged
        )


class _TaskSampler(Sampler[PackTask]):
    def __init__(self, tasks: Iterator[PackTask]) -> None:
        self._tasks = tasks

    def __iter__(self) -> Iterator[PackTask]:
        return self._tasks
