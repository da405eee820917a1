"""Image sizes: those of the training unless others are set, and a word if they differ."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.images.trained import TrainedImages
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel.options import ImageOptions
from mathcanvas_lightning.model.config import BagelConfig

TRAINED = TrainedImages(
    vae_transform=ImageTransform(max_image_size=96, min_image_size=48),
    vit_transform=ImageTransform(max_image_size=112, min_image_size=56, image_stride=14),
    interpolate_positions=True,
)
SMALL = ImageTransform(max_image_size=128, min_image_size=64)


def recorded(folder: Path, trained: Any) -> BagelConfig:
    """A configuration that was written to a directory and read back."""
    for name, content in BagelConfig.preset("tiny", trained_images=trained).files().items():
        (folder / name).write_text(json.dumps(content))
    return BagelConfig.from_directory(folder)


def test_sizes_of_the_training_are_the_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = recorded(tmp_path, TRAINED.to_json())
    assert json.loads((tmp_path / "config.json").read_text())["interpolate_pos"] is True
    for given in (ImageOptions(), ImageOptions(vae_transform=TRAINED.vae_transform)):
        given.warn_of_sizes(config)
        assert given.completed(config) == TRAINED
    assert not caplog.records


def test_other_sizes_are_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = recorded(tmp_path, TRAINED.to_json())
    given = ImageOptions(vae_transform=SMALL, interpolate_positions=False)
    given.warn_of_sizes(config)
    completed = given.completed(config)
    assert completed.vae_transform == SMALL
    assert completed.vit_transform == TRAINED.vit_transform
    assert not completed.interpolate_positions
    assert caplog.messages == [
        "vae_transform is 64 to 128 pixels in steps of 16, but the model was trained with 48 to 96 "
        "pixels in steps of 16; remove vae_transform to use the trained sizes",
        "interpolate_positions is False, but the model was trained with True; remove "
        "interpolate_positions to use the trained sizes",
    ]


@pytest.mark.parametrize(("preset", "warns"), [("7b", True), ("tiny", False)])
def test_a_model_without_recorded_sizes(
    preset: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The published sizes; those of the demo are far too small for the 7B model."""
    config = BagelConfig.preset(preset)
    assert ImageOptions().completed(config) == TrainedImages(
        vae_transform=ImageTransform(), vit_transform=ImageTransform(image_stride=14)
    )
    ImageOptions().warn_of_sizes(config)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        ImageOptions(vae_transform=SMALL).warn_of_sizes(config)
    assert [("shrinks pictures to 128 pixels" in text) for text in caplog.messages] == [
        True
    ] * warns


@pytest.mark.parametrize("broken", [{}, {"vae_transform": {"size": 1}}, [3], {"vae_transform": 3}])
def test_broken_sizes_are_named(tmp_path: Path, broken: Any) -> None:
    recorded(tmp_path, None)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"trained_images": broken}))
    config = BagelConfig.from_directory(tmp_path)
    with pytest.raises(ConfigError, match=r"trained_images in config\.json"):
        ImageOptions().completed(config)
