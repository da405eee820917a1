"""What data hands to the model: one packed sequence of tokens, and all the model asks of it.

Shape letters: T packed tokens, X text tokens, L latent tokens, V ViT patches, P patch dimension,
E tokens with text loss, M tokens with image loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

AttentionMode = Literal["causal", "full", "noise"]
"""How the tokens of a split see each other: each those before it, or all of them; tokens of a
"noise" split are seen by no other split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A run of tokens of one kind: a text, or an image with its two markers."""

    length: int
    """Tokens, markers included."""
    attention_mode: AttentionMode

    def __post_init__(self) -> None:
        """Checks the mode.

        Raises:
            ValueError: If it is none of the known ones.
        """
        if self.attention_mode not in get_args(AttentionMode):
            raise ValueError(
                f"attention mode {self.attention_mode!r} is none of causal, full, noise"
            )


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class TokenGeometry:
    """How images become tokens; data and model must agree on it."""

    vit_patch_px: int
    """Side of a ViT patch."""
    latent_patch_px: int
    """Side of the image area behind one latent token: VAE downsampling times latent patch."""
    max_vit_side: int
    """Side of the ViT position table, in patches."""
    max_latent_side: int
    """Side of the latent position table, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Samples packed into one sequence. Index tensors hold int64 positions in it.

    A pack may lack texts with loss, ViT images, latents, or image loss: those tensors are empty.
    """

    sample_lens: tuple[int, ...]
    """Tokens of each sample; they sum to T."""
    splits: tuple[Split, ...]
    """All splits in order; they sum to T, and none crosses a sample's end."""
    position_ids: Tensor
    """[T] int64, rope positions, from 0 in each sample."""
    text_ids: Tensor
    """[X] int64, token ids of texts and image markers."""
    text_indexes: Tensor
    """[X] where they stand."""
    vit_patches: Tensor
    """[V, P] flattened patches in (row, column, channel) order: uint8 levels as data makes them, a
    quarter of what floats take on their way to the model, or float from -1 to 1."""
    vit_position_ids: Tensor
    """[V] int64, row * side + column of the position table."""
    vit_indexes: Tensor
    """[V] where they stand."""
    vit_lens: tuple[int, ...]
    """Patches of each ViT image; they sum to V."""
    latent_shapes: tuple[tuple[int, int], ...]
    """(rows, columns) of latent tokens of each VAE item, noisy or clean; they sum to L."""
    latent_image_ids: tuple[int, ...]
    """Which of `images` each VAE item shows: noisy and clean items of a drawing share one."""
    latent_position_ids: Tensor
    """[L] int64, row * side + column of the position table."""
    latent_indexes: Tensor
    """[L] where they stand."""
    timestep_logits: Tensor
    """[L] float: a normal draw at each token of a noisy image, -inf at those of clean ones."""
    images: tuple[Tensor, ...]
    """[3, H, W] the images behind the VAE items, each once: uint8 levels, or float from -1 to 1."""
    ce_indexes: Tensor
    """[E] positions that predict a token."""
    ce_label_ids: Tensor
    """[E] int64, the tokens they predict."""
    ce_weights: Tensor
    """[E] float, used only when losses are reweighted."""
    mse_indexes: Tensor
    """[M] positions of noisy latents, which predict a velocity."""

    def __post_init__(self) -> None:
        """Checks that the parts fit together.

        Raises:
            ValueError: If lengths disagree.
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
        """T."""
        return sum(self.sample_lens)

    def noisy_latents(self) -> Tensor:
        """[L] bool: which latent tokens belong to noisy images."""
        return torch.isfinite(self.timestep_logits)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """The same batch with all tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        """The same batch with all tensors in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> "PackedBatch":
        changed: dict[str, Any] = {}
        for member in fields(self):
            value = getattr(self, member.name)
            if isinstance(value, Tensor):
                changed[member.name] = function(value)
        return replace(self, **changed, images=tuple(function(image) for image in self.images))


def to_unit_range(levels: Tensor) -> Tensor:
    """What the towers take: 0..255 mapped to -1..1, in float32 as the reference computes it.

    Args:
        levels: uint8; a float tensor is taken as mapped already.

    Returns:
        The same shape, floating.
    """
    if levels.is_floating_point():
        return levels
    return levels.to(torch.float32).div_(255).sub_(0.5).div_(0.5)


def make_splits(lengths: Sequence[int], modes: Sequence[AttentionMode]) -> tuple[Split, ...]:
    """Splits from two lists of equal length."""
    return tuple(
        Split(length=length, attention_mode=mode)
        for length, mode in zip(lengths, modes, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfo:
    """Where a sample of a pack comes from."""

    uid: str
    """Its id, unique within its data set."""
    dataset: str
    """Name of its data set."""
    num_tokens: int
    """That it takes in the pack."""
    is_hole: bool = False
    """Whether padding stands in its place, because it couldn't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTotals:
    """What losses are divided by: tokens, or their weights."""

    ce_tokens: int = 0
    """Positions with a text loss."""
    ce_square: float = 0.0
    """Sum of their weights 1 / sqrt(n), n tokens of a text."""
    ce_sample: float = 0.0
    """Sum of their weights 1 / n."""
    mse_tokens: int = 0
    """Latent tokens with an image loss."""

    @classmethod
    def of(cls, pack: PackedBatch) -> "LossTotals":
        """Those of one pack."""
        return cls(
            ce_tokens=len(pack.ce_indexes),
            ce_square=float(pack.ce_weights.sum(dtype=torch.float64)),
            ce_sample=float(pack.ce_weights.double().square().sum()),
            mse_tokens=len(pack.mse_indexes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A pack on its way to one rank, with all that a training step needs to know about it."""

    pack: PackedBatch
    """The tokens."""
    samples: tuple[SampleInfo, ...]
    """Where its samples come from; none for a filler."""
    image_seeds: tuple[int, ...]
    """A seed for each of `pack.images`: its noise is drawn from it, on any rank, in any run."""
    step_totals: LossTotals
    """Of all packs of this optimizer step, on all ranks, as planned; holes count as if whole."""
    epoch: int
    """From 0."""
    step: int
    """Optimizer step within the epoch, from 0."""

    @property
    def is_filler(self) -> bool:
        """Whether it holds no sample: it keeps the ranks in step at the end of an epoch."""
        return not self.samples

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "MicroBatch":
        """The same with all tensors on a device."""
        return replace(self, pack=self.pack.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MicroBatch":
        """The same with all tensors in page-locked memory."""
        return replace(self, pack=self.pack.pin_memory())
