"""Writes sharded checkpoints in the background (torch's dcp.async_save)."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save

from mathcanvas_lightning.training.checkpoint.verify import METADATA_FILE
from mathcanvas_lightning.training.checkpoint.writing import move_over


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSave:
    """A checkpoint that is being written."""

    temporary: Path
    """Folder that is written."""
    target: Path
    """Folder that it becomes when it is complete."""
    about: dict[str, Any]
    """Everything but the tensors."""
    written: "Future[Any]"
    """Done on rank 0 when all ranks have written their parts."""


class BackgroundSaver:
    """Writes one checkpoint at a time while the training continues.

    Rank 0 gives a checkpoint its name as soon as all ranks have written their parts. Changes that
    depend on it (links, the removal of an older one) are made after that, so that a kill at any
    moment leaves an earlier checkpoint.
    """

    def __init__(self) -> None:
        self.pending: PendingSave | None = None
        self.completed: Future[None] | None = None
        """Done when the checkpoint has its name; None if none is being written."""
        self._deferred: list[Callable[[], object]] = []
        self._is_writing = False
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._group: ProcessGroup | None = None
        self._stager: DefaultStager | None = None

    def start(
        self, checkpoint: dict[str, Any], temporary: Path, target: Path, *, is_first: bool
    ) -> None:
        """Copies a checkpoint to host memory and starts to write it. Called on all ranks.

        Args:
            checkpoint: The checkpoint, as Lightning makes it.
            temporary: Folder to write.
            target: Folder that it becomes when it is complete.
            is_first: Whether this is rank 0.
        """
        if self._group is None:  # separate, so that it doesn't interfere with the training
            self._group = torch.distributed.new_group(backend="gloo")
        if self._stager is None:  # reuses its buffers
            pinned = torch.cuda.is_available()
            self._stager = DefaultStager(StagingOptions(pinned, False, False, False))
        temporary.mkdir(parents=True, exist_ok=True)
        state = {"state_dict": checkpoint.pop("state_dict")}
        for number, moments in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{number}"] = moments
        written = async_save(
            state,
            checkpoint_id=temporary,
            process_group=self._group,
            async_stager=self._stager,
        )
        assert isinstance(written, Future)
        self.pending = PendingSave(
            temporary=temporary, target=target, about=checkpoint, written=written
        )
        self._is_writing = True
        self.completed = self._thread.submit(self._complete, self.pending, is_first)

    def wait(self) -> None:
        """Waits until the checkpoint is complete; raises what writing it raised."""
        completed, self.completed, self.pending = self.completed, None, None
        if completed is not None:
            completed.result()

    def after_save(self, change: Callable[[], object]) -> None:
        """Makes a change now, or when the checkpoint that is being written is complete.

        Args:
            change: Called on every rank, without communication.
        """
        with self._lock:
            if self._is_writing:
                self._deferred.append(change)
                return
        change()

    def defer_links(self, savers: Iterable[Any]) -> None:
        """Makes the links of `ModelCheckpoint(save_last="link")` wait, too."""
        for saver in savers:
            if link := getattr(type(saver), "_link_checkpoint", None):
                saver._link_checkpoint = partial(self._link_later, link)

    def close(self) -> None:
        """Completes a checkpoint without communication, after an error or at the end.

        An error while writing is not raised: the one that ended the run is to be reported.
        """
        if self.completed is not None:
            self.completed.exception()
        self.completed = self.pending = None
        if self._stager is not None:
            self._stager.close()
            self._stager = None

    def _complete(self, pending: PendingSave, is_first: bool) -> None:
        try:
            pending.written.result()
            if is_first:
                torch.save(pending.about, pending.temporary / METADATA_FILE)
                move_over(pending.temporary, pending.target)
        except BaseException:
            with self._lock:
                self._is_writing, self._deferred = False, []
            raise
        with self._lock:
            self._is_writing = False
            changes, self._deferred = self._deferred, []
        for change in changes:
            change()

    def _link_later(
        self, link: Callable[..., object], trainer: Any, filepath: str, linkpath: str
    ) -> None:
        # Lightning's function ends with a barrier, which must not run in the thread.
        without_barrier = SimpleNamespace(
            is_global_zero=trainer.is_global_zero, strategy=SimpleNamespace(barrier=lambda: None)
        )
        self.after_save(lambda: link(without_barrier, filepath, linkpath))
