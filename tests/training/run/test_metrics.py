"""Metrics of a run continue in one file, and those of older layouts are joined."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.training.run.logger import RunLogger
from mathcanvas_lightning.training.run.metrics import read_metrics
from tests.conftest import examples

NAMES = st.sampled_from(["train/ce", "val/a/ce", "lr", "answers/accuracy"])
ENTRY = st.dictionaries(NAMES, st.floats(-1e6, 1e6), min_size=1)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(ENTRY, min_size=1, max_size=8), data=st.data())
def test_a_resumed_run_equals_one_without_interruption(
    steps: list[dict[str, float]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    reached = data.draw(st.integers(0, len(steps)))
    saved = data.draw(st.integers(0, reached))
    for start, end in ((0, reached), (saved, len(steps))):
        logger = RunLogger(folder)
        logger.resume_at(start)
        for step in range(start, end):
            logger.log_metrics(steps[step], step)
    wanted: dict[str, list[tuple[int, float]]] = {}
    for step, entry in enumerate(steps):
        for name, value in entry.items():
            wanted.setdefault(name, []).append((step, value))
    assert read_metrics(folder) == wanted


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run")
    logger.log_metrics({"b": 1.0, "a": 2.0}, 0)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "step,a,b\n0,2.0,1.0\n"
    logger.log_metrics({"c": 3.0}, 1)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "step,a,b,c\n0,2.0,1.0,\n1,,,3.0\n"


def test_older_runs_have_a_folder_for_each_start(tmp_path: Path) -> None:
    for version, text in (
        (2, "step,a\n2,20\n3,30\n"),
        (10, "step,a\n3,31\n"),
        (0, "step,a\n1,1\n2,2\n"),
    ):
        folder = tmp_path / "curves" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    assert read_metrics(tmp_path) == {"a": [(1, 1.0), (2, 20.0), (3, 31.0)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no metrics.csv"), ("a,b\n1,2\n", "column step"), ("step,a\n1,x\n", "can't be read")],
)
def test_unreadable_metrics(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_metrics(tmp_path)
