"""The attention mask rule, and three implementations of attention with it.

The rule depends only on a token's sample, split and index in the sequence, which are stored with
the token. So the model can sort tokens by expert and attend without sorting them back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mathcanvas_lightning.batch import PackLayout, Split
from mathcanvas_lightning.model.layers.flex import Stack, flex_attend, make_block_mask

AttentionPath = Literal["dense", "sdpa", "flex"]
MAX_SHORT_SPLITS = 128
"""Maximum number of tokens of neighbouring splits that attend in one call."""


class LayerAttention(Protocol):
    """Attention function of one layer."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[T, N, H] queries, [T, K, H] keys and values to [T, N, H]."""
        ...


class StackAttention(Protocol):
    """Attention functions of all layers, for a pack or for new tokens after cached ones."""

    def of_layer(self, number: int) -> LayerAttention:
        """Returns the attention function of one layer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """Sample, split and index of each token, in the order in which tokens are stored."""

    sample_ids: Tensor
    """[T] int64, number of the token's sample."""
    sequence_indexes: Tensor
    """[T] int64, index of the token in the packed sequence."""
    split_ids: Tensor
    """[T] int64, number of the token's split."""
    bidirectional: Tensor
    """[T] bool, True in full and noise splits."""
    noisy: Tensor
    """[T] bool, True in noise splits."""
    blocks: Tensor | None = None
    """[B, B] uint8, the blocks of the mask, see `batch.layout.mask_blocks`; None if not known."""

    def sorted_by(self, order: Tensor) -> "TokenLayout":
        """Returns the layout of the same tokens in another order."""
        return TokenLayout(
            sample_ids=self.sample_ids[order],
            sequence_indexes=self.sequence_indexes[order],
            split_ids=self.split_ids[order],
            bidirectional=self.bidirectional[order],
            noisy=self.noisy[order],
        )


def make_layout(
    sample_lens: Sequence[int], splits: Sequence[Split], device: torch.device
) -> TokenLayout:
    """Makes the layout of a packed sequence whose tokens are in sequence order."""
    lengths = torch.tensor([split.length for split in splits], dtype=torch.int64)
    bidirectional = torch.tensor([split.attention_mode != "causal" for split in splits])
    noisy = torch.tensor([split.attention_mode == "noise" for split in splits])
    samples = torch.tensor(sample_lens, dtype=torch.int64)
    split_ids = torch.repeat_interleave(torch.arange(len(splits)), lengths)
    layout = {
        "sample_ids": torch.repeat_interleave(torch.arange(len(samples)), samples),
        "sequence_indexes": torch.arange(len(split_ids)),
        "split_ids": split_ids,
        "bidirectional": bidirectional[split_ids] if len(splits) else split_ids.bool(),
        "noisy": noisy[split_ids] if len(splits) else split_ids.bool(),
    }
    return TokenLayout(**{name: value.to(device) for name, value in layout.items()})


def stored_layout(layout: PackLayout) -> TokenLayout:
    """The layout of a pack's tokens in the order of storage."""
    return TokenLayout(
        sample_ids=layout.sample_ids,
        sequence_indexes=layout.order,
        split_ids=layout.split_ids,
        bidirectional=layout.bidirectional,
        noisy=layout.noisy,
        blocks=layout.blocks,
    )


def full_layout(image_ids: Tensor, blocks: Tensor | None = None) -> TokenLayout:
    """The layout of the patches of several images, each of which attends to itself.

    Args:
        image_ids: [V] int64, number of the image of each patch.
        blocks: [B, B] uint8, the blocks of the mask, if they are known.
    """
    return TokenLayout(
        sample_ids=image_ids,
        sequence_indexes=torch.arange(len(image_ids), device=image_ids.device),
        split_ids=image_ids.clone(),  # torch compiles again where two inputs are one tensor
        bidirectional=torch.ones_like(image_ids, dtype=torch.bool),
        noisy=torch.zeros_like(image_ids, dtype=torch.bool),
        blocks=blocks,
    )


def attends(layout: TokenLayout, query: Tensor, key: Tensor) -> Tensor:
    """The mask rule: which queries attend to which keys.

    Within a sample, a token attends to itself, to earlier tokens, and to all tokens of its split if
    that is full or noise. No token attends to a noise split other than its own.

    Args:
        layout: Layout of the tokens.
        query: Indexes of queries in the layout, any shape.
        key: Indexes of keys, broadcast against `query`.

    Returns:
        Bool, True where the query attends to the key.
    """
    same_sample = layout.sample_ids[query] == layout.sample_ids[key]
    same_split = layout.split_ids[query] == layout.split_ids[key]
    before = layout.sequence_indexes[query] >= layout.sequence_indexes[key]
    allowed = before | (same_split & layout.bidirectional[key])
    return same_sample & allowed & (same_split | ~layout.noisy[key])


def dense_mask(layout: TokenLayout, indexes: Tensor | None = None) -> Tensor:
    """Computes the mask as a matrix.

    Args:
        layout: Layout of the tokens.
        indexes: [N] tokens to include, all by default.

    Returns:
        [N, N] bool, queries by keys.
    """
    if indexes is None:
        count, device = len(layout.sequence_indexes), layout.sequence_indexes.device
        indexes = torch.arange(count, device=device)
    return attends(layout, indexes[:, None], indexes[None, :])


def count_attended_pairs(sample_lens: Sequence[int], splits: Sequence[Split]) -> int:
    """Counts the (query, key) pairs that the rule allows, without making a mask."""
    pairs, remaining = 0, iter(splits)
    for sample_len in sample_lens:
        taken = seen = 0
        while taken < sample_len:
            split = next(remaining)
            causal = split.attention_mode == "causal"
            own = split.length * (split.length + 1) // 2 if causal else split.length**2
            pairs += split.length * seen + own
            taken += split.length
            seen += 0 if split.attention_mode == "noise" else split.length
    return pairs


class Attention:
    """Attention over a pack, prepared once and used in every layer.

    Args:
        layout: Layout of the tokens, in the order of q, k and v.
        path: "dense" computes every pair and is the reference; "sdpa" attends split by split, each
            to the splits it may attend to; "flex" uses FlexAttention with a block mask (for CUDA;
            it has no backward on the CPU).
        stack: The layers that attend.
    """

    def __init__(self, layout: TokenLayout, path: AttentionPath, stack: Stack = "decoder") -> None:
        self.path = path
        self._stack: Stack = stack
        self._num_tokens = len(layout.sequence_indexes)
        if self._num_tokens == 0:
            return
        if path == "dense":
            self._mask = dense_mask(layout)
        elif path == "sdpa":
            self._order = torch.argsort(layout.sequence_indexes)
            self._inverse = torch.argsort(self._order)
            self._lengths, self._groups = group_splits(layout.sorted_by(self._order))
        else:
            self.block_mask = make_block_mask(
                lambda query, key: attends(layout, query, key),
                self._num_tokens,
                layout.sequence_indexes.device,
                layout.blocks,
            )

    def of_layer(self, number: int) -> Self:  # noqa: ARG002
        """Returns this object: the mask is the same in all layers."""
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Computes attention.

        Args:
            query: [T, N, H].
            key: [T, K, H], with N a multiple of K.
            value: [T, K, H].

        Returns:
            [T, N, H].
        """
        if self._num_tokens == 0:  # keeps q, k and v in the autograd graph
            return query + 0.0 * (key.sum() + value.sum())
        if self.path == "dense":
            return _dense(query, key, value, self._mask)
        if self.path == "sdpa":
            attended: Tensor = self._attend_by_split(query, key, value)
            return attended
        return flex_attend(query, key, value, self.block_mask, self._stack)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it differs from pack to pack
    def _attend_by_split(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x[self._order].split(self._lengths) for x in (query, key, value))
        return torch.cat([group.attend(q, k, v) for group in self._groups])[self._inverse]


def default_path(device: torch.device) -> AttentionPath:
    """Returns "flex" on CUDA and "sdpa" elsewhere."""
    return "flex" if device.type == "cuda" else "sdpa"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitGroup:
    """Neighbouring splits that attend in one call, and the splits they attend to."""

    queries: range
    """Numbers of the splits that attend."""
    keys: tuple[int, ...]
    """Numbers of the splits that at least one query attends to."""
    mask: Tensor | None
    """[queries, keys] bool; None if every query attends to every key, as in an image."""

    def attend(
        self, query: Sequence[Tensor], key: Sequence[Tensor], value: Sequence[Tensor]
    ) -> Tensor:
        """Computes attention of the queries, from q, k and v that are split in sequence order."""
        q = torch.cat([query[i] for i in self.queries])
        k, v = (torch.cat([x[i] for i in self.keys]) for x in (key, value))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=grouped)
        return attended[0].transpose(0, 1)


def group_splits(layout: TokenLayout) -> tuple[list[int], list[SplitGroup]]:
    """Groups the splits of a layout that is in sequence order.

    Short splits of a sample form one group, to save calls. A long split is a group by itself,
    because an image then needs no mask.

    Returns:
        Lengths of the splits, and the groups.
    """
    _, counts = torch.unique_consecutive(layout.split_ids, return_counts=True)
    starts = counts.cumsum(0) - counts
    members = torch.arange(len(layout.split_ids), device=counts.device).split(counts.tolist())
    # Within a sample the rule only depends on the order of query and key. So of two splits, the
    # last query and the first key attend if any pair does, and the other way round if all do.
    first, last = starts, starts + counts - 1
    some = attends(layout, last[:, None], first[None]).cpu().numpy()
    every = attends(layout, first[:, None], last[None]).cpu().numpy()
    groups = []
    for queries in _neighbours(layout.sample_ids[first].tolist(), counts.tolist()):
        rows = slice(queries.start, queries.stop)
        keys = np.flatnonzero(some[rows].any(axis=0)).tolist()
        mask = None
        if not every[rows, keys].all():
            columns = torch.cat([members[i] for i in keys])
            mask = attends(layout, torch.cat(members[rows])[:, None], columns[None])
        groups.append(SplitGroup(queries=queries, keys=tuple(keys), mask=mask))
    return counts.tolist(), groups


def _neighbours(samples: Sequence[int], lengths: Sequence[int]) -> Iterator[range]:
    """Numbers of the splits of each group, from sample and length of each split."""
    first = size = 0
    for end, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        if end and (sample != samples[first] or size + length > MAX_SHORT_SPLITS):
            yield range(first, end)
            first, size = end, 0
        size += length
    yield range(first, len(samples))


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = torch.einsum("qnh,knh->nqk", query, keys).float() * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(query.dtype)
    return torch.einsum("nqk,knh->qnh", weights, values)
