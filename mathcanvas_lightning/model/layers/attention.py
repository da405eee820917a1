"""Which token sees which, written once, and three ways to attend by it.

Tokens come in any order: each carries its sample, its place in the sequence and its split, and the
rule is a function of those. So the model may sort tokens by expert and attend without sorting back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mathcanvas_lightning.batch import Split

AttentionPath = Literal["dense", "sdpa", "flex"]
MAX_SHORT_SPLITS = 128
"""Tokens up to which neighbouring splits attend in one call."""


class LayerAttention(Protocol):
    """Attention of one layer."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[T, N, H] queries, [T, K, H] keys and values to [T, N, H]."""
        ...


class StackAttention(Protocol):
    """Attention of all layers: of a pack, or of new tokens and those cached before them."""

    def of_layer(self, number: int) -> LayerAttention:
        """That of one layer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """What the mask rule needs to know of each token, in the order in which tokens are stored."""

    sample_ids: Tensor
    """[T] int64."""
    places: Tensor
    """[T] int64, position in the packed sequence."""
    split_ids: Tensor
    """[T] int64."""
    bidirectional: Tensor
    """[T] bool: its split is full or noise."""
    noisy: Tensor
    """[T] bool: its split is noise."""

    def sorted_by(self, order: Tensor) -> "TokenLayout":
        """The layout of tokens stored in another order."""
        return TokenLayout(
            sample_ids=self.sample_ids[order],
            places=self.places[order],
            split_ids=self.split_ids[order],
            bidirectional=self.bidirectional[order],
            noisy=self.noisy[order],
        )


def make_layout(
    sample_lens: Sequence[int], splits: Sequence[Split], device: torch.device
) -> TokenLayout:
    """The layout of a packed sequence in its own order."""
    lengths = torch.tensor([split.length for split in splits], dtype=torch.int64)
    bidirectional = torch.tensor([split.attention_mode != "causal" for split in splits])
    noisy = torch.tensor([split.attention_mode == "noise" for split in splits])
    samples = torch.tensor(sample_lens, dtype=torch.int64)
    split_ids = torch.repeat_interleave(torch.arange(len(splits)), lengths)
    layout = {
        "sample_ids": torch.repeat_interleave(torch.arange(len(samples)), samples),
        "places": torch.arange(len(split_ids)),
        "split_ids": split_ids,
        "bidirectional": bidirectional[split_ids] if len(splits) else split_ids.bool(),
        "noisy": noisy[split_ids] if len(splits) else split_ids.bool(),
    }
    return TokenLayout(**{name: value.to(device) for name, value in layout.items()})


def sees(layout: TokenLayout, query: Tensor, key: Tensor) -> Tensor:
    """The mask rule: (causal or same full or noise split) and the key not in another noise split.

    Args:
        layout: Of the tokens.
        query: Indexes of queries, any shape.
        key: Indexes of keys, broadcast against them.

    Returns:
        Bool, True where the query sees the key.
    """
    same_sample = layout.sample_ids[query] == layout.sample_ids[key]
    same_split = layout.split_ids[query] == layout.split_ids[key]
    before = layout.places[query] >= layout.places[key]
    allowed = before | (same_split & layout.bidirectional[key])
    return same_sample & allowed & (same_split | ~layout.noisy[key])


def dense_mask(layout: TokenLayout, indexes: Tensor | None = None) -> Tensor:
    """The rule as a matrix.

    Args:
        layout: Of the tokens.
        indexes: [N] the tokens wanted, all by default.

    Returns:
        [N, N] bool, queries by keys.
    """
    if indexes is None:
        indexes = torch.arange(len(layout.places), device=layout.places.device)
    return sees(layout, indexes[:, None], indexes[None, :])


def count_attended_pairs(sample_lens: Sequence[int], splits: Sequence[Split]) -> int:
    """How many (query, key) pairs the rule allows, without making a mask."""
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
    """One pack's attention, prepared once and used in every layer.

    Args:
        layout: Of the tokens, in the order in which q, k and v will come.
        path: "dense" computes every pair and is the reference; "sdpa" goes split by split, each
            with the keys that it sees; "flex" uses FlexAttention with a block mask (CUDA; without
            a backward on the CPU).
    """

    def __init__(self, layout: TokenLayout, path: AttentionPath) -> None:
        self.path = path
        self._num_tokens = len(layout.places)
        if self._num_tokens == 0:
            return
        if path == "dense":
            self._mask = dense_mask(layout)
        elif path == "sdpa":
            self._order = torch.argsort(layout.places)
            self._inverse = torch.argsort(self._order)
            self._lengths, self._groups = _group_splits(layout.sorted_by(self._order))
        else:
            self._block_mask = _block_mask(layout)

    def of_layer(self, number: int) -> Self:  # noqa: ARG002
        """Itself: it is the same in all layers."""
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attends.

        Args:
            query: [T, N, H].
            key: [T, K, H], with N a multiple of K.
            value: [T, K, H].

        Returns:
            [T, N, H].
        """
        if self._num_tokens == 0:  # and yet all three take part in the graph
            return query + 0.0 * (key.sum() + value.sum())
        if self.path == "dense":
            return _dense(query, key, value, self._mask)
        if self.path == "sdpa":
            q, k, v = (x[self._order].split(self._lengths) for x in (query, key, value))
            return torch.cat([group.attend(q, k, v) for group in self._groups])[self._inverse]
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        attended = _flex(query.device.type)(q, k, v, block_mask=self._block_mask, enable_gqa=True)
        result: Tensor = attended[0].transpose(0, 1)
        return result


def default_path(device: torch.device) -> AttentionPath:
    """FlexAttention on CUDA, SDPA elsewhere."""
    return "flex" if device.type == "cuda" else "sdpa"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Splits that attend together, and the splits that at least one of their tokens sees."""

    queries: range
    keys: tuple[int, ...]
    mask: Tensor | None
    """None where every query sees every key, as in an image."""

    def attend(
        self, query: Sequence[Tensor], key: Sequence[Tensor], value: Sequence[Tensor]
    ) -> Tensor:
        q = torch.cat([query[i] for i in self.queries])
        k, v = (torch.cat([x[i] for i in self.keys]) for x in (key, value))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=grouped)
        return attended[0].transpose(0, 1)


def _group_splits(layout: TokenLayout) -> tuple[list[int], list[_Group]]:
    """Lengths of the splits of a layout in sequence order, and the groups that attend together.

    Short splits of a sample are taken together, to spare calls; long ones stand alone, because an
    image alone needs no mask.
    """
    _, lengths = torch.unique_consecutive(layout.split_ids, return_counts=True)
    places = torch.arange(len(layout.places), device=layout.places.device).split(lengths.tolist())
    samples = layout.sample_ids[[int(place[0]) for place in places]].tolist()
    of_sample: dict[int, list[int]] = {}
    for number, sample in enumerate(samples):
        of_sample.setdefault(sample, []).append(number)
    groups: list[_Group] = []
    first = 0
    for end in range(1, len(places) + 1):
        queries = range(first, end)
        if end < len(places) and samples[end] == samples[first]:
            size = sum(len(places[i]) for i in queries)
            if size + len(places[end]) <= MAX_SHORT_SPLITS:
                continue
        groups.append(_make_group(layout, places, queries, of_sample[samples[first]]))
        first = end
    return lengths.tolist(), groups


def _make_group(
    layout: TokenLayout, places: Sequence[Tensor], queries: range, candidates: Sequence[int]
) -> _Group:
    rows = torch.cat([places[i] for i in queries])[:, None]
    whole = sees(layout, rows, torch.cat([places[i] for i in candidates])[None])
    columns = whole.split([len(places[i]) for i in candidates], dim=1)
    seen = [bool(column.any()) for column in columns]
    keys = tuple(i for i, is_seen in zip(candidates, seen, strict=True) if is_seen)
    mask = torch.cat([c for c, is_seen in zip(columns, seen, strict=True) if is_seen], dim=1)
    return _Group(queries=queries, keys=keys, mask=None if bool(mask.all()) else mask)


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = torch.einsum("qnh,knh->nqk", query, keys).float() * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(query.dtype)
    return torch.einsum("nqk,knh->qnh", weights, values)


def _block_mask(layout: TokenLayout) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return sees(layout, query, key)

    length, device = len(layout.places), layout.places.device
    # Compiled, it never holds the whole matrix, which at 50,000 tokens would be 2.5 GB.
    return create_block_mask(
        rule, None, None, length, length, device=device, _compile=device.type == "cuda"
    )


@cache
def _flex(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it computes every pair; compiled it skips blocks, but that pays only on a GPU.
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention
