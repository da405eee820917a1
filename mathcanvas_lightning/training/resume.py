"""The checkpoint that a restarted run goes on from."""

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader

log = logging.getLogger(__name__)

METADATA_FILE = "meta.pt"
"""Of a sharded checkpoint: all that isn't a tensor."""


def find_checkpoint(root: str | Path) -> str | None:
    """The checkpoint with the most steps below a folder that is whole.

    Args:
        root: The Trainer's root folder.

    Returns:
        Its path; None if there is none.
    """
    folder = Path(root)
    candidates = [path for path in folder.rglob("*.ckpt") if not path.is_symlink()]
    found = [
        (step, str(path)) for path in candidates if (step := checkpoint_step(path)) is not None
    ]
    if not found:
        return None
    step, path = max(found)
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
        if path.is_dir():
            FileSystemReader(path).read_metadata()
            missing = _missing_files(path)
            if missing:
                log.warning("%s is not whole: %s is missing", path, missing)
                return None
        about: dict[str, Any] = torch.load(
            path / METADATA_FILE if path.is_dir() else path,
            map_location="meta",
            mmap=not path.is_dir() and zipfile.is_zipfile(path),
            weights_only=False,
        )
        return int(about["global_step"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        log.warning("%s is not whole (%s)", path, error)
        return None


def _missing_files(path: Path) -> str | None:
    metadata = FileSystemReader(path).read_metadata()
    files: dict[str, int] = {}
    for place in (metadata.storage_data or {}).values():
        end = place.offset + place.length
        files[place.relative_path] = max(files.get(place.relative_path, 0), end)
    for name, size in sorted(files.items()):
        file = path / name
        if not file.is_file() or file.stat().st_size < size:
            return name
    return None
