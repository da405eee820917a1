"""Says what a finished run's folder holds, before a second fit trains nothing in it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.training.checkpoint.resume import STOPPED_FILE
from mathcanvas_lightning.training.run.folder import EARLIER, RunFolder


def check_unfinished(
    about: Mapping[str, Any], trainer: Trainer, changes: list[str], folder: Path
) -> str | None:
    """Checks that a run that resumes has steps left.

    Args:
        about: The checkpoint; its tensors are not needed.
        trainer: The Trainer that resumes.
        changes: Settings that differ from those of the checkpoint.
        folder: Folder of the run.

    Returns:
        A remark if the run is finished; None if steps are left.

    Raises:
        OutputError: If it is finished and settings have changed.
    """
    step = int(about["global_step"])
    reached = _reached(about, trainer)
    if reached is None:
        return None
    changes = _asked(changes)
    more = f"--trainer.max_steps {max(2 * step, 1)}"
    if not changes:
        return (
            f"{folder} is finished at {reached}: nothing is left to train. A new run: --name NAME. "
            f"More steps: {more}. Start over: --auto_resume false."
        )
    raise OutputError(
        str(folder),
        found=f"a run at {reached}, with other settings: {'; '.join(changes)}",
        wanted="steps that are left to train",
        remedy=f"A new run: --name NAME. More steps with the new settings: {more}. "
        f"Start over: --auto_resume false (what is there is moved to {EARLIER}1).",
    )


def _asked(changes: list[str]) -> list[str]:
    """Leaves out what another number of ranks changes by itself."""
    names = ["trainer.ranks "]
    if any(change.startswith(names[0]) for change in changes):
        names.append("data.packs_per_step ")
    return [change for change in changes if not change.startswith(tuple(names))]


def _reached(about: Mapping[str, Any], trainer: Trainer) -> str | None:
    """Describes the limit that a checkpoint has reached."""
    step, max_steps = int(about["global_step"]), int(trainer.max_steps)
    if 0 <= max_steps <= step:
        return f"step {step:,} (trainer.max_steps {max_steps:,})"
    epochs, max_epochs = _finished_epochs(about), trainer.max_epochs
    if max_epochs is not None and 0 < max_epochs <= epochs:
        return f"step {step:,}, epoch {epochs} (trainer.max_epochs {max_epochs})"
    return None


def _finished_epochs(about: Mapping[str, Any]) -> int:
    try:
        return int(about["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError):
        return 0


def move_aside(folder: Path) -> Path | None:
    """Moves the files of an earlier run of the same name into a numbered folder.

    Args:
        folder: Folder of the run.

    Returns:
        The folder they are in now; None if there was nothing to move.
    """
    run = RunFolder(folder)
    own = [run.config, run.metrics, run.log, run.curves, run.page, run.checkpoints, run.exports]
    found = [
        path
        for path in (*own, folder / STOPPED_FILE, run.drawings, folder / "answers")
        if path.exists()
    ]
    if not found:
        return None
    number = 1
    while (target := folder / f"{EARLIER}{number}").exists():
        number += 1
    target.mkdir(parents=True)
    for path in found:
        shutil.move(path, target / path.name)
    return target
