"""Curves and page of runs."""

from pathlib import Path

import pytest
from PIL import Image

from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.training.run.curves import draw, draw_curves
from mathcanvas_lightning.training.run.folder import RunFolder
from mathcanvas_lightning.training.run.logger import RunLogger
from mathcanvas_lightning.training.run.page import MAX_PICTURES, write_run_page
from mathcanvas_lightning.training.run.panels import group_metrics

pytest.importorskip("matplotlib")


def make_run(folder: Path, steps: int = 4) -> Path:
    logger = RunLogger(folder)
    for step in range(steps):
        values = {"train/ce": 3.0 / (step + 1), "train/ce_tokens": 100.0, "lr": 1e-3}
        logger.log_metrics({**values, "speed/tokens_per_s": 5e3, "val/a/ce": 1.0}, step)
    return folder


def test_groups() -> None:
    names = ["lr", "lr/vit", "train/loss", "train/ce", "train/mse", "train/a/ce", "train/ce_tokens"]
    names += ["val/a/ce", "val/b/accuracy", "grad_norm/und", "train/grad_norm", "data/fill"]
    names += ["speed/mfu", "speed/tokens_per_s", "val/b/sampled_accuracy", "train/skipped_steps"]
    names += ["answers/b/accuracy", "answers/b/drawings", "answers/b/seconds"]
    assert group_metrics(names) == {
        "text loss (ce)": ["train/ce", "val/a/ce"],
        "drawing loss (mse)": ["train/mse"],
        "accuracy": ["val/b/accuracy"],
        "sampled answers (shares)": ["answers/b/accuracy", "answers/b/drawings"],
        "sampled accuracy": ["val/b/sampled_accuracy"],
        "gradient norm": ["grad_norm/und", "train/grad_norm"],
        "learning rate": ["lr", "lr/vit"],
        "tokens/s": ["speed/tokens_per_s"],
    }
    assert group_metrics(["train/loss"]) == {"loss": ["train/loss"]}


def test_lines_are_the_metrics(tmp_path: Path) -> None:
    runs = {
        "a": {"train/ce": [(0, 2.0), (1, 1.0)]},
        "b": {"train/ce": [(0, 3.0)], "lr": [(0, 1.0)]},
    }
    figure = draw(runs)
    losses, rates = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in losses.lines
    } == {"a: train/ce": [(1, 2.0), (2, 1.0)], "b: train/ce": [(1, 3.0)]}
    assert [line.get_label() for line in rates.lines] == ["b: lr"]


@pytest.mark.slow
def test_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "x", 4)
    make_run(tmp_path / "other" / "x", 80)
    report = draw_curves(["x", "other/x"])
    assert report.path == "curves.png"
    assert report.steps == {"runs/x": 4, "other/x": 80}
    assert report.last["runs/x"]["train/ce"] == 0.75
    with Image.open("curves.png") as picture:
        assert picture.width > 1000
    assert draw_curves(["runs/x/metrics.csv"], output="one.pdf").steps == {"x": 4}
    assert Path("one.pdf").read_bytes().startswith(b"%PDF")
    assert draw_curves(["x"]).path == "runs/x/curves.png"


@pytest.mark.parametrize(
    ("runs", "output", "kind", "message"),
    [
        ([], None, ConfigError, "no run"),
        (["y"], None, InputError, "no such folder"),
        (["y.csv"], None, InputError, "no such file"),
        (["x"], "curves.doc", ConfigError, "curves.doc; wanted a picture"),
    ],
)
def test_refused(
    runs: list[str],
    output: str | None,
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "x", 1)
    with pytest.raises(kind, match=message):
        draw_curves(runs, output=output)


@pytest.mark.slow
def test_page(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path / "x"))
    for step in range(0, 40, 2):
        run.drawings.mkdir(exist_ok=True)
        Image.new("RGB", (700 if step else 20, 30)).save(run.drawings / f"step_{step}.png")
    run.config.write_text("seed_everything: 0  # <b>\n")
    page = write_run_page(run)
    text = run.page.read_text()
    assert (page.num_curves, page.num_pictures) == (4, MAX_PICTURES)
    for caption in ("step 0<", "step 38<"):
        assert caption in text
    assert "seed_everything: 0  # &lt;b&gt;" in text
    assert text.count("data:image/png") == 1
    assert text.count("data:image/jpeg") == MAX_PICTURES - 1
    assert "4 steps" in text
