"""Reads the metrics of a run, also those of runs with a folder for each start."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.training.run.folder import RunFolder

STEP = "step"
Points = list[tuple[int, float]]
"""(step, value), in order of the steps."""


def read_metrics(place: Path) -> dict[str, Points]:
    """Reads the metrics of a run.

    Args:
        place: A metrics.csv, or the folder of a run. Older runs have a numbered folder for each
            start; their files are joined, and a later start replaces the steps that it repeats.

    Returns:
        Metric -> its points. Values that are not finite are left out.

    Raises:
        InputError: If the run has no metrics, or they can't be read.
    """
    points: dict[str, dict[int, float]] = {}
    for path in _files(place):
        found = _parsed(path)
        first = min((step for step, _, _ in found), default=0)
        for values in points.values():
            for step in [step for step in values if step >= first]:
                del values[step]
        for step, name, value in found:
            points.setdefault(name, {})[step] = value
    return {name: sorted(values.items()) for name, values in points.items() if values}


def _files(place: Path) -> Sequence[Path]:
    if place.is_file():
        return [place]
    name = RunFolder(place).metrics.name
    if (place / name).is_file():
        return [place / name]
    found = [path for path in place.glob(f"**/version_*/{name}") if path.is_file()]
    if not found:
        raise InputError(
            str(place),
            found="no metrics.csv",
            wanted="a metrics.csv, or the folder of a run of mathcanvas fit",
            remedy="Check the path. A run writes its metrics from its first log entry on.",
        )
    return sorted(found, key=lambda path: int(path.parent.name.rpartition("_")[2]))


def _parsed(path: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all cells."""
    found = []
    try:
        for row in read_rows(path):
            step = int(float(row[STEP]))
            for name, text in row.items():
                if name and name not in (STEP, "epoch") and text:
                    value = float(text)
                    if math.isfinite(value):
                        found.append((step, name, value))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(path),
            found=f"a line that can't be read ({type(error).__name__}: {error})",
            wanted="the metrics.csv of a run: a column step, and numbers",
            remedy="Check the path.",
        ) from None
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv as texts; none without the file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_header(path: Path) -> list[str]:
    """The names of the columns of a metrics.csv; none without the file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])
