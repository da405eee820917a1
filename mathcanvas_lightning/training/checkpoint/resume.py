"""Finds the checkpoint from which a restarted run resumes, and checks that it is complete."""

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)

METADATA_FILE = "meta.pt"
"""File of a sharded checkpoint that holds everything but the tensors."""
STATE_PREFIX = "state_dict."
MAX_LISTED = 5
"""Maximum number of weights in an error."""
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError)


def find_checkpoint(root: str | Path) -> str | None:
    """Finds the complete checkpoint with the most steps below a folder.

    Args:
        root: The Trainer's root folder.

    Returns:
        Its path; None if there is no complete checkpoint. Incomplete ones are skipped.
    """
    candidates = [
        path
        for path in local_path(root).rglob("*.ckpt")
        if not path.is_symlink() and not path.name.startswith(TEMPORARY_PREFIX)
    ]
    found = [
        (step, path.stat().st_mtime, str(path))
        for path in candidates
        if (step := checkpoint_step(path)) is not None
    ]
    if not found:
        return None
    step, _, path = max(found)
    log.info("resuming from step %d: %s", step, path)
    return path


def checkpoint_step(path: Path) -> int | None:
    """Reads the optimizer step of a checkpoint.

    Args:
        path: Path of a file, or of the folder of a sharded checkpoint.

    Returns:
        The step; None if the checkpoint is incomplete.
    """
    try:
        return require_complete(path)
    except DataError as error:
        log.warning("skipped: %s", error)
        return None


def require_complete(path: Path) -> int:
    """Checks that a checkpoint is complete, without reading tensors.

    Args:
        path: Path of a file, or of the folder of a sharded checkpoint.

    Returns:
        Its optimizer step.

    Raises:
        DataError: If it is incomplete or damaged.
    """
    try:
        problem = _missing_part(path) if path.is_dir() else None
        if problem is None:
            return int(_about(path)["global_step"])
    except UNREADABLE as error:
        problem = f"a damaged checkpoint ({type(error).__name__}: {error})"
    raise DataError(
        str(path),
        found=problem,
        wanted="a complete checkpoint",
        remedy="Set another --ckpt_path, or remove it to resume from the last complete one.",
    )


def require_readable(path: str | Path, sharded: bool) -> None:
    """Checks that a run can resume from a checkpoint.

    Args:
        path: Path of the checkpoint. Keywords of Lightning, such as "last", are not checked.
        sharded: Whether the run's strategy reads folders.

    Raises:
        DataError: If it is incomplete.
        ConfigError: If it is a folder and the strategy reads only files.
    """
    found = local_path(path)
    if not found.exists():
        return
    require_complete(found)
    if found.is_dir() and not sharded:
        raise ConfigError(
            str(path),
            found="a sharded checkpoint",
            wanted="a single file, because this run is not sharded",
            remedy="Resume with trainer.strategy.class_path: "
            "mathcanvas_lightning.training.strategy.ShardedStrategy; one rank is enough.",
        )


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of a checkpoint's weights, by name."""
    if not path.is_dir():
        return {name: tuple(tensor.shape) for name, tensor in _about(path)["state_dict"].items()}
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix(STATE_PREFIX): tuple(about.size)
        for name, about in stored.items()
        if name.startswith(STATE_PREFIX) and isinstance(about, TensorStorageMetadata)
    }


def check_same_model(
    place: str | Path, found: Mapping[str, tuple[int, ...]], model: Mapping[str, Tensor]
) -> None:
    """Compares the weights of a checkpoint with those of a model.

    Args:
        place: Path of the checkpoint, for errors.
        found: Shapes of its weights, by name.
        model: State dict of the model.

    Raises:
        ConfigError: If names or shapes differ.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.items()}
    differing = [
        f"{name} {_shown(found.get(name))} in the checkpoint, {_shown(wanted.get(name))} here"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        more = len(differing) - MAX_LISTED
        raise ConfigError(
            str(place),
            found="another model: "
            + "; ".join(differing[:MAX_LISTED])
            + (f"; and {more} more" if more > 0 else ""),
            wanted="weights of the configured model",
            remedy="Use the model settings of that run, or another trainer.default_root_dir.",
        )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _about(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without the values of its tensors."""
    is_folder = path.is_dir()
    about: dict[str, Any] = torch.load(
        path / METADATA_FILE if is_folder else path,
        map_location="meta",
        mmap=not is_folder and zipfile.is_zipfile(path),
        weights_only=True,
    )
    return about


def _missing_part(path: Path) -> str | None:
    """Describes the first missing or incomplete file of a sharded checkpoint."""
    stored = FileSystemReader(path).read_metadata().storage_data or {}
    sizes: dict[str, int] = {METADATA_FILE: 0}
    for entry in stored.values():
        end = entry.offset + entry.length
        sizes[entry.relative_path] = max(sizes.get(entry.relative_path, 0), end)
    for name, size in sorted(sizes.items()):
        file = path / name
        if not file.is_file():
            return f"no file {name}"
        if file.stat().st_size < size:
            return f"a truncated {name}: {file.stat().st_size} of {size} bytes"
    return None
