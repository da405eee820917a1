"""Pictures and packs as image blocks: the same preprocessing as in the native generator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.batch import PackedBatch, TokenGeometry
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.pack import PackItem, pack_samples
from mathcanvas_lightning.data.sequence.splits import PlannedSplit
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.vllm_bagel.blocks import ImageBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRules:
    """How a picture becomes a block: the same as in the native generator."""

    geometry: TokenGeometry
    special: SpecialTokens
    vae_transform: ImageTransform
    """Resizes the picture first."""
    vit_transform: ImageTransform
    """Resizes the result for the ViT."""
    interpolate_positions: bool = False

    def vit_block(self, picture: Image.Image) -> ImageBlock:
        """Converts a picture to a block for understanding.

        Args:
            picture: RGB or grey image without transparency.

        Raises:
            InputError: If the picture has more rows or columns than the position table.
        """
        resized = Image.fromarray(self.vae_transform(picture))
        pixels = self.vit_transform(resized)
        patch, side = self.geometry.vit_patch_px, self.geometry.max_vit_side
        rows, columns = (length // patch for length in pixels.shape[:2])
        if max(rows, columns) > side and not self.interpolate_positions:
            raise InputError(
                f"a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels",
                found=f"{columns} x {rows} tokens of {patch} pixels",
                wanted=f"at most {side} per side, the size of the model's position table",
                remedy="Lower max_image_size of vae_transform and vit_transform in "
                "mm_processor_kwargs.",
            )
        split = PlannedSplit(kind="vit", element=0, droppable=False)
        pack = pack_samples(
            [PackItem(splits=(split,), vit_pixels={0: pixels})],
            self.geometry,
            self.special,
            interpolate_positions=self.interpolate_positions,
        )
        return blocks_of_pack(pack)[0]


def blocks_of_pack(pack: PackedBatch, latents: Tensor | None = None) -> list[ImageBlock]:
    """All images of a pack as blocks, in the order of the sequence.

    Args:
        pack: Pack on the CPU, without noisy images.
        latents: [L, P] latent tokens of `pack_latents`, if the pack has VAE images.

    Returns:
        One block for each image split.
    """
    vit = _parts(pack.vit_lens, pack.vit_patches, pack.vit_position_ids)
    found = [
        (first, ImageBlock(kind="vit", features=features, position_ids=ids))
        for first, (features, ids) in zip(
            _firsts(pack.vit_lens, pack.vit_indexes), vit, strict=True
        )
    ]
    lens = [rows * columns for rows, columns in pack.latent_shapes]
    if lens:
        assert latents is not None, "a pack with VAE images needs their latents"
        vae = _parts(lens, latents.float(), pack.latent_position_ids)
        found += [
            (first, ImageBlock(kind="vae", features=features, position_ids=ids))
            for first, (features, ids) in zip(_firsts(lens, pack.latent_indexes), vae, strict=True)
        ]
    return [block for _, block in sorted(found, key=lambda pair: pair[0])]


def _firsts(lens: Sequence[int], indexes: Tensor) -> list[int]:
    starts = accumulate(lens, initial=0)
    return [int(indexes[start]) for _, start in zip(lens, starts, strict=False)]


def _parts(
    lens: Sequence[int], features: Tensor, ids: Tensor
) -> Iterator[tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]]:
    for part, positions in zip(features.split(list(lens)), ids.split(list(lens)), strict=True):
        yield part.cpu().numpy().copy(), positions.cpu().numpy().copy()
