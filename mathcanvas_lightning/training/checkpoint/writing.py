"""Writes checkpoints that appear complete or not at all."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch.distributed.checkpoint.api import CheckpointException

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX, written_whole
from mathcanvas_lightning.errors import OutputError

REPLACED_PREFIX = ".old-"
SUFFIX = ".ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints of a single device atomically.

    `TorchCheckpointIO` first copies the checkpoint in memory. Its temporary file may be on another
    file system, from where it has to be copied.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a file.

        Args:
            checkpoint: The checkpoint.
            path: Path of the file.
            storage_options: See `TorchCheckpointIO`; not used for local files.

        Raises:
            OutputError: If it can't be written.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_temporaries(target.parent)
            with written_whole(target) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            raise save_error(target, reason(error)) from None


def save_atomically(strategy: Strategy) -> None:
    """Sets `AtomicCheckpointIO` on a strategy that has the default checkpoint plugin."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()


def move_over(temporary: Path, target: Path) -> None:
    """Replaces a folder by another one; at any moment the old or the new one exists."""
    old = target.with_name(REPLACED_PREFIX + target.name)
    if target.exists():
        _remove(old)
        target.rename(old)
    temporary.rename(target)
    _remove(old)


def remove_temporaries(folder: Path) -> None:
    """Removes the incomplete checkpoints of a run that was killed while saving."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*{SUFFIX}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """Describes the first cause of an error: `CheckpointException` wraps those of other ranks."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}"


def save_error(target: Path, problem: str) -> OutputError:
    """Makes the error for a checkpoint that could not be written."""
    return OutputError(
        str(target),
        found=f"a checkpoint that could not be written ({problem})",
        wanted="enough disk space and permission to write",
        remedy="Free some space and run the same command again: it resumes from the last complete "
        "checkpoint.",
    )
