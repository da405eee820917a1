"""Autoencoders learn pictures, and are written so that a model directory can use them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mathcanvas_lightning.demo.new_bagel import make_bagel
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import LatentVAE
from mathcanvas_lightning.training.autoencoder import autoencoder_loss, train_vae


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of coloured squares on white."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = np.full((32, 40, 3), 255, np.uint8)
        top, left = rng.integers(4, 16, size=2)
        pixels[top : top + 12, left : left + 12] = rng.integers(0, 255, size=3)
        (folder / f"{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number % 2}" / f"{number}.png")
    return folder


@pytest.mark.slow
def test_training_improves_the_error_and_writes_a_usable_autoencoder(
    pictures: Path, tmp_path: Path
) -> None:
    make_bagel(str(tmp_path / "model"), corpus=[__file__])
    report = train_vae(
        str(pictures), str(tmp_path / "model"), num_steps=60, batch_size=4, crop_px=32
    )
    assert report.psnr_db > report.first_psnr_db + 3
    config = BagelConfig.from_directory(tmp_path / "model")
    assert config.vae.scale_factor == pytest.approx(report.scale_factor)
    assert config.llm == BagelConfig.preset("tiny").llm  # the rest of config.json is kept
    vae = LatentVAE.from_checkpoint(tmp_path / "model", config.vae)
    with Image.open(pictures / "0" / "0.png") as picture:
        image = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    latents = torch.stack(vae.encode([image], None))
    assert latents.shape == (1, 16, 4, 5)
    assert vae.decode(latents).shape == (1, 3, 32, 40)


@pytest.mark.slow
def test_a_checkpoint_continues_from_its_weights(pictures: Path, tmp_path: Path) -> None:
    make_bagel(str(tmp_path / "model"), corpus=[__file__])
    report = train_vae(
        str(pictures),
        str(tmp_path / "out"),
        checkpoint=str(tmp_path / "model"),
        num_steps=10,
        batch_size=2,
        crop_px=32,
    )
    assert report.first_psnr_db > 15  # the shipped autoencoder knows coloured squares


@pytest.mark.slow
def test_the_seed_decides_the_weights(pictures: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_vae(
            str(pictures), str(tmp_path / name), num_steps=10, batch_size=2, crop_px=16, seed=seed
        )
    a, b, c = ((tmp_path / name / "ae.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_colour_errors_weigh_more_than_brightness_errors() -> None:
    images, zeros = torch.zeros(1, 3, 8, 8), torch.zeros(1, 16, 1, 1)
    brightness = images + 0.1
    colour = images + 0.1 * torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    assert autoencoder_loss(colour, images, zeros, zeros) > 2 * autoencoder_loss(
        brightness, images, zeros, zeros
    )
    assert autoencoder_loss(images, images, zeros, zeros) == 0


@pytest.mark.parametrize(
    "options", [{"num_steps": 1}, {"crop_px": 12}, {"batch_size": 0}, {"dtype": "int8"}]
)
def test_bad_settings(options: dict, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--"):
        train_vae(str(pictures), str(tmp_path), **options)


def test_bad_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 pictures"):
        train_vae(str(tmp_path), str(tmp_path / "out"))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png"):
        train_vae(str(tmp_path), str(tmp_path / "out"))
