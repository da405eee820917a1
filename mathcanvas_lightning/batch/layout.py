"""Splits of a packed sequence, and what attention needs to know of its tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

BLOCK_TOKENS = 128
"""Side of a block of the attention mask."""
NO_PAIRS, SOME_PAIRS, ALL_PAIRS = range(3)
"""Values of `mask_blocks`."""
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
class PackLayout:
    """Order, samples, splits and attention of the tokens of a pack.

    The layout is made on the host, once for a pack, so that no step waits for the device. Tokens
    are in the order of storage: first those of the understanding expert, texts and ViT patches as
    they follow in the sequence, then the latents. So neighbours in the storage mostly attend to the
    same tokens, and few blocks of the mask are partial.
    """

    order: Tensor
    """[T] int64, position in the sequence of each stored token."""
    inverse: Tensor
    """[T] int64, index in the storage of each token of the sequence."""
    und_storage_indexes: Tensor
    """[X + V] int64, index in the storage of each text token, then of each ViT patch."""
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
    blocks: Tensor
    """[B, B] uint8, the blocks of the attention mask, see `mask_blocks`."""
    vit_blocks: Tensor
    """[B, B] uint8, the blocks of the ViT's mask: patches attend to all patches of their image."""


def make_splits(lengths: Sequence[int], modes: Sequence[AttentionMode]) -> tuple[Split, ...]:
    """Makes splits from two lists of equal length."""
    return tuple(
        Split(length=length, attention_mode=mode)
        for length, mode in zip(lengths, modes, strict=True)
    )


def make_pack_layout(
    splits: Sequence[Split],
    sample_lens: Sequence[int],
    und_indexes: Tensor,
    latent_indexes: Tensor,
    vit_lens: Sequence[int],
    latent_shapes: Sequence[tuple[int, int]],
    is_noisy: Tensor,
) -> PackLayout:
    """Makes the layout of a pack.

    Args:
        splits: The splits in order.
        sample_lens: Number of tokens of each sample.
        und_indexes: [X + V] int64, positions of text tokens, then of ViT patches.
        latent_indexes: [L] int64, positions of latent tokens.
        vit_lens: Number of patches of each ViT image.
        latent_shapes: (rows, columns) of latent tokens of each VAE item.
        is_noisy: [L] bool, whether a latent token belongs to a noisy image.

    Returns:
        The layout, on the device of `und_indexes`.
    """
    device, is_noisy = und_indexes.device, is_noisy.cpu()
    und_indexes, latent_indexes = und_indexes.cpu(), latent_indexes.cpu()
    is_und = torch.zeros(len(und_indexes) + len(latent_indexes), dtype=torch.bool)
    is_und[und_indexes] = True
    order = torch.cat([torch.nonzero(is_und)[:, 0], latent_indexes])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    modes = [split.attention_mode for split in splits]
    of_split = _repeated([split.length for split in splits])
    bidirectional = torch.tensor([mode != "causal" for mode in modes], dtype=torch.bool)
    noisy = torch.tensor([mode == "noise" for mode in modes], dtype=torch.bool)
    images = _repeated(vit_lens)
    tensors = {
        "order": order,
        "inverse": inverse,
        "und_storage_indexes": inverse[und_indexes],
        "sample_ids": _repeated(sample_lens)[order],
        "split_ids": of_split[order],
        "bidirectional": bidirectional[of_split][order],
        "noisy": noisy[of_split][order],
        "vit_image_ids": images,
        "noisy_latents": torch.nonzero(is_noisy)[:, 0],
    }
    tensors["blocks"] = mask_blocks(
        order,
        tensors["sample_ids"],
        tensors["split_ids"],
        tensors["bidirectional"],
        tensors["noisy"],
    )
    ones = torch.ones_like(images, dtype=torch.bool)
    tensors["vit_blocks"] = mask_blocks(torch.arange(len(images)), images, images, ones, ~ones)
    starts = [0, *itertools.accumulate(rows * columns for rows, columns in latent_shapes)]
    return PackLayout(
        **{name: tensor.to(device) for name, tensor in tensors.items()},
        noisy_items=tuple(bool(is_noisy[start]) for start in starts[:-1]),
    )


def mask_blocks(
    order: Tensor, sample_ids: Tensor, split_ids: Tensor, bidirectional: Tensor, noisy: Tensor
) -> Tensor:
    """Finds the blocks of the attention mask with no, some or only allowed pairs of tokens.

    Tokens of a split that lie one after the other form a run. Two runs of different splits attend
    in all pairs or in none; so the mask is never made token by token.

    Args:
        order: [T] int64, position in the sequence of each stored token.
        sample_ids: [T], see `PackLayout`.
        split_ids: [T], see `PackLayout`.
        bidirectional: [T], see `PackLayout`.
        noisy: [T], see `PackLayout`.

    Returns:
        [B, B] uint8, queries by keys, one for each `BLOCK_TOKENS` tokens: `NO_PAIRS`, `SOME_PAIRS`
        or `ALL_PAIRS`. The last block is never full if tokens are missing in it.
    """
    count = len(order)
    if not count:
        return torch.zeros(0, 0, dtype=torch.uint8)
    is_start = torch.ones(count, dtype=torch.bool)
    is_start[1:] = (split_ids[1:] != split_ids[:-1]) | (order[1:] != order[:-1] + 1)
    is_start[::BLOCK_TOKENS] = True
    starts = torch.nonzero(is_start)[:, 0]
    lengths = torch.diff(starts, append=torch.tensor([count]))
    first, sample, split = order[starts], sample_ids[starts], split_ids[starts]
    last = first + lengths - 1
    same_sample = sample[:, None] == sample[None]
    same_split = split[:, None] == split[None]
    earlier = (split[:, None] > split[None]) & ~noisy[starts][None]
    within = same_split & bidirectional[starts][None]
    some = same_sample & (earlier | within | (same_split & (last[:, None] >= first[None])))
    all_ = same_sample & (earlier | within | (same_split & (first[:, None] >= last[None])))
    # Each block starts with a run.
    of_block = torch.nonzero(starts % BLOCK_TOKENS == 0)[:, 0].numpy()
    some_pairs, all_pairs = some.numpy(), all_.numpy()
    for _ in range(2):  # queries, then keys
        some_pairs = _reduced(some_pairs, of_block, np.logical_or).T
        all_pairs = _reduced(all_pairs, of_block, np.logical_and).T
    if count % BLOCK_TOKENS:
        all_pairs[-1] = all_pairs[:, -1] = False
    return torch.from_numpy(np.add(some_pairs, all_pairs, dtype=np.uint8, order="C"))


def _reduced(pairs: Bools, first: Ints, join: np.ufunc) -> Bools:
    """[B, R] rows of [R, R] pairs, those from one of the B `first` rows to the next one joined.

    Blocks have few runs; so this is ten times faster than `join.reduceat`.
    """
    counts = np.diff(first, append=len(pairs))
    found = pairs[first]
    for number in range(1, counts.max()):
        longer = np.flatnonzero(counts > number)
        found[longer] = join(found[longer], pairs[first[longer] + number])
    return found


def _repeated(lengths: Sequence[int]) -> Tensor:
    """[sum of lengths] int64: 0, as often as the first length says, then 1, and so on."""
    counts = torch.tensor(lengths, dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(counts)), counts)
