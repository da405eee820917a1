"""`predict --run`: settings from the run, below those of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mathcanvas_lightning.cli.settings import run_model
from mathcanvas_lightning.cli.settings.run_model import run_settings
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.config import BagelConfig

VAE, VIT = {"max_image_size": 96}, {"max_image_size": 112}
DATA = {
    "train": [{"path": "x", "vae_transform": VAE, "vit_transform": VIT}],
    "max_num_tokens_per_sample": 1024,
    "dropout": {"text": 0.0, "vit": 0.0, "vae": 0.0},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": DATA}}))
    write_config(folder / "exports" / "step7-ema", BagelConfig.preset("tiny"))
    monkeypatch.setattr(run_model, "exported", lambda run: run.exports / "step7-ema")
    return folder


def write_config(folder: Path, config: BagelConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in config.files().items():
        (folder / name).write_text(json.dumps(content))


def settings(words: list[str]) -> tuple[list[str], Any]:
    with run_settings(words) as given:
        place = given.index("--config", len(given) - given[::-1].index("--config") - 1)
        path = Path(given[place + 1])
        content = yaml.safe_load(path.read_text())
    assert not path.exists()
    return [word if word != str(path) else "RUN" for word in given], content


def test_model_and_geometry_of_the_run(run: Path) -> None:
    given, content = settings(["predict", "--run", "a", "--input", "in/q.csv", "--x", "1"])
    assert given == ["predict", "--config", "RUN", "--x", "1"]
    backend = content["model"]["init_args"]["backend"]["init_args"]
    assert backend == {
        "checkpoint": "runs/a/exports/step7-ema",
        "vae_transform": VAE,
        "vit_transform": VIT,
        "max_context_tokens": 1024,
        "drawing": {"text_scale": 1.0, "image_scale": 1.0},
    }
    [source] = content["data"]["init_args"]["inputs"]
    assert source == {"path": "in/q.csv", "output": "runs/a/answers/q.jsonl"}


def test_sizes_in_the_export_need_no_setting(run: Path) -> None:
    trained = {"vae_transform": VAE, "vit_transform": VIT}
    config = BagelConfig.preset("tiny", trained_images=trained)
    write_config(run / "exports" / "step7-ema", config)
    _, content = settings(["predict", "--run", "a", "--input", "q.jsonl"])
    assert "vae_transform" not in content["model"]["init_args"]["backend"]["init_args"]


def test_a_run_with_dropout_is_guided(run: Path) -> None:
    for dropout in ({"dropout": {"text": 0.1}}, {}):
        data = {**{k: v for k, v in DATA.items() if k != "dropout"}, **dropout}
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": data}}))
        _, content = settings(["predict", "--run", "a", "--input", "q.jsonl"])
        assert "drawing" not in content["model"]["init_args"]["backend"]["init_args"]


def test_files_come_before_the_run_and_options_after_it(run: Path) -> None:
    words = ["predict", "--y=2", "--run=a", "--config", "one.yaml", "--config=two.yaml", "--x", "1"]
    given, content = settings(words)
    assert given == [
        *("predict", "--y=2", "--config", "one.yaml", "--config=two.yaml"),
        *("--config", "RUN", "--x", "1"),
    ]
    assert "data" not in content


def test_other_words_stay() -> None:
    with run_settings(["predict", "--config", "a.yaml"]) as given:
        assert given == ["predict", "--config", "a.yaml"]
    with pytest.raises(ConfigError, match="no questions"), run_settings(["predict", "--run", "."]):
        pass
