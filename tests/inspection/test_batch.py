"""One pack of a run, from its YAML files."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mathcanvas_lightning.cli.main import run_command
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.inspection.batch import inspect_batch, load_datamodule
from tests.conftest import golden_folder
from tests.data.make_rows import interleaved_shards
from tests.parity.packs import need


def write(path: Path, content: Any) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> str:
    folder = interleaved_shards(tmp_path / "set", 20)
    arguments = {
        "tokenizer": str(need(golden_folder() / "tiny_bagel")),
        "train": [
            {
                "path": str(folder),
                "vae_transform": {"max_image_size": 64, "min_image_size": 32},
                "vit_transform": {
                    "max_image_size": 56,
                    "min_image_size": 28,
                    "image_stride": 14,
                },
            }
        ],
        "max_num_tokens": 400,
        "max_num_tokens_per_sample": 400,
        "index_workers": 0,
        "workers": {"num_workers": 0},
    }
    section = {"class_path": "mathcanvas_lightning.MathCanvasDataModule", "init_args": arguments}
    return write(tmp_path / "run.yaml", {"data": section, "trainer": {"max_epochs": 3}})


def test_report_and_picture(config: str, tmp_path: Path) -> None:
    png = tmp_path / "pack.png"
    report = inspect_batch([config], step=1, slot=1, packs_per_step=2, png=str(png))
    assert report.batch.step == 1
    assert report.blocks[-1].end == report.batch.pack.sequence_length
    assert sum(block.ce_tokens for block in report.blocks) == len(report.batch.pack.ce_indexes)
    assert report.num_samples == 20
    assert report.num_steps == -(-report.num_packs // 2)
    with Image.open(png) as picture:
        assert min(picture.size) > 300
    others = [
        inspect_batch([config], step=step, slot=slot, packs_per_step=2, epoch=epoch).batch
        for epoch, step, slot in ((0, 0, 1), (0, 1, 0), (1, 1, 1))
    ]
    assert all(other.samples != report.batch.samples for other in others)


def test_command(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("inspect-batch", ["--config", config, "--step", "1"]) == 0
    out = capsys.readouterr().out
    assert "step 1 of" in out
    assert "20 samples in" in out
    assert run_command("inspect-batch", ["--config", config, "--step", "99"]) == 1
    assert "--step: found 99; wanted 0 to" in capsys.readouterr().err


def test_overlays_and_geometry(config: str, tmp_path: Path) -> None:
    overlay = write(tmp_path / "more.yaml", {"data": {"seed": 7, "dropout": {"text": 0.3}}})
    data = load_datamodule([config, overlay])
    assert (data.seed, data.dropout.text, data.dropout.vit) == (7, 0.3, 0.1)
    assert data.budget.max_num_tokens == 400
    assert data.geometry.max_latent_side < 64  # that of the checkpoint, not of BAGEL-7B


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": {"tokeniser": "x"}}, "tokeniser"),
        ({"data": [1]}, "no section data"),
        ({"data": {"tokenizer": "x", "max_num_tokens": "many"}}, "many"),
        ({"data": {"tokenizer": "x", "train": [{"path": "x", "format": "csv"}]}}, "csv"),
    ],
)
def test_configurations_that_are_wrong(content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "wrong.yaml", content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_datamodule([path])
    assert "wrong.yaml" in str(caught.value)


def test_configurations_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_datamodule([str(tmp_path / "none.yaml")])
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_datamodule([str(tmp_path / "broken.yaml")])
    with pytest.raises(ConfigError, match="no file"):
        load_datamodule([])
