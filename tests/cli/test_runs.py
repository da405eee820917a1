"""A run has one name and one folder: fit, resume, a second fit, and the commands that take it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.training.run.folder import folder_of
from mathcanvas_lightning.training.run.metrics import read_metrics
from tests.cli.replay import replay
from tests.cli.small_run import write_settings
from tests.conftest import TRAINER_WARNINGS
from tests.data.make_rows import interleaved_shards

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 12)


@pytest.mark.slow
def test_one_folder_for_the_life_of_a_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path / "small.yaml", shards)
    replay("run.txt", capsys, {})
    run = tmp_path / "runs" / "lr1e-4"
    names = {"config.yaml", "metrics.csv", "curves.png", "report.html", "checkpoints", "log.txt"}
    assert names <= {path.name for path in run.iterdir()}
    assert names <= {path.name for path in (run / "earlier_1").iterdir()}
    # A resume continues the same curves; a run that starts over loses nothing.
    assert [step for step, _ in read_metrics(run / "earlier_1")["train/ce"]] == [0, 1, 2]
    assert [step for step, _ in read_metrics(run)["train/ce"]] == [0]
    assert not list(tmp_path.rglob("version_*"))
    assert (run / "earlier_1" / "checkpoints" / "step3.ckpt").is_file()
    assert [path.name for path in run.glob("checkpoints/step*")] == ["step1.ckpt"]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["default_root_dir"] == "runs/lr1e-4"
    assert saved["trainer"]["max_steps"] == 1  # validate has not written
    assert saved["name"] is None
    for log in (run / "log.txt", run / "earlier_1" / "log.txt"):
        lines = log.read_text().splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines), lines
    assert "error: runs/lr1e-4: found a run at step 3" in log.read_text()
    assert "step 3 of 3  ce" in log.read_text()  # also with --quiet
    assert (run / "exports" / "step1" / "ema.safetensors").is_file()
    assert (tmp_path / "own" / "ema.safetensors").is_file()
    page = (run / "report.html").read_text()
    assert page.count("data:image/svg+xml") == 1
    assert page.count("data:image/png") == 1  # the drawings of one validation
    assert "mathcanvas export-checkpoint runs/lr1e-4" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_folders_of_the_yaml_move_with_a_new_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The YAML names the folders of logger and checkpoints, as those of earlier versions do."""
    monkeypatch.chdir(tmp_path)
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "old/run", "name": "curves"},
    }
    path = write_settings(
        tmp_path / "old.yaml", shards, logger=logger, default_root_dir="old/run", max_steps=1
    )
    content = yaml.safe_load(path.read_text())
    content["trainer"]["callbacks"][0]["init_args"]["dirpath"] = "old/run/checkpoints"
    path.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(path)]) == 0
    assert (tmp_path / "old/run/curves/version_0/metrics.csv").is_file()
    assert (tmp_path / "old/run/checkpoints/step1.ckpt").is_file()
    before = sorted(tmp_path.glob("old/**/*"))
    assert main(["fit", "--config", str(path), "--name", "there/new"]) == 0
    assert (tmp_path / "there/new/curves/version_0/metrics.csv").is_file()
    assert (tmp_path / "there/new/checkpoints/step1.ckpt").is_file()
    assert sorted(tmp_path.glob("old/**/*")) == before


@pytest.mark.parametrize(
    ("name", "folder"),
    [("a", "runs/a"), ("a/b", "a/b"), ("/x/y", "/x/y"), ("file:///x", "/x")],
)
def test_folder_of_a_name(name: str, folder: str) -> None:
    assert str(folder_of(name)) == folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--run", "missing", "--input", "a.jsonl"], "missing: found no such folder"),
        (["predict", "--run", "."], "--input: found no questions"),
        (["predict", "--run", ".", "--input", "a.jsonl"], "no readable config.yaml"),
        (["validate", "--run", "."], "no readable config.yaml"),
        (["export-checkpoint", ".", "--output", "x"], "a folder without a complete checkpoint"),
        (["export-checkpoint", "./x.ckpt"], "x.ckpt"),
    ],
)
def test_folders_that_are_no_runs(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"state_dict": {"weight": torch.zeros(1)}}, "foreign.ckpt"),
        (torch.zeros(1), "foreign.ckpt: found a damaged checkpoint, or none"),
    ],
)
def test_validate_refuses_checkpoints_of_others(
    saved: Any, message: str, shards: Path, tmp_path: Path, capsys: Any
) -> None:
    config = write_settings(tmp_path / "mine.yaml", shards)
    foreign = tmp_path / "foreign.ckpt"
    torch.save(saved, foreign)
    assert main(["validate", "--config", str(config), "--ckpt_path", str(foreign)]) == 1
    errors = " ".join(capsys.readouterr().err.split())
    assert message in errors
    assert "Traceback" not in errors
