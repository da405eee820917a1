"""Writes sharded checkpoints in the background (torch's dcp.async_save)."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import async_save
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from mathcanvas_lightning.training.checkpoint.reading import METADATA_FILE
from mathcanvas_lightning.training.checkpoint.writing import move_over


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSave:
    """A checkpoint that is being written."""

    temporary: Path
    """Folder that is written."""
    target: Path
    """Folder that it becomes when it is complete."""
    written: "Future[Any]"
    """Done when all ranks have written their parts."""


class BackgroundSaver:
    """Writes one checkpoint at a time while the training continues.

    Changes that depend on the new checkpoint (links, the removal of an older one) are deferred
    until it is complete, so that a kill at any moment leaves an earlier checkpoint.
    """

    def __init__(self) -> None:
        self.pending: PendingSave | None = None
        self._deferred: list[Callable[[], object]] = []
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
        if is_first:
            torch.save(checkpoint, temporary / METADATA_FILE)
        written = async_save(
            state,
            checkpoint_id=temporary,
            process_group=self._group,
            async_stager=self._stager,
        )
        assert isinstance(written, Future)
        self.pending = PendingSave(temporary=temporary, target=target, written=written)

    def wait(self) -> None:
        """Waits until the checkpoint is written; raises what writing it raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.written.result()

    def after_save(self, change: Callable[[], object]) -> None:
        """Makes a change now, or when the checkpoint that is being written is complete."""
        if self.pending is None:
            change()
        else:
            self._deferred.append(change)

    def run_deferred(self) -> None:
        """Makes the changes that had to wait."""
        changes, self._deferred = self._deferred, []
        for change in changes:
            change()

    def defer_links(self, savers: Iterable[Any]) -> None:
        """Makes the links of `ModelCheckpoint(save_last="link")` wait, too."""
        for saver in savers:
            link = getattr(type(saver), "_link_checkpoint", None)
            if link is not None:
                saver._link_checkpoint = partial(self._link_later, link)

    def finish_alone(self, *, is_first: bool) -> None:
        """Completes a checkpoint without communication, after an error or at the end.

        On rank 0, writing is done only when all ranks have written their parts.

        Args:
            is_first: Whether this is rank 0.
        """
        pending = self.pending
        if pending is not None:
            try:
                self.wait()
            except Exception:  # noqa: S110 - the error that ended the run is the one to report
                pass
            else:
                if is_first:
                    move_over(pending.temporary, pending.target)
        self._deferred = []
        if self._stager is not None:
            self._stager.close()
            self._stager = None

    def _link_later(self, link: Callable[..., object], *args: Any) -> None:
        self.after_save(lambda: link(*args))
