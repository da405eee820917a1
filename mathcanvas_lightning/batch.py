"""The input of the model: one packed sequence of tokens and its description.

Shape letters: T packed tokens, X text tokens, L latent tokens, V ViT patches, P patch dimension,
E tokens with text loss, M tokens with image loss.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
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


ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLayout:
    """What a forward pass needs to know of the tokens beside their contents.

    It is made on the host, once for a pack, so that no step waits for the device. Tokens are in the
    order of storage: texts, ViT patches, latents.
    """

    order: Tensor
    """[T] int64, position in the sequence of each stored token."""
    inverse: Tensor
    """[T] int64, place in the storage of each token of the sequence."""
    sample_ids: Tensor
    """[T] int64, number of the token's sample."""
    split_ids: Tensor
    """[T] int64, number of the token's split."""
    bidirectional: Tensor
    """[T] bool, True in full and noise splits."""
    noisy: Tensor
    """[T] bool, True in noise splits."""
    vit_image_ids: Tensor
    """[V] int64, number of the ViT image of each patch."""
    noisy_latents: Tensor
    """[M] int64, numbers of the noisy ones among the L latent tokens."""
    noisy_items: tuple[bool, ...]
    """Whether each VAE item is noisy."""


@dataclass(frozen=True, kw_only=True)  # no slots: the layout is cached
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

    @cached_property
    def layout(self) -> PackLayout:
        """The layout of the tokens; it moves with the batch, also to other processes."""
        return _make_layout(self)

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
        buffer = _find_buffer(tensors)
        if buffer is None:
            return self._with([copy(tensor) for tensor in tensors])
        return self._with(_views(copy(buffer), _parts(tensors)))

    def pin_memory(self) -> "PackedBatch":
        """Copies the batch with all tensors to one buffer of page-locked memory."""
        tensors = self._tensors()
        return self._with(_views(_one_buffer(tensors).pin_memory(), _parts(tensors)))

    def __reduce__(self) -> tuple[Any, ...]:
        # As one buffer: torch sends each tensor to another process by a file descriptor.
        tensors = self._tensors()
        others = self._with([None] * len(tensors)).__dict__
        return _rebuild, (_one_buffer(tensors), _parts(tensors), others)

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


Part = tuple[int, torch.dtype, tuple[int, ...]]
"""First byte of a tensor in a buffer, its type and its shape."""


@cache
def _tensor_fields(kind: type) -> tuple[str, ...]:
    return tuple(member.name for member in fields(kind) if member.type is Tensor)


def _rebuild_with(members: Mapping[str, Any]) -> PackedBatch:
    """A batch from its members, which were checked before."""
    batch = object.__new__(PackedBatch)
    batch.__dict__.update(members)
    return batch


def _rebuild(buffer: Tensor, parts: Sequence[Part], others: Mapping[str, Any]) -> PackedBatch:
    return _rebuild_with(others)._with(_views(buffer, parts))


def _parts(tensors: Sequence[Tensor]) -> list[Part]:
    """Places of tensors in one buffer, each at a multiple of `ALIGNMENT_BYTES`."""
    sizes = [-(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for tensor in tensors]
    starts = itertools.accumulate([0, *sizes])
    return [(start, t.dtype, tuple(t.shape)) for start, t in zip(starts, tensors, strict=False)]


def _one_buffer(tensors: Sequence[Tensor]) -> Tensor:
    """The buffer that the tensors are views of, or a new one with their contents; uint8."""
    buffer = _find_buffer(tensors)
    if buffer is None:
        parts = _parts(tensors)
        buffer = torch.zeros(parts[-1][0] + tensors[-1].nbytes, dtype=torch.uint8)
        for view, tensor in zip(_views(buffer, parts), tensors, strict=True):
            view.copy_(tensor)
    return buffer


def _find_buffer(tensors: Sequence[Tensor]) -> Tensor | None:
    storage = tensors[0].untyped_storage()
    for tensor, (start, _, _) in zip(tensors, _parts(tensors), strict=True):
        place = tensor.storage_offset() * tensor.itemsize, tensor.untyped_storage().data_ptr()
        if place != (start, storage.data_ptr() or None) or not tensor.is_contiguous():
            return None
    return torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(storage)


def _views(buffer: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    return [
        buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for start, dtype, shape in parts
    ]


def _make_layout(pack: PackedBatch) -> PackLayout:
    modes = [split.attention_mode for split in pack.splits]
    split_lens = torch.tensor([split.length for split in pack.splits], dtype=torch.int64)
    splits = torch.repeat_interleave(torch.arange(len(modes)), split_lens)
    sample_lens = torch.tensor(pack.sample_lens, dtype=torch.int64)
    samples = torch.repeat_interleave(torch.arange(len(sample_lens)), sample_lens)
    vit_lens = torch.tensor(pack.vit_lens, dtype=torch.int64)
    order = torch.cat([pack.text_indexes, pack.vit_indexes, pack.latent_indexes])
    device = order.device
    order = order.cpu()
    bidirectional = torch.tensor([mode != "causal" for mode in modes], dtype=torch.bool)
    noisy = torch.tensor([mode == "noise" for mode in modes], dtype=torch.bool)
    is_noisy = pack.noisy_latents().cpu()
    starts = [0, *itertools.accumulate(rows * columns for rows, columns in pack.latent_shapes)]
    tensors = {
        "order": order,
        "inverse": torch.argsort(order),
        "sample_ids": samples[order],
        "split_ids": splits[order],
        "bidirectional": bidirectional[splits][order],
        "noisy": noisy[splits][order],
        "vit_image_ids": torch.repeat_interleave(torch.arange(len(vit_lens)), vit_lens),
        "noisy_latents": torch.nonzero(is_noisy)[:, 0],
    }
    return PackLayout(
        **{name: tensor.to(device) for name, tensor in tensors.items()},
        noisy_items=tuple(bool(is_noisy[start]) for start in starts[:-1]),
    )


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
