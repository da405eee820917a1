"""The input of the model: one packed sequence of tokens and its description.

Shape letters: T packed tokens, X text tokens, L latent tokens, V ViT patches, P patch dimension,
E tokens with text loss, M tokens with image loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

AttentionMode = Literal["causal", "full", "noise"]
"""Attention within a split: "causal": to earlier tokens; "full" and "noise": to all tokens. Other
splits can't attend to a "noise" split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Consecutive tokens of one kind: a text or an image, with their two markers."""

    length: int
    """Number of tokens, markers included."""
    attention_mode: AttentionMode
    """Attention within the split."""

    def __post_init__(self) -> None:
        """Checks the mode.

        Raises:
            ValueError: If the mode is unknown.
        """
        if self.attention_mode not in get_args(AttentionMode):
            raise ValueError(
                f"attention mode {self.attention_mode!r} is not one of causal, full, noise"
            )


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class TokenGeometry:
    """Patch sizes and position tables of images; data and model must use the same."""

    vit_patch_px: int
    """Side of a ViT patch, in pixels."""
    latent_patch_px: int
    """Side of one latent token's image area, in pixels: VAE downsampling times latent patch."""
    max_vit_side: int
    """Side of the ViT position table, in patches."""
    max_latent_side: int
    """Side of the latent position table, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Samples packed into one sequence. Index tensors hold int64 positions in the sequence.

    Without texts with loss, ViT images, latents or image loss, the tensors for them are empty.
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

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """Copies the batch with all tensors to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        """Copies the batch with all tensors to page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> "PackedBatch":
        changed: dict[str, Any] = {}
        for member in fields(self):
            value = getattr(self, member.name)
            if isinstance(value, Tensor):
                changed[member.name] = function(value)
        return replace(self, **changed, images=tuple(function(image) for image in self.images))


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


def make_splits(lengths: Sequence[int], modes: Sequence[AttentionMode]) -> tuple[Split, ...]:
    """Makes splits from two lists of equal length."""
    return tuple(
        Split(length=length, attention_mode=mode)
        for length, mode in zip(lengths, modes, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfo:
    """Origin of a sample in a pack."""

    uid: str
    """Id, unique within the data set."""
    dataset: str
    """Name of the data set."""
    num_tokens: int
    """Number of its tokens in the pack."""
    is_hole: bool = False
    """Whether padding replaces the sample, because it was unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTotals:
    """Denominators of the losses: numbers of tokens, or sums of weights."""

    ce_tokens: int = 0
    """Number of positions with a text loss."""
    ce_square: float = 0.0
    """Sum of their weights 1 / sqrt(n); n is the number of tokens of the text."""
    ce_sample: float = 0.0
    """Sum of their weights 1 / n."""
    mse_tokens: int = 0
    """Number of latent tokens with an image loss."""

    @classmethod
    def of(cls, pack: PackedBatch) -> "LossTotals":
        """The denominators of one pack."""
        return cls(
            ce_tokens=len(pack.ce_indexes),
            ce_square=float(pack.ce_weights.sum(dtype=torch.float64)),
            ce_sample=float(pack.ce_weights.double().square().sum()),
            mse_tokens=len(pack.mse_indexes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One rank's pack, with everything that a training step needs."""

    pack: PackedBatch
    """The packed tokens."""
    samples: tuple[SampleInfo, ...]
    """Origin of each sample; empty for a filler."""
    image_seeds: tuple[int, ...]
    """Seed of the noise of each of `pack.images`, equal on all ranks and in all runs."""
    step_totals: LossTotals
    """Planned totals of this optimizer step, over the packs of all ranks, holes included."""
    epoch: int
    """Epoch, from 0."""
    step: int
    """Optimizer step within the epoch, from 0."""

    @property
    def is_filler(self) -> bool:
        """Whether it has no samples; fillers give all ranks the same number of micro-batches."""
        return not self.samples

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "MicroBatch":
        """Copies the micro-batch with all tensors to a device."""
        return replace(self, pack=self.pack.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MicroBatch":
        """Copies the micro-batch with all tensors to page-locked memory."""
        return replace(self, pack=self.pack.pin_memory())
