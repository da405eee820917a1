"""A logger whose metrics continue in the same file when the run is resumed."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.training.run.folder import RunFolder
from mathcanvas_lightning.training.run.metrics import STEP, read_header, read_rows


class RunLogger(Logger):
    """Appends each entry to `metrics.csv` at once.

    Its columns are `step`, counted from 0 as in Lightning's other loggers, and the names of the
    metrics. A resumed run continues the same file.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = RunFolder(local_path(folder))
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """No name: the run has one folder."""
        return ""

    @property
    def version(self) -> str:
        """No version: the run has one folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.folder.path)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: `config.yaml` has all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes a row.

        Args:
            metrics: Name -> value.
            step: Number of the optimizer step, from 0.
        """
        row = {STEP: 0 if step is None else step, **metrics}
        if self._columns is None:
            self._columns = read_header(self.folder.metrics) or [STEP]
        new = [name for name in row if name not in self._columns]
        if new or not self.folder.metrics.is_file():
            self._rewrite(read_rows(self.folder.metrics), [*self._columns, *sorted(new)])
        with self.folder.metrics.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Removes the rows of steps that are done again.

        Args:
            step: Number of steps that are finished; 0 for a new run.
        """
        if not self.folder.metrics.is_file():
            return
        columns = read_header(self.folder.metrics)
        rows = read_rows(self.folder.metrics)
        kept = [row for row in rows if row[STEP].isdigit() and int(row[STEP]) < step]
        self._rewrite(kept, columns)

    def _rewrite(self, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
        with written_whole(self.folder.metrics) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, columns, restval="", extrasaction="ignore", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns
