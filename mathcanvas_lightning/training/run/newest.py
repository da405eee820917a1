"""Finds the newest checkpoint of a run's folder."""

from pathlib import Path

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import InputError, MathCanvasError
from mathcanvas_lightning.training.checkpoint.resume import STOPPED_FILE, candidates
from mathcanvas_lightning.training.checkpoint.verify import METADATA_FILE, require_complete
from mathcanvas_lightning.training.run.folder import RunFolder


def find_checkpoint_file(path: str | Path) -> Path:
    """Finds the checkpoint of a path.

    Args:
        path: A checkpoint, the folder of a run, or a folder of checkpoints.

    Returns:
        The checkpoint itself; for other folders the complete one of the most steps.

    Raises:
        InputError: If there is no complete checkpoint.
    """
    given = local_path(path)
    if not given.is_dir() or (given / METADATA_FILE).is_file() or given.name.endswith(".ckpt"):
        return given
    found = newest_checkpoint(given)
    if found is None:
        raise InputError(
            str(path),
            found="a folder without a complete checkpoint",
            wanted="a .ckpt, or the folder of a run that has saved one",
            remedy="Train until the first checkpoint is saved, or name a .ckpt.",
        )
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the most steps below a folder; None without a complete one."""
    found = []
    own = RunFolder(folder).checkpoints
    locations = [own, folder / STOPPED_FILE] if own.is_dir() else [folder]
    for path in candidates(locations):
        try:
            found.append((require_complete(path), path.stat().st_mtime, path))
        except MathCanvasError:
            continue
    return max(found)[2] if found else None
