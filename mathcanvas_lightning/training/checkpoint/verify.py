"""Verifies that a checkpoint is complete, and that a run can resume from it."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, DataError
from mathcanvas_lightning.training.checkpoint.record import RunRecord

METADATA_FILE = "meta.pt"
"""File of a sharded checkpoint that holds everything but the tensors."""
STATE_PREFIX = "state_dict."
OPTIMIZER_PREFIX = "optimizer_0."
MAX_LISTED = 5
"""Maximum number of weights in an error."""
UNREADABLE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
)
"""Errors that reading a damaged or foreign checkpoint raises."""


def require_complete(path: Path) -> int:
    """Checks that a checkpoint is complete, without reading tensors.

    Args:
        path: Path of a file, or of the folder of a sharded checkpoint.

    Returns:
        Its optimizer step.

    Raises:
        DataError: If it is incomplete or damaged.
    """
    return int(read_about(path)["global_step"])


def require_resumable(path: Path, *, need_record: bool = True) -> int:
    """Checks that a run can resume from a checkpoint, without reading tensors.

    Args:
        path: Path of a file, or of the folder of a sharded checkpoint.
        need_record: Whether it must have the record of `BagelModule`.

    Returns:
        Its optimizer step.

    Raises:
        DataError: If it is incomplete, or was written by something else.
        ConfigError: If it holds only weights.
    """
    about = read_about(path)
    if need_record:
        RunRecord.from_checkpoint(about, str(path))
    if not _has_optimizer_state(path, about):
        raise ConfigError(
            str(path),
            found="only weights",
            wanted="a checkpoint with the state of the optimizer",
            remedy="To start a new run from these weights, set model.source.weights to this path.",
        )
    return int(about["global_step"])


def read_about(path: Path) -> dict[str, Any]:
    """Reads everything but the values of the tensors.

    Args:
        path: Path of a file, or of the folder of a sharded checkpoint.

    Returns:
        The content of the checkpoint; the tensors of a file are on "meta".

    Raises:
        DataError: If it is incomplete or damaged, or not a checkpoint of Lightning.
    """
    try:
        problem = _missing_part(path) if path.is_dir() else None
        if problem is None:
            about = _about(path)
            int(about["global_step"])
            return about
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"a damaged checkpoint, or none of a run ({type(error).__name__}: {reason})"
    raise DataError(
        str(path),
        found=problem,
        wanted="a complete checkpoint",
        remedy="Set another --ckpt_path, or remove it to resume from the last complete one.",
    )


def require_readable(
    path: str | Path, sharded: bool, *, need_record: bool = True, weights_only: bool = False
) -> None:
    """Checks that a run can use a checkpoint.

    Args:
        path: Path of the checkpoint. Keywords of Lightning, such as "last", are not checked.
        sharded: Whether the run's strategy reads folders.
        need_record: Whether it must have the record of `BagelModule`.
        weights_only: Whether weights are enough, as for validation.

    Raises:
        DataError: If it is incomplete, or was written by something else.
        ConfigError: If it is a folder and the strategy reads only files, or if it holds only
            weights and they are not enough.
    """
    found = local_path(path)
    if not found.exists():
        return
    if weights_only:
        about = read_about(found)
        if need_record:
            RunRecord.from_checkpoint(about, str(path))
    else:
        require_resumable(found, need_record=need_record)
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
    return {
        name.removeprefix(STATE_PREFIX): tuple(about.size)
        for name, about in _metadata(path).state_dict_metadata.items()
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


def _metadata(path: Path) -> Metadata:
    return FileSystemReader(path).read_metadata()


def _has_optimizer_state(path: Path, about: Mapping[str, Any]) -> bool:
    if path.is_dir():
        return any(n.startswith(OPTIMIZER_PREFIX) for n in _metadata(path).state_dict_metadata)
    return bool(about.get("optimizer_states")) and "lr_schedulers" in about


def _missing_part(path: Path) -> str | None:
    """Describes the first missing or incomplete file of a sharded checkpoint."""
    stored = _metadata(path).storage_data or {}
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
