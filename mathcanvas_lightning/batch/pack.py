"""The input of the model: one packed sequence of tokens and its description.

Shape letters: T packed tokens, X text tokens, L latent tokens, V ViT patches, P patch dimension,
E tokens with text loss, M tokens with drawing loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from mathcanvas_lightning.batch.buffer import (
    Part,
    find_buffer,
    find_parts,
    make_views,
    to_buffer,
)
from mathcanvas_lightning.batch.layout import PackLayout, Split, make_pack_layout


@dataclass(frozen=True, kw_only=True)  # no slots: the layout is cached
class PackedBatch:
    """Samples packed into one sequence. Index tensors hold int64 positions in the sequence.

    Without texts with loss, ViT images, latents or drawing loss, the tensors for them are empty.
    """

    sample_lens: tuple[int, ...]
    """Number of tokens of each sample; the sum is T."""
    splits: tuple[Split, ...]
    """All splits in order; their lengths sum to T, and none crosses the end of a sample."""
    position_ids: Tensor
    """[T] int64, rope positions; each sample starts at 0."""
    text_ids: Tensor
    """[X] int64, token ids of texts and image markers."""
    text_indexes: Tensor
    """[X] positions of these tokens."""
    vit_patches: Tensor
    """[V, P] flattened patches in (row, column, channel) order: uint8 levels as made by data, a
    quarter of the size of floats, or floats from -1 to 1."""
    vit_position_ids: Tensor
    """[V] int64, row * side + column of the position table."""
    vit_indexes: Tensor
    """[V] positions of the ViT patches."""
    vit_lens: tuple[int, ...]
    """Number of patches of each ViT image; the sum is V."""
    latent_shapes: tuple[tuple[int, int], ...]
    """(rows, columns) of latent tokens of each VAE item, noisy or clean; the products sum to L."""
    latent_image_ids: tuple[int, ...]
    """Number in `images` of each VAE item; noisy and clean items of a drawing share an image."""
    latent_position_ids: Tensor
    """[L] int64, row * side + column of the position table."""
    latent_indexes: Tensor
    """[L] positions of the latent tokens."""
    timestep_logits: Tensor
    """[L] float: a standard normal number for tokens of noisy images, -inf for clean images."""
    images: tuple[Tensor, ...]
    """[3, H, W] the images of the VAE items, each once: uint8 levels, or floats from -1 to 1."""
    ce_indexes: Tensor
    """[E] positions that predict a token."""
    ce_label_ids: Tensor
    """[E] int64, ids of the predicted tokens."""
    ce_weights: Tensor
    """[E] float, used only if losses are reweighted."""
    mse_indexes: Tensor
    """[M] positions of noisy latents, which predict a velocity."""

    def __repr__(self) -> str:
        facts = ", ".join(f"{number:,} {name}" for name, number in self._counts().items())
        return f"PackedBatch({facts})"

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{n}</th><td>{count:,}</td></tr>" for n, count in self._counts().items())
        return f"<table>{''.join(rows)}</table>"

    def _counts(self) -> dict[str, int]:
        return {
            "samples": len(self.sample_lens),
            "tokens": sum(self.sample_lens),
            "text tokens": len(self.text_ids),
            "ViT patches": len(self.vit_indexes),
            "latent tokens": len(self.latent_indexes),
            "tokens with text loss": len(self.ce_indexes),
            "tokens with drawing loss": len(self.mse_indexes),
        }

    def __post_init__(self) -> None:
        """Checks that the lengths of the parts are consistent.

        Raises:
            ValueError: If they are not.
        """
        total = sum(self.sample_lens)
        for name, found, wanted in (
            ("splits", sum(split.length for split in self.splits), total),
            ("position_ids", len(self.position_ids), total),
            ("text_indexes", len(self.text_indexes), len(self.text_ids)),
            ("vit_lens", sum(self.vit_lens), len(self.vit_indexes)),
            ("vit_patches", len(self.vit_patches), len(self.vit_indexes)),
            ("vit_position_ids", len(self.vit_position_ids), len(self.vit_indexes)),
            ("latent_shapes", sum(h * w for h, w in self.latent_shapes), len(self.latent_indexes)),
            ("latent_image_ids", len(self.latent_image_ids), len(self.latent_shapes)),
            ("latent_position_ids", len(self.latent_position_ids), len(self.latent_indexes)),
            ("timestep_logits", len(self.timestep_logits), len(self.latent_indexes)),
            ("ce_label_ids", len(self.ce_label_ids), len(self.ce_indexes)),
            (
                "text, ViT and latent tokens",
                len(self.text_ids) + len(self.vit_indexes) + len(self.latent_indexes),
                total,
            ),
        ):
            if found != wanted:
                raise ValueError(f"{name}: found {found}, wanted {wanted}")

    @property
    def sequence_length(self) -> int:
        """Number of packed tokens, T."""
        return sum(self.sample_lens)

    def noisy_latents(self) -> Tensor:
        """[L] bool: whether a latent token belongs to a noisy image."""
        return torch.isfinite(self.timestep_logits)

    @cached_property
    def layout(self) -> PackLayout:
        """The layout of the tokens; it moves with the batch, also to other processes."""
        return make_pack_layout(
            self.splits,
            self.sample_lens,
            torch.cat([self.text_indexes, self.vit_indexes]),
            self.latent_indexes,
            self.vit_lens,
            self.latent_shapes,
            self.noisy_latents(),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """Copies the batch with all tensors to a device.

        Args:
            device: The device.
            non_blocking: Don't wait for the copy; useful from page-locked memory only.

        Returns:
            The copy.
        """

        def copy(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        tensors = self._tensors()
        buffer = find_buffer(tensors)
        if buffer is None:
            return self._with([copy(tensor) for tensor in tensors])
        return self._with(make_views(copy(buffer), find_parts(tensors)))

    def pin_memory(self) -> "PackedBatch":
        """Copies the batch with all tensors to one buffer of page-locked memory."""
        tensors = self._tensors()
        return self._with(make_views(to_buffer(tensors).pin_memory(), find_parts(tensors)))

    def __reduce__(self) -> tuple[Any, ...]:
        # As one buffer: torch sends each tensor to another process by a file descriptor.
        tensors = self._tensors()
        others = self._with([None] * len(tensors)).__dict__
        return _rebuild, (to_buffer(tensors), find_parts(tensors), others)

    def _tensors(self) -> list[Tensor]:
        """All tensors, those of the layout included if it was made."""
        layout = self.__dict__.get("layout")
        return [
            *(getattr(self, name) for name in _tensor_fields(PackedBatch)),
            *self.images,
            *(getattr(layout, name) for name in _tensor_fields(PackLayout) if layout),
        ]

    def _with(self, tensors: Sequence[Any]) -> "PackedBatch":
        """The same batch with other tensors, in the order of `_tensors`."""
        rest = iter(tensors)
        members: dict[str, Any] = dict(zip(_tensor_fields(PackedBatch), rest, strict=False))
        members["images"] = tuple(next(rest) for _ in self.images)
        if "layout" in self.__dict__:
            found = dict(zip(_tensor_fields(PackLayout), rest, strict=True))
            members["layout"] = replace(self.layout, **found)
        return _rebuild_with(self.__dict__ | members)


@cache
def _tensor_fields(kind: type) -> tuple[str, ...]:
    return tuple(member.name for member in fields(kind) if member.type is Tensor)


def _rebuild_with(members: Mapping[str, Any]) -> PackedBatch:
    """A batch from its members, which were checked before."""
    batch = object.__new__(PackedBatch)
    batch.__dict__.update(members)
    return batch


def _rebuild(buffer: Tensor, parts: Sequence[Part], others: Mapping[str, Any]) -> PackedBatch:
    return _rebuild_with(others)._with(make_views(buffer, parts))


def to_unit_range(levels: Tensor) -> Tensor:
    """Maps uint8 levels 0..255 to -1..1, in float32 like the reference.

    Args:
        levels: uint8 levels; a float tensor is returned unchanged.

    Returns:
        A float tensor of the same shape.
    """
    if levels.is_floating_point():
        return levels
    return levels.to(torch.float32).div_(255).sub_(0.5).div_(0.5)
