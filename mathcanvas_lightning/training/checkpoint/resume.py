"""The checkpoint that a restarted run goes on from, and whether it is whole."""

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
from mathcanvas_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)

METADATA_FILE = "meta.pt"
"""Of a sharded checkpoint: all that isn't a tensor."""
STATE_PREFIX = "state_dict."
MAX_LISTED = 5
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError)


def find_checkpoint(root: str | Path) -> str | None:
    """The checkpoint with the most steps below a folder that is whole.

    Args:
        root: The Trainer's root folder.

    Returns:
        Its path; None if there is none. What a killed run left half written is passed over.
    """
    candidates = [
        path
        for path in Path(root).rglob("*.ckpt")
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
    log.info("going on from step %d: %s", step, path)
    return path


def checkpoint_step(path: Path) -> int | None:
    """Optimizer steps at a checkpoint.

    Args:
        path: Of a file, or of the folder of a sharded checkpoint.

    Returns:
        The steps; None if it isn't whole.
    """
    try:
        return require_whole(path)
    except DataError as error:
        log.warning("passed over: %s", error)
        return None


def require_whole(path: Path) -> int:
    """Checks that nothing of a checkpoint is missing; reads no tensor.

    Args:
        path: Of a file, or of the folder of a sharded checkpoint.

    Returns:
        Its optimizer steps.

    Raises:
        DataError: If it isn't whole.
    """
    try:
        problem = _missing_part(path) if path.is_dir() else None
        if problem is None:
            return int(_about(path)["global_step"])
    except UNREADABLE as error:
        problem = f"damage ({type(error).__name__}: {error})"
    raise DataError(
        str(path),
        found=problem,
        wanted="a whole checkpoint",
        remedy="Choose another with --ckpt_path, or remove it: the last whole one is found.",
    )


def require_readable(path: str | Path, sharded: bool) -> None:
    """Checks that a run can go on from a checkpoint.

    Args:
        path: Of the checkpoint; one of Lightning's words, such as "last", is left to it.
        sharded: Whether the run's strategy reads folders.

    Raises:
        DataError: If it isn't whole.
        ConfigError: If it is a folder and only a file can be read.
    """
    found = Path(path)
    if not found.exists():
        return
    require_whole(found)
    if found.is_dir() and not sharded:
        raise ConfigError(
            str(path),
            found="a sharded checkpoint",
            wanted="a single file, as a run without sharding reads it",
            remedy="Go on with trainer.strategy.class_path: "
            "mathcanvas_lightning.training.strategy.ShardedStrategy; one rank will do.",
        )


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a checkpoint, by name."""
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
        place: Of the checkpoint.
        found: Shapes of its weights, by name.
        model: State of the model, by name.

    Raises:
        ConfigError: If the checkpoint is of another model.
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
            wanted="the weights of the model that is configured",
            remedy="Take the model's settings of that run, or another trainer.default_root_dir.",
        )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _about(path: Path) -> dict[str, Any]:
    """All of a checkpoint but the values of tensors."""
    is_folder = path.is_dir()
    about: dict[str, Any] = torch.load(
        path / METADATA_FILE if is_folder else path,
        map_location="meta",
        mmap=not is_folder and zipfile.is_zipfile(path),
        weights_only=True,
    )
    return about


def _missing_part(path: Path) -> str | None:
    """What is missing of a sharded checkpoint."""
    stored = FileSystemReader(path).read_metadata().storage_data or {}
    sizes: dict[str, int] = {METADATA_FILE: 0}
    for place in stored.values():
        end = place.offset + place.length
        sizes[place.relative_path] = max(sizes.get(place.relative_path, 0), end)
    for name, size in sorted(sizes.items()):
        file = path / name
        if not file.is_file():
            return f"no file {name}"
        if file.stat().st_size < size:
            return f"{name} cut short: {file.stat().st_size} bytes of {size}"
    return None
