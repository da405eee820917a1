"""One process for all comparisons, instead of a new one for each file of answers."""

from collections.abc import Iterator
from typing import Any

import pytest

from mathcanvas_lightning.evaluation import scoring
from mathcanvas_lightning.evaluation.comparison.comparer import Comparer


class SharedComparer(Comparer):
    """A comparer whose process outlives the run that uses it."""

    def __exit__(self, *error: Any) -> None:
        """Keeps the process."""


@pytest.fixture(scope="session")
def shared_comparer() -> Iterator[SharedComparer]:
    made = SharedComparer()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def few_processes(shared_comparer: SharedComparer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with one process and the default time limit share it."""
    default = (1, scoring.ComparisonSettings().time_limit_s)

    def choose(*settings: Any) -> Comparer:
        return shared_comparer if settings == default else Comparer(*settings)

    monkeypatch.setattr(scoring, "Comparer", choose)
