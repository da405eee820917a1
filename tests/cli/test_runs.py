"""A run has one name and one folder: fit, resume, a second fit, and the commands that take it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.training.run.folder import folder_of
from mathcanvas_lightning.training.run.metrics import read_metrics
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
    return interleaved_shards(tmp_path_factory.mktemp("shards"), 12)


@pytest.mark.slow
def test_one_folder_for_the_life_of_a_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(write_settings(tmp_path / "small.yaml", shards))
    fit = ["fit", "--config", config, "--name", "lr1e-4"]
    run = tmp_path / "runs" / "lr1e-4"

    assert main(fit) == 0
    out = capsys.readouterr().out
    assert "runs/lr1e-4/checkpoints/step2.ckpt" in out
    assert "mathcanvas predict --run runs/lr1e-4 --input questions.jsonl" in out
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.csv", "checkpoints"}
    assert [step for step, _ in read_metrics(run)["train/ce"]] == [0, 1]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["default_root_dir"] == "runs/lr1e-4"
    assert saved["name"] is None

    # More steps: the same curves.
    assert main([*fit, "--trainer.max_steps", "3"]) == 0
    assert [step for step, _ in read_metrics(run)["train/ce"]] == [0, 1, 2]
    assert not list(tmp_path.rglob("version_*"))

    # Other settings, and nothing left to train.
    capsys.readouterr()
    assert main([*fit, "--model.init_args.optimizer.lr", "3e-4"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: runs/lr1e-4: found a run at step 3 (trainer.max_steps 2), with")
    assert "model.optimizer.lr 1e-05 -> 0.0003" in error
    for way in ("--name NAME", "--trainer.max_steps 6", "--auto_resume false"):
        assert way in error

    # Start over: nothing is lost.
    assert main([*fit, "--trainer.max_steps", "1", "--auto_resume", "false"]) == 0
    assert [step for step, _ in read_metrics(run)["train/ce"]] == [0]
    assert len(read_metrics(run / "earlier_1")["train/ce"]) == 3
    assert (run / "earlier_1" / "checkpoints" / "step3.ckpt").is_file()
    assert [path.name for path in run.glob("checkpoints/step*")] == ["step1.ckpt"]

    # The folder is enough.
    before = (run / "metrics.csv").read_bytes(), (run / "config.yaml").read_bytes()
    assert main(["validate", "--run", "lr1e-4"]) == 0
    assert "val/set/ce" in capsys.readouterr().out
    assert before == ((run / "metrics.csv").read_bytes(), (run / "config.yaml").read_bytes())
    assert main(["export-checkpoint", "runs/lr1e-4"]) == 0
    assert (run / "exports" / "step1" / "ema.safetensors").is_file()
    assert main(["export-checkpoint", "runs/lr1e-4", "--output", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own" / "ema.safetensors").is_file()


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


def test_the_name_of_a_run_without_one_is_that_of_its_yaml(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_settings(tmp_path / "mine.yaml", shards, max_steps=1)
    assert main(["fit", "--config", str(config)]) == 0
    assert (tmp_path / "runs" / "mine" / "checkpoints" / "step1.ckpt").is_file()


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
