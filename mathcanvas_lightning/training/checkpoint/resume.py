"""Finds the checkpoint from which a restarted run resumes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import MathCanvasError
from mathcanvas_lightning.training.checkpoint.verify import (
    require_complete,
    require_readable,
    require_resumable,
)

__all__ = ["checkpoint_locations", "find_checkpoint", "require_complete", "require_readable"]

SUFFIX = ".ckpt"
STOPPED_FILE = f"stopped{SUFFIX}"
"""Checkpoint that a run writes when a signal stops it."""


def checkpoint_locations(trainer: Trainer, *, root_is_named: bool) -> list[Path]:
    """Lists where the checkpoints of this run are written.

    Args:
        trainer: The Trainer of the run.
        root_is_named: Whether the user has set the Trainer's root folder. Otherwise it is the
            working folder, which may hold other runs.

    Returns:
        The folders of the savers, and the file that is written after a signal. A logger that
        numbers its versions has a folder for each start of the run: all of them are listed.
    """
    root = Path(trainer.default_root_dir)
    named = [getattr(saver, "dirpath", None) for saver in trainer.checkpoint_callbacks]
    locations = [Path(folder) for folder in named if folder]
    logger = trainer.loggers[0] if trainer.loggers else None
    base = Path((logger and logger.save_dir) or root)
    if not root_is_named and base.absolute() == root.absolute():
        return locations
    if len(locations) < max(1, len(trainer.checkpoint_callbacks)):
        if logger is None:
            locations.append(root / "checkpoints")
        else:
            locations += _of_logger(base / str(logger.name), logger)
    return [*locations, root / STOPPED_FILE] if root_is_named else locations


def _of_logger(folder: Path, logger: Logger) -> list[Path]:
    """Checkpoint folders below a logger's folder: of its version, or of all numbered ones."""
    # Its property `version` would choose a new number, or start the run of Weights & Biases.
    version = next((v for k in ("_version", "_id") if (v := vars(logger).get(k)) is not None), None)
    if version is None:
        return sorted(folder.glob("version_*/checkpoints"))
    name = f"version_{version}" if isinstance(version, int) else str(version)
    return [folder / name / "checkpoints"]


def find_checkpoint(*locations: str | Path, need_record: bool = True) -> str | None:
    """Finds the complete checkpoint with the most steps, and logs which ones are skipped.

    Args:
        locations: Checkpoints, and folders that hold them at any depth; links are followed.
        need_record: Take only checkpoints with the record of `BagelModule`.

    Returns:
        Its path; None if a run can resume from none of them.
    """
    found = []
    for path in candidates(locations):
        try:
            step = require_resumable(path, need_record=need_record)
        except MathCanvasError as error:
            rank_zero_info(f"Skipped {path}: found {error.found}; wanted {error.wanted}.")
        else:
            found.append((step, path.stat().st_mtime, str(path)))
    if not found:
        return None
    step, _, path_of_last = max(found)
    rank_zero_info(f"Resuming from step {step}: {path_of_last}")
    return path_of_last


def skip_saved_step(trainer: Trainer) -> None:
    """Keeps `ModelCheckpoint` from saving the step again from which a run has resumed.

    With accumulation it would do so after the next micro-batch, in the middle of a step.

    Args:
        trainer: A Trainer that starts to fit after it has restored a checkpoint.
    """
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint):
            saver._last_global_step_saved = trainer.global_step


def candidates(locations: Sequence[str | Path]) -> list[Path]:
    """Lists checkpoint files and folders, each once, also if links lead to it."""
    found: dict[Path, Path] = {}
    paths = [path for place in locations for path in _below(local_path(place))]
    for path in sorted(paths, key=lambda path: (path.is_symlink(), str(path))):
        if path.exists() and not path.name.startswith(TEMPORARY_PREFIX):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _below(place: Path) -> Iterator[Path]:
    if place.name.endswith(SUFFIX):
        yield place
        return
    seen: set[Path] = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        if (real := Path(folder).resolve()) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, n) for n in (*folders, *files) if n.endswith(SUFFIX))
        folders[:] = [name for name in folders if not name.endswith(SUFFIX)]
