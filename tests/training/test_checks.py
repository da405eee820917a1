"""Settings that can't work are errors before the network is loaded, as a user runs the command."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mathcanvas_lightning.cli.main import main
from tests.conftest import TRAINER_WARNINGS, refuse_to_load
from tests.data.make_rows import interleaved_shards
from tests.training.launch import Run

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*upcoming.*"),
]
CALLBACKS = "lightning.pytorch.callbacks."
MISSING = {
    "class_path": "lightning.pytorch.loggers.WandbLogger",
    "init_args": {"save_dir": "x"},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 12)


def callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"callbacks": [{"class_path": CALLBACKS + name, "init_args": arguments}]}


@pytest.mark.parametrize(
    ("trainer", "options", "message"),
    [
        ({"precision": "bf16-true"}, [], "trainer.precision: found bf16-true; wanted 32-true"),
        pytest.param(
            *({"precision": "16-true"}, [], "trainer.precision: found 16-true"),
            marks=pytest.mark.slow,
        ),
        (
            callback("StochasticWeightAveraging", swa_lrs=1e-3, device=None),
            [],
            "found StochasticWeightAveraging; wanted the moving average",
        ),
        pytest.param(
            callback("GradientAccumulationScheduler", scheduling={0: 2}),
            [],
            "found GradientAccumulationScheduler; wanted the same number of packs",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            callback("EarlyStopping", monitor="val/nothing/ce"),
            [],
            "EarlyStopping.monitor: found val/nothing/ce; wanted one of",
            marks=pytest.mark.slow,
        ),
        (
            callback("ModelCheckpoint", monitor="val_loss"),
            [],
            "ModelCheckpoint.monitor: found val_loss; wanted one of",
        ),
        (
            {"val_check_interval": 1.0, "check_val_every_n_epoch": None},
            [],
            "trainer: found options that Lightning refuses (`val_check_interval`",
        ),
        pytest.param(
            {"strategy": "fsdp"},
            [],
            "trainer: found options that Lightning refuses (The strategy `fsdp`",
            marks=pytest.mark.slow,
        ),
        ({}, ["--seed_everything=-1"], "seed_everything: found -1; wanted 0 or more"),
        (
            {"logger": MISSING},
            [],
            "trainer: found a class whose package is missing",
        ),
    ],
)
def test_refused_before_the_network_is_loaded(
    trainer: dict[str, Any],
    options: list[str],
    message: str,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_to_load(monkeypatch)
    run = Run(folder=tmp_path / "run", shards=[shards])
    [_, _, path] = run.words()
    content = yaml.safe_load(Path(path).read_text())
    del content["trainer"]["callbacks"]
    content["trainer"] |= {"enable_checkpointing": True, **trainer}
    content["data"]["init_args"]["packs_per_step"] = 1
    Path(path).write_text(yaml.safe_dump(content))
    status = main(["fit", "--config", path, *options])
    errors = capsys.readouterr().err
    assert status == 1
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors
