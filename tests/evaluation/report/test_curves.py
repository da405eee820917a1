"""Curves of a run become lines of a chart; other files are refused with their name."""

from pathlib import Path

import pytest

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.report.curves import HEIGHT, WIDTH, read_charts

METRICS = """step,train/ce,train/mse,val/puzzles/ce,val/puzzles/accuracy,lr,answers/p/accuracy
0,4.0,1.0,,,0.1,
9,2.0,0.5,,,0.1,
9,,,3.0,0.25,,0.25
19,1.0,nan,1.5,0.5,0.1,0.75
"""


def test_charts_of_losses_and_accuracy(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    charts = {chart.title: chart for chart in read_charts(tmp_path / "metrics.csv")}
    assert list(charts) == [
        "training losses",
        "validation losses",
        "validation token accuracy",
        "held-out answers right",
    ]
    training = charts["training losses"]
    assert (training.last_step, training.top) == (20, 4.0)
    ce, mse = training.curves
    assert (ce.name, ce.first, ce.last) == ("train/ce", 4.0, 1.0)
    assert ce.points.split()[0] == "0.0,0.0"  # the highest value is at the upper end
    assert ce.points.split()[-1] == f"{WIDTH:.1f},{HEIGHT * 0.75:.1f}"
    assert mse.last == 0.5  # what is not finite is left out
    assert charts["validation token accuracy"].curves[0].last == 0.5
    answers = charts["held-out answers right"].curves[0]
    assert (answers.name, answers.first, answers.last) == ("answers/p/accuracy", 0.25, 0.75)


@pytest.mark.parametrize("text", ["", "epoch,loss\n1,2\n", "step,train/ce\nx,1\n"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    if text:
        with pytest.raises(InputError, match=r"other\.csv"):
            read_charts(path)
    else:
        assert read_charts(path) == []
    with pytest.raises(InputError, match="absent"):
        read_charts(tmp_path / "absent.csv")
