"""Lines on the progress of a fit without a terminal, a bar on one."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from mathcanvas_lightning.common import progress as bar_file
from mathcanvas_lightning.training.callbacks import progress
from mathcanvas_lightning.training.callbacks.monitor import ThroughputMonitor
from mathcanvas_lightning.training.callbacks.progress import ProgressLines
from tests.conftest import TRAINER_WARNINGS
from tests.data.make_rows import config, interleaved_shards
from tests.training.runs import network, train, training_data

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS, "ignore:You defined a `validation_step`")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 20)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(progress, "rank_zero_info", found.append)
    monkeypatch.setattr(ProgressLines, "is_needed", True)
    now = [0.0]

    def clock() -> float:
        now[0] += 10.0  # the start, then each step
        return now[0]

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))  # not of other threads
    return found


@pytest.mark.parametrize(
    ("every_s", "every_n_steps", "steps"),
    [(20, 50, [2, 4]), (1000, 3, [3]), (20, 3, [2, 3, 5]), (1000, 50, [])],
)
def test_lines_without_a_terminal(
    every_s: float,
    every_n_steps: int,
    steps: list[int],
    shards: Path,
    tmp_path: Path,
    lines: list[str],
) -> None:
    callbacks = [ThroughputMonitor(), ProgressLines(every_s=every_s)]
    options = {"max_steps": 5, "log_every_n_steps": every_n_steps, "callbacks": callbacks}
    train(network(), training_data(config(shards)), tmp_path, **options)
    assert [line.split("  ")[0] for line in lines] == [f"step {step} of 5" for step in steps]
    if every_n_steps == 3:
        line = lines[steps.index(3)]
        assert line.endswith("10 s a step  0:20 left")
        for part in ("  ce ", "  mse ", "  lr 1.00e-03", " tokens/s", " GiB"):
            assert part in line


def test_results_of_a_validation(shards: Path, tmp_path: Path, lines: list[str]) -> None:
    data = training_data(config(shards), validation=[config(shards, name="val")])
    options = {"max_steps": 2, "val_check_interval": 1, "limit_val_batches": 1}
    train(network(), data, tmp_path, callbacks=[ProgressLines(1000)], **options)
    assert [line.split("  ")[0] for line in lines] == [
        "validation at step 1",
        "validation at step 2",
    ]
    assert all(f"val/val/{name} " in line for line in lines for name in ("ce", "mse", "accuracy"))


def test_on_a_terminal_only_the_log_file_has_lines(
    shards: Path,
    tmp_path: Path,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ProgressLines, "is_needed", False)
    monkeypatch.setattr(bar_file.Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "200")
    with caplog.at_level(logging.INFO, "mathcanvas_lightning"):
        options = {"max_steps": 2, "log_every_n_steps": 1, "callbacks": [ProgressLines()]}
        train(network(), training_data(config(shards)), tmp_path, **options)
    assert lines == []
    records = [record for record in caplog.records if record.name == progress.__name__]
    assert [record.getMessage().split("  ")[0] for record in records] == [
        "step 1 of 2",
        "step 2 of 2",
    ]
    assert all(vars(record)["file_only"] for record in records)
    shown = capsys.readouterr().err
    assert "Training" in shown
    assert "2/2" in shown
