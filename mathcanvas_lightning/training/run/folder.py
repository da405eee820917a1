"""The folder of a run: its files and its settings."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import InputError

RUNS = "runs"
"""Folder of the runs whose names are no paths."""
EARLIER = "earlier_"
"""Start of the names of folders with what a run that starts over has moved away."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run."""

    path: Path
    """The Trainer's `default_root_dir`."""

    @property
    def config(self) -> Path:
        """Complete settings of the last start of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Metrics of all starts of the run, a row for each log entry."""
        return self.path / "metrics.csv"

    @property
    def log(self) -> Path:
        """Messages of all starts of the run."""
        return self.path / "log.txt"

    @property
    def curves(self) -> Path:
        """Picture of the curves."""
        return self.path / "curves.png"

    @property
    def page(self) -> Path:
        """Page with curves, drawings and settings."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def exports(self) -> Path:
        """Folder of models exported from the checkpoints."""
        return self.path / "exports"

    @property
    def drawings(self) -> Path:
        """Folder of the pictures of the validations."""
        return self.path / "pictures"

    def settings(self) -> dict[str, Any]:
        """Reads the settings of `config_file`.

        Raises:
            InputError: If they are missing or unreadable.
        """
        try:
            found = yaml.safe_load(self.config_file().read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(
                str(self.path),
                found=f"no readable config.yaml ({type(error).__name__})",
                wanted="the folder of a run of mathcanvas fit",
                remedy="Give the folder that fit names at its end, such as runs/NAME.",
            ) from None
        return found if isinstance(found, dict) else {}

    def config_file(self) -> Path:
        """The settings; those of the last start, if older runs have a folder for each."""
        older = [] if self.config.is_file() else self.path.glob("**/version_*/config.yaml")
        return max(older, key=lambda path: path.stat().st_mtime, default=self.config)

    def pictures(self) -> dict[int, Path]:
        """Optimizer step -> picture of a validation, in order; also those of older layouts."""
        found = {
            int(number): path
            for path in sorted(self.path.glob("**/pictures/step_*.png"))
            if not path.relative_to(self.path).parts[0].startswith(EARLIER)
            and (number := path.stem.removeprefix("step_")).isdigit()
        }
        return dict(sorted(found.items()))


def folder_of(name: str) -> Path:
    """Folder of a named run: below `runs/`, or the name itself if it is a path."""
    path = local_path(name)
    return path if len(path.parts) > 1 or path.is_absolute() else Path(RUNS, name)


def next_commands(folder: Path) -> tuple[str, ...]:
    """Commands to use a run that has a checkpoint."""
    name = shlex.quote(str(folder))
    return (
        f"mathcanvas predict --run {name} --input questions.jsonl",
        f"mathcanvas chat --run {name}",
        f"mathcanvas export-checkpoint {name}",
    )


def find_run(path: str) -> RunFolder:
    """Opens the folder of a run.

    Args:
        path: The folder, or the name of a run below `runs/`.

    Raises:
        InputError: If there is no such folder.
    """
    folders = [local_path(path), folder_of(path)]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise InputError(
            path,
            found="no such folder",
            wanted="the folder of a run of mathcanvas fit",
            remedy=f"Give its path{_similar(path)}",
        )
    return RunFolder(found)


def _similar(path: str) -> str:
    known = [str(found.parent) for found in Path().glob("*/*/config.yaml")]
    near = get_close_matches(str(folder_of(path)), known, n=1)
    return f"; did you mean {near[0]}?" if near else ", such as runs/NAME."


def image_transforms(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The image sizes of a run's first data set.

    Args:
        settings: Settings of the run.

    Returns:
        `vae_transform` and `vit_transform` for `BagelBackend`; what is not set is left out.
    """
    data = (settings.get("data") or {}).get("init_args") or {}
    sets = data.get("train") or data.get("validation") or []
    first = sets[0] if sets else {}
    return {name: first[name] for name in ("vae_transform", "vit_transform") if first.get(name)}
