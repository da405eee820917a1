"""PackedBatch: consistent parts, moved together."""

import dataclasses

import pytest
import torch

from mathcanvas_lightning.batch import to_unit_range
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.synthetic import synthetic_pack

CONFIG = BagelConfig.preset("tiny")
BATCH = synthetic_pack([["question", "clean", "vit", "answer", "noisy"], ["answer"]], CONFIG)


def test_moves_with_all_tensors() -> None:
    moved = BATCH.to("meta")
    tensors = [getattr(moved, f.name) for f in dataclasses.fields(moved)]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert {image.device.type for image in moved.images} == {"meta"}
    assert moved.sample_lens == BATCH.sample_lens
    assert BATCH.text_ids.device.type == "cpu"


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BATCH.sample_lens = ()  # type: ignore[misc]


def test_noisy_latents() -> None:
    assert int(BATCH.noisy_latents().sum()) == len(BATCH.mse_indexes)


@pytest.mark.parametrize(
    "name",
    [
        "position_ids",
        "text_indexes",
        "vit_patches",
        "vit_position_ids",
        "latent_position_ids",
        "timestep_logits",
        "ce_label_ids",
        "sample_lens",
        "splits",
        "vit_lens",
        "latent_shapes",
        "latent_image_ids",
    ],
)
def test_inconsistent_parts_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="found"):
        dataclasses.replace(BATCH, **{name: getattr(BATCH, name)[:-1]})


def test_levels_map_to_the_unit_range() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    wanted = (levels.float() / 255 - 0.5) / 0.5
    assert torch.equal(to_unit_range(levels), wanted)
    assert to_unit_range(wanted) is wanted
