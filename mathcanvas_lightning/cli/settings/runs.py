"""Resolves `--name` and `--run`: the folder of a run, and settings taken from one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.training.checkpoint.resume import checkpoint_locations
from mathcanvas_lightning.training.run.finished import move_aside
from mathcanvas_lightning.training.run.folder import RunFolder, find_run, folder_of
from mathcanvas_lightning.training.run.logger import RunLogger
from mathcanvas_lightning.training.run.newest import find_checkpoint_file

FOLDER_ARGUMENTS = ("dirpath", "save_dir", "dir")
"""Arguments of callbacks and loggers that name folders."""


def place_run(config: Any) -> None:
    """Sets the Trainer's root folder to that of the run.

    It is the folder of `--name`; without a name, the root folder that is set; without both, the
    name is that of the first YAML file. Folders of callbacks and loggers that lie in the root
    folder of the YAML move along with a new name.

    Args:
        config: Settings of `fit`; changed in place.
    """
    old = config.trainer.default_root_dir
    if config.get("name"):
        new = folder_of(config.name)
    elif old is not None:
        return
    else:
        files = [str(path) for path in config.get("config") or []]
        new = folder_of(Path(files[0]).stem if files else "run")
    config.trainer.default_root_dir = str(new)
    config.name = None  # the saved settings name the folder once
    if old is not None:
        _move_folders(config.trainer, local_path(str(old)), new)


def _move_folders(settings: Any, old: Path, new: Path) -> None:
    """Replaces folders below `old` by the same ones below `new`, at any depth."""
    if isinstance(settings, list | tuple):
        for entry in settings:
            _move_folders(entry, old, new)
        return
    if not hasattr(settings, "items"):
        return
    for key, value in list(settings.items()):
        if key.rpartition(".")[2] in FOLDER_ARGUMENTS and isinstance(value, str | Path):
            path = local_path(str(value)).absolute()
            if path.is_relative_to(old.absolute()):
                settings[key] = str(new / path.relative_to(old.absolute()))
        else:
            _move_folders(value, old, new)


def set_up_run(trainer: Trainer, logger: Any) -> list[Path]:
    """Gives a Trainer the loggers and checkpoint folder of its run.

    Args:
        trainer: The Trainer, with `default_root_dir` set to the folder of the run.
        logger: The setting `trainer.logger`.

    Returns:
        Where this run's checkpoints are, also those of earlier versions of this library.
    """
    run = RunFolder(Path(trainer.default_root_dir))
    locations = checkpoint_locations(trainer, root_is_named=True)
    if logger in (None, True):
        locations += sorted(run.path.glob("lightning_logs/version_*/checkpoints"))
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return locations
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint) and saver.dirpath is None:
            saver.dirpath = str(run.checkpoints)
            locations.insert(0, run.checkpoints)
    if logger is not False:
        others = (
            [] if logger in (None, True) else [x for x in trainer.loggers if not _is_own(x, run)]
        )
        trainer.loggers = [RunLogger(run.path), *others]
    return list(dict.fromkeys(locations))


def _is_own(logger: Logger, run: RunFolder) -> bool:
    """Whether a logger writes the same file as the logger of the run."""
    return isinstance(logger, CSVLogger) and Path(logger.log_dir) == run.path


@rank_zero_only
def start_over(folder: Path) -> None:
    """Moves what an earlier run has left in the folder of a run that doesn't resume."""
    if (moved := move_aside(folder)) is not None:
        rank_zero_info(f"Starting over: what was in {folder} is now in {moved}")


def take_option(words: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Takes an option with its value out of the words of a command.

    Args:
        words: Command-line words.
        name: Name of the option, with its dashes.

    Returns:
        The last value, None without the option, and the other words.
    """
    value, rest = None, []
    remaining = iter(words)
    for word in remaining:
        if word == name:
            value = next(remaining, None)
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def is_given(words: Sequence[str], name: str) -> bool:
    """Whether an option is among the words of a command."""
    return any(word == name or word.startswith(f"{name}=") for word in words)


def validated_run(words: Sequence[str]) -> list[str]:
    """Replaces `--run RUN` of `validate` by the settings and the newest checkpoint of the run.

    Args:
        words: The command and its options.

    Returns:
        The words with `--config` and `--ckpt_path`; unchanged without `--run`.

    Raises:
        InputError: If the run, its settings or its checkpoint are missing.
    """
    run, rest = take_option(words, "--run")
    if run is None or words[0] != "validate":
        return list(words)
    folder = find_run(run)
    settings = {**folder.settings(), "auto_resume": False, "ckpt_path": None}
    settings["pictures"] = None  # those of the run stay as they are
    if not is_given(rest, "--ckpt_path"):
        settings["ckpt_path"] = str(find_checkpoint_file(folder.path))
    return [rest[0], "--config", yaml.safe_dump(settings), *rest[1:]]
