"""Concatenates samples into one packed sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mathcanvas_lightning.batch import AttentionMode, PackedBatch, Split, TokenGeometry
from mathcanvas_lightning.data.images.resize import Pixels
from mathcanvas_lightning.data.sequence.roles import MARKERS, SplitKind
from mathcanvas_lightning.data.sequence.splits import PlannedSplit
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens

_MODES: dict[SplitKind, AttentionMode] = {
    "text": "causal",
    "noisy": "noise",
    "clean": "full",
    "vit": "full",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackItem:
    """A sample with the content of its splits, or a hole."""

    splits: tuple[PlannedSplit, ...] = ()
    """All splits in order, dropped ones included."""
    text_ids: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Element -> token ids, for texts that are kept."""
    vae_pixels: Mapping[int, Pixels] = field(default_factory=dict)
    """Element -> [H, W, 3], for images with noisy or clean latents."""
    vit_pixels: Mapping[int, Pixels] = field(default_factory=dict)
    """Element -> [H, W, 3], for images with a ViT split."""
    hole_tokens: int = 0
    """Length of a hole: padding without loss that replaces an unreadable sample."""


def pack_samples(
    items: Sequence[PackItem],
    geometry: TokenGeometry,
    special: SpecialTokens,
    *,
    interpolate_positions: bool = False,
) -> PackedBatch:
    """Concatenates samples.

    Args:
        items: One or more samples.
        geometry: Patch sizes and position tables of the model.
        special: Ids of the markers.
        interpolate_positions: Spread each image over the whole position table; otherwise rows and
            columns count from the corner of the table.

    Returns:
        The pack.
    """
    builder = _Builder(geometry, special, interpolate_positions)
    for item in items:
        builder.add(item)
    return builder.build()


def filler_pack(geometry: TokenGeometry, special: SpecialTokens) -> PackedBatch:
    """The smallest pack that runs every part of the model; it has no loss."""
    white = np.full((geometry.latent_patch_px, geometry.latent_patch_px, 3), 255, np.uint8)
    kinds: tuple[SplitKind, ...] = ("text", "clean", "vit")
    splits = tuple(
        PlannedSplit(kind=kind, element=i, droppable=False) for i, kind in enumerate(kinds)
    )
    patch = np.full((geometry.vit_patch_px, geometry.vit_patch_px, 3), 255, np.uint8)
    item = PackItem(splits=splits, text_ids={0: ()}, vae_pixels={1: white}, vit_pixels={2: patch})
    return pack_samples([item], geometry, special)


def positions_in_table(
    rows: int, columns: int, side: int, interpolate: bool
) -> npt.NDArray[np.int64]:
    """[rows * columns] positions of an image's tokens in a square table, row by row.

    Source: get_flattened_position_ids_extrapolate and _interpolate of BAGEL.
    """
    if interpolate:
        bounds = np.arange(1 / side, 1.0, 1 / side, dtype=np.float32)
        row, column = (
            np.searchsorted(bounds, np.arange(n, dtype=np.float32) / np.float32(n), side="right")
            for n in (rows, columns)
        )
    else:
        row, column = np.arange(rows), np.arange(columns)
    flat: npt.NDArray[np.int64] = (row[:, None] * side + column[None, :]).reshape(-1)
    return flat


class _Builder:
    def __init__(self, geometry: TokenGeometry, special: SpecialTokens, interpolate: bool) -> None:
        self._geometry, self._special, self._interpolate = geometry, special, interpolate
        self._offset = 0  # next token of the pack
        self._position = 0  # next rope position of the sample
        self._sample_lens: list[int] = []
        self._splits: list[Split] = []
        self._arrays: dict[str, list[npt.NDArray[np.generic]]] = {}
        self._vit_images: list[Pixels] = []
        self._vit_lens: list[int] = []
        self._latent_shapes: list[tuple[int, int]] = []
        self._latent_images: list[int] = []
        self._images: list[Tensor] = []
        self._image_of: dict[
            int, int
        ] = {}  # element of this sample -> number of the image in the pack

    def add(self, item: PackItem) -> None:
        start, self._position = self._offset, 0
        self._image_of = {}
        for split in item.splits:
            if split.dropped:
                self._position += split.kind != "text"  # a dropped image still takes its position
            elif split.kind == "text":
                self._add_text(split, item.text_ids[split.element])
            elif split.kind == "vit":
                self._add_vit(item.vit_pixels[split.element])
            else:
                self._add_latents(split, item.vae_pixels[split.element])
        if item.hole_tokens:
            self._add_hole(item.hole_tokens)
        self._sample_lens.append(self._offset - start)

    def build(self) -> PackedBatch:
        return PackedBatch(
            sample_lens=tuple(self._sample_lens),
            splits=tuple(self._splits),
            position_ids=self._joined("position_ids"),
            text_ids=self._joined("text_ids"),
            text_indexes=self._joined("text_indexes"),
            vit_patches=self._patches(),
            vit_position_ids=self._joined("vit_position_ids"),
            vit_indexes=self._joined("vit_indexes"),
            vit_lens=tuple(self._vit_lens),
            latent_shapes=tuple(self._latent_shapes),
            latent_image_ids=tuple(self._latent_images),
            latent_position_ids=self._joined("latent_position_ids"),
            latent_indexes=self._joined("latent_indexes"),
            timestep_logits=self._joined("timestep_logits", np.float32),
            images=tuple(self._images),
            ce_indexes=self._joined("ce_indexes"),
            ce_label_ids=self._joined("ce_label_ids"),
            ce_weights=self._joined("ce_weights", np.float32),
            mse_indexes=self._joined("mse_indexes"),
        )

    def _add_text(self, split: PlannedSplit, ids: Sequence[int]) -> None:
        special, start, num_ids = self._special, self._offset, len(ids)
        self._put("text_ids", np.array([special.bos, *ids, special.eos], np.int64))
        self._put("text_indexes", self._span(0, num_ids + MARKERS))
        self._put("position_ids", np.arange(self._position, self._position + num_ids + MARKERS))
        if split.loss:
            self._put("ce_indexes", self._span(0, num_ids + 1))
            self._put("ce_label_ids", np.array([*ids, special.eos], np.int64))
            self._put("ce_weights", np.full(num_ids + 1, (num_ids + 1) ** -0.5, np.float32))
        if split.action_id is not None:
            self._put("ce_indexes", np.array([start + num_ids + 1], np.int64))
            self._put("ce_label_ids", np.array([split.action_id], np.int64))
            self._put("ce_weights", np.ones(1, np.float32))
        self._position += num_ids + MARKERS
        self._close(num_ids + MARKERS, "text")

    def _add_vit(self, pixels: Pixels) -> None:
        patch = self._geometry.vit_patch_px
        rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
        self._vit_images.append(pixels)
        table = self._geometry.max_vit_side
        self._put("vit_position_ids", positions_in_table(rows, columns, table, self._interpolate))
        self._put("vit_indexes", self._span(1, rows * columns))
        self._vit_lens.append(rows * columns)
        self._add_image_tokens(rows * columns, "vit")

    def _add_latents(self, split: PlannedSplit, pixels: Pixels) -> None:
        patch, table = self._geometry.latent_patch_px, self._geometry.max_latent_side
        rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
        if split.element not in self._image_of:
            self._image_of[split.element] = len(self._images)
            self._images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        self._latent_images.append(self._image_of[split.element])
        self._latent_shapes.append((rows, columns))
        num_tokens = rows * columns
        self._put(
            "latent_position_ids", positions_in_table(rows, columns, table, self._interpolate)
        )
        self._put("latent_indexes", self._span(1, num_tokens))
        noisy = split.kind == "noisy"
        if noisy:
            self._put("mse_indexes", self._span(1, num_tokens))
        logit = split.timestep_logit if noisy else -np.inf
        self._put("timestep_logits", np.full(num_tokens, logit, np.float32))
        self._add_image_tokens(num_tokens, split.kind)

    def _add_image_tokens(self, num_tokens: int, kind: SplitKind) -> None:
        markers = [self._special.start_of_image, self._special.end_of_image]
        self._put("text_ids", np.array(markers, np.int64))
        self._put("text_indexes", self._offset + np.array([0, num_tokens + 1]))
        self._put("position_ids", np.full(num_tokens + MARKERS, self._position))
        self._position += kind != "noisy"
        self._close(num_tokens + MARKERS, kind)

    def _add_hole(self, num_tokens: int) -> None:
        self._put("text_ids", np.full(num_tokens, self._special.end_of_text, np.int64))
        self._put("text_indexes", self._span(0, num_tokens))
        self._put("position_ids", np.arange(num_tokens))
        self._close(num_tokens, "text")

    def _close(self, length: int, kind: SplitKind) -> None:
        self._splits.append(Split(length=length, attention_mode=_MODES[kind]))
        self._offset += length

    def _span(self, first: int, count: int) -> npt.NDArray[np.int64]:
        return np.arange(self._offset + first, self._offset + first + count)

    def _put(self, name: str, values: npt.NDArray[np.generic]) -> None:
        self._arrays.setdefault(name, []).append(values)

    def _joined(self, name: str, dtype: type[np.generic] = np.int64) -> Tensor:
        parts = self._arrays.get(name)
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, dtype))

    def _patches(self) -> Tensor:
        patch = self._geometry.vit_patch_px
        patches = np.empty((sum(self._vit_lens), 3 * patch**2), np.uint8)
        start = 0
        for pixels, count in zip(self._vit_images, self._vit_lens, strict=True):
            _cut(pixels, patch, patches[start : start + count])
            start += count
        return torch.from_numpy(patches)


def _cut(pixels: Pixels, patch: int, patches: npt.NDArray[np.uint8]) -> None:
    """Copies an image [H, W, 3] to patches [V, patch * patch * 3], row by row."""
    run = f"V{3 * patch}"  # the bytes of a row of a patch are copied as one item
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    source = np.ascontiguousarray(pixels).reshape(rows, patch, columns, 3 * patch).view(run)
    target = patches.reshape(rows, columns, patch, 3 * patch).view(run)
    target[...] = source.transpose(0, 2, 1, 3)
