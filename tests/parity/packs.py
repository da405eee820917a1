"""Reads the packs of the reference as `PackedBatch`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mathcanvas_lightning.batch import PackedBatch, make_splits
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.flow import patchify, timesteps_from_logits


@dataclass(frozen=True)
class GoldenPack:
    """A pack and the images of all its VAE items, padded to one size."""

    batch: PackedBatch
    padded_images: Tensor


def need(path: Path) -> Path:
    """The path, or a skipped test."""
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def load_pack(golden: Path, name: str, config: BagelConfig) -> GoldenPack:
    """Reads `<name>.json` and `<name>.safetensors`."""
    about = json.loads(need(golden / f"{name}.json").read_text())
    tensors = load_file(need(golden / f"{name}.safetensors"))

    def get(key: str, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return tensors.get(key, torch.empty(*(shape or (0,)), dtype=dtype))

    shapes = tuple(tuple(shape) for shape in about["patchified_vae_latent_shapes"])
    padded = get("padded_images", 0, 3, 0, 0, dtype=torch.float32)
    image_ids = same_as_before(padded)
    side = config.geometry.latent_patch_px
    images: dict[int, Tensor] = {}
    for item, image in enumerate(image_ids):
        rows, columns = shapes[item]
        images[image] = padded[item][:, : rows * side, : columns * side]
    batch = PackedBatch(
        sample_lens=tuple(about["sample_lens"]),
        splits=make_splits(about["split_lens"], about["attn_modes"]),
        position_ids=tensors["packed_position_ids"],
        text_ids=tensors["packed_text_ids"],
        text_indexes=tensors["packed_text_indexes"],
        vit_patches=tensors.get(  # packs made with dropout hold no pixels
            "packed_vit_tokens",
            torch.zeros(len(get("packed_vit_token_indexes")), config.vit.patch_dim),
        ),
        vit_position_ids=get("packed_vit_position_ids"),
        vit_indexes=get("packed_vit_token_indexes"),
        vit_lens=tuple(get("vit_token_seqlens").tolist()),
        latent_shapes=shapes,
        latent_image_ids=tuple(image_ids) or (0,) * len(shapes),
        latent_position_ids=get("packed_latent_position_ids"),
        latent_indexes=get("packed_vae_token_indexes"),
        timestep_logits=get("packed_timesteps", dtype=torch.float32),
        images=tuple(images[i] for i in sorted(images)),
        ce_indexes=get("ce_loss_indexes"),
        ce_label_ids=get("packed_label_ids"),
        ce_weights=get("ce_loss_weights", dtype=torch.float32),
        mse_indexes=get("mse_loss_indexes"),
    )
    return GoldenPack(batch, padded)


def same_as_before(images: Tensor) -> list[int]:
    """Numbers images, equal neighbours alike."""
    ids: list[int] = []
    for index in range(len(images)):
        same = index > 0 and torch.equal(images[index], images[index - 1])
        ids.append(ids[-1] if same else (ids[-1] + 1 if ids else 0))
    return ids


def forward_inputs(
    pack: GoldenPack, forward: dict[str, Tensor], config: BagelConfig, settings: dict[str, Any]
) -> dict[str, Tensor]:
    """The latents, noise and timesteps that the reference used."""
    tokens = [
        patchify(latent, config.latent_patch_size)
        .unflatten(0, tuple(s // config.latent_patch_size for s in latent.shape[1:]))[
            :rows, :columns
        ]
        .flatten(0, 1)
        for latent, (rows, columns) in zip(
            forward["padded_latent"], pack.batch.latent_shapes, strict=True
        )
    ]
    timesteps = timesteps_from_logits(pack.batch.timestep_logits, settings["timestep_shift"])
    return {"latents": torch.cat(tokens), "noise": forward["noise"], "timesteps": timesteps}
