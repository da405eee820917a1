"""The table of models and data sets, and how each model differs from the first one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mathcanvas_lightning.evaluation.credit import wilson_interval
from mathcanvas_lightning.evaluation.leaderboard.scored import (
    Key,
    ScoredFile,
    group_by_dataset,
    model_names,
)
from mathcanvas_lightning.evaluation.paired import PairedDifference, paired_difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The accuracy of a model on a data set."""

    path: str
    """File of scores."""
    num_records: int
    accuracy: float
    """Mean over records of the mean over samples of the share of right parts."""
    interval: tuple[float, float]
    """Wilson's 95 % interval, with the records as trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDifference:
    """The first model of a data set against another one, record by record."""

    dataset: str
    first: str
    second: str
    counts: PairedDifference
    first_only: tuple[Key, ...]
    """Records that only the first model answers correctly, in file order."""
    second_only: tuple[Key, ...]
    """Records that only the second model answers correctly."""

    def to_json(self) -> dict[str, Any]:
        """Counts, test and all records as plain types."""
        counts = self.counts
        return {
            "dataset": self.dataset,
            "first": self.first,
            "second": self.second,
            "num_records": counts.num_records,
            "difference": counts.difference,
            "interval": counts.interval,
            "p_value": counts.p_value,
            "first_only": self.first_only,
            "second_only": self.second_only,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """Accuracies of models on data sets."""

    datasets: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    """Model -> data set -> accuracy; what was not answered is missing."""
    best: Mapping[str, float]
    """Data set -> highest accuracy."""
    differences: tuple[ModelDifference, ...]
    """For each data set, the first model that answered it against each other one."""

    def to_json(self) -> dict[str, Any]:
        """Everything as plain types."""
        return {
            "models": {
                model: {
                    name: {
                        "scores": cell.path,
                        "num_records": cell.num_records,
                        "accuracy": cell.accuracy,
                        "interval": cell.interval,
                    }
                    for name, cell in found.items()
                }
                for model, found in self.cells.items()
            },
            "differences": [one.to_json() for one in self.differences],
        }


def make_table(files: Sequence[ScoredFile]) -> ModelTable:
    """Makes the table.

    Args:
        files: Files of scores; the first one of a data set is what others are compared with.

    Returns:
        The table, with models and data sets in the given order.

    Raises:
        InputError: If the files of a data set have different records.
    """
    groups = group_by_dataset(files)
    names = model_names(groups)
    cells: dict[str, dict[str, Cell]] = {names[file.path]: {} for file in files}
    for dataset, group in groups.items():
        for file in group:
            cells[names[file.path]][dataset] = _cell(file)
    return ModelTable(
        datasets=tuple(groups),
        cells=cells,
        best={d: max(row[d].accuracy for row in cells.values() if d in row) for d in groups},
        differences=tuple(
            _difference(dataset, group[0], other, names)
            for dataset, group in groups.items()
            for other in group[1:]
        ),
    )


def _cell(file: ScoredFile) -> Cell:
    count = len(file.credit)
    accuracy = sum(file.credit.values()) / count
    return Cell(
        path=str(file.path),
        num_records=count,
        accuracy=accuracy,
        interval=wilson_interval(accuracy, count),
    )


def _difference(
    dataset: str, first: ScoredFile, second: ScoredFile, names: Mapping[Any, str]
) -> ModelDifference:
    one, other = first.is_right, second.is_right
    return ModelDifference(
        dataset=dataset,
        first=names[first.path],
        second=names[second.path],
        counts=paired_difference(one, other),
        first_only=tuple(key for key in one if one[key] and not other[key]),
        second_only=tuple(key for key in one if other[key] and not one[key]),
    )
