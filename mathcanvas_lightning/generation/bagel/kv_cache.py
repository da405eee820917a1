"""KV cache of many contexts: allocated once, written in place, read through views.

Each layer has one tensor of keys and one of values, with one row for each context. A span is a run
of new tokens in one row. In a forward pass all spans write their keys and values first; then each
span attends to its row up to its own end. So one pass can prefill a whole question, decode one
token of many texts, or compute one step of many drawings.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import LLMConfig
from mathcanvas_lightning.model.layers.basic import rotary_tables
from mathcanvas_lightning.model.layers.mot import Experts

T = TypeVar("T")
SpanKind = Literal["text", "vit", "latents"]
"""A causal text; an image of ViT patches, or of VAE latents, with its two markers."""
MARKERS = 2
MAX_BATCHED_LENGTH = 32
"""Spans of equal length, up to this many tokens, share one attention call, which pads their rows to
the longest one. A longer span, such as an image, uses the device well without a batch."""
MAX_CAUSAL = 256
"""Maximum number of text tokens in one attention call. Longer texts are split, because attention
with a mask stores the scores of all pairs on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """New tokens of the same kind in one row of the cache."""

    row: int
    start: int
    """Number of tokens in the row before the span."""
    length: int
    position: int
    """RoPE position of the first token; all tokens of an image have the same one."""
    kind: SpanKind

    @property
    def end(self) -> int:
        """Number of tokens in the row, including the span."""
        return self.start + self.length

    @property
    def num_gen(self) -> int:
        """Number of tokens of the generation expert."""
        return self.length - MARKERS if self.kind == "latents" else 0


def in_passes(items: Iterable[T], tokens: Callable[[T], int], maximum: int) -> Iterator[list[T]]:
    """Groups items into forward passes of limited size, which limits the activation memory.

    Args:
        items: Items in order.
        tokens: Returns the number of tokens of an item.
        maximum: Maximum number of tokens in a pass, unless a single item has more.

    Yields:
        The items of one pass.
    """
    group: list[T] = []
    total = 0
    for item in items:
        if group and total + tokens(item) > maximum:
            yield group
            group, total = [], 0
        group.append(item)
        total += tokens(item)
    if group:
        yield group


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device, without synchronization on a GPU.

    Args:
        values: Tensor on the CPU.
        device: Target device.
    """
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def token_bytes(config: LLMConfig, dtype: torch.dtype) -> int:
    """Memory of one token in one context, in bytes.

    Args:
        config: Configuration of the decoder.
        dtype: Data type of keys and values.

    Returns:
        layers * KV heads * head dimension * 2 * bytes per number.
    """
    numbers = config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
    return numbers * dtype.itemsize


def plan_batch_size(problem_bytes: int, memory_bytes: int, wanted: int) -> int:
    """The number of problems in a batch that memory allows.

    Args:
        problem_bytes: Memory for the contexts of one problem.
        memory_bytes: Available memory.
        wanted: Maximum batch size.

    Returns:
        1 or more.

    Raises:
        ConfigError: If the memory is not enough for one problem.
    """
    if problem_bytes > memory_bytes:
        raise ConfigError(
            "memory of the contexts",
            found=f"{problem_bytes / 2**30:.2f} GiB for one problem",
            wanted=f"at most {memory_bytes / 2**30:.2f} GiB, the available memory",
            remedy="Lower max_context_tokens, or free memory on the device.",
        )
    return min(wanted, memory_bytes // problem_bytes)


class KVCache:
    """Keys and values of a fixed number of contexts.

    Args:
        config: Configuration of the decoder.
        num_rows: Number of contexts.
        capacity: Maximum number of tokens in a context.
        dtype: Data type of the model.
        device: Device of the model.
    """

    def __init__(
        self,
        config: LLMConfig,
        *,
        num_rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_rows, self.capacity = num_rows, capacity
        shape = (num_rows, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, because masked values must be finite too. The CPU allocates zero pages lazily.
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self._used = [0] * num_rows

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.keys[0].device

    def reserve(self, span: Span) -> None:
        """Marks the tokens of a span as used."""
        assert span.end <= self.capacity, span
        self._used[span.row] = max(self._used[span.row], span.end)

    def clear(self, row: int) -> None:
        """Sets a row to zero, so that no old value (such as a NaN) can pass a mask later."""
        for tensor in self.keys + self.values:
            tensor[row, :, : self._used[row]] = 0
        self._used[row] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _AttentionCall:
    """Spans of equal length in evenly spaced rows, for one attention call."""

    rows: slice
    num_rows: int
    length: int
    """Length of each span."""
    end: int
    """Length of the longest row."""
    mask: Tensor | None
    """True for visible keys; None if all keys (with `causal`: all up to the query) are visible."""
    causal: bool
    """Whether attention is causal inside a span."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends with [rows * length, N, H] queries to a layer's cache; keeps the shape."""
        row_keys, row_values = (x[self.rows, :, : self.end] for x in (keys, values))
        num_kv = row_keys.shape[1]
        query = query.unflatten(0, (self.num_rows, self.length))
        if self.causal:
            out = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                row_keys,
                row_values,
                attn_mask=self.mask,
                is_causal=self.mask is None,
                enable_gqa=True,
            )
            return out.transpose(1, 2).flatten(0, 1)
        # Heads that share keys are folded into the query dimension, so that keys are not copied.
        grouped = query.unflatten(2, (num_kv, -1)).permute(0, 2, 3, 1, 4)
        out = F.scaled_dot_product_attention(
            grouped.flatten(2, 3), row_keys, row_values, attn_mask=self.mask
        )
        return out.view(grouped.shape).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


class CachedTokens:
    """Attention of one forward pass over new tokens, for all layers.

    The decoder gets the und tokens first, then the gen tokens, each in the order of the spans. The
    object can be reused for the same spans, as the steps of a drawing do.

    Args:
        cache: The KV cache.
        spans: New tokens; spans of one row in order.
    """

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self._cache, self._spans = cache, spans
        self.num_und = sum(span.length - span.num_gen for span in spans)
        columns = on_device(_columns(spans), cache.device)
        self._rows, self._offsets, self.position_ids = columns[:3]
        self._reordered = tuple(columns[3:])
        pieces = [piece for span in spans for piece in _pieces(span)]
        calls = [_attention_call(group, cache.device) for group in _group(pieces)]
        self._calls = tuple(calls)
        self._lengths = [call.num_rows * call.length for call in calls]

    def reserve(self) -> None:
        """Marks all tokens of the spans as used; needed before each pass."""
        for span in self._spans:
            self._cache.reserve(span)

    def of_layer(self, number: int) -> "_LayerCache":
        """The attention function of one layer."""
        return _LayerCache(self, self._cache.keys[number], self._cache.values[number])

    def attend(
        self, keys: Tensor, values: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Writes new keys and values to a layer's cache, then attends, [T, N, H]."""
        keys[self._rows, :, self._offsets] = key.to(keys.dtype)
        values[self._rows, :, self._offsets] = value.to(values.dtype)
        if self._reordered:
            query = query[self._reordered[1]]
        parts = [
            call.attend(part, keys, values)
            for call, part in zip(self._calls, query.split(self._lengths), strict=True)
        ]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return attended[self._reordered[0]] if self._reordered else attended


@dataclass(frozen=True, slots=True)
class _LayerCache:
    tokens: CachedTokens
    keys: Tensor
    values: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.tokens.attend(self.keys, self.values, query, key, value)


def forward_cached(model: Bagel, tokens: CachedTokens, und: Tensor, gen: Tensor) -> Experts:
    """Runs the decoder on new tokens and writes their keys and values to the cache.

    Args:
        model: BAGEL, on the cache's device.
        tokens: Spans and attention of the pass.
        und: [n, D] embeddings for the understanding expert, in the order of the spans.
        gen: [m, D] embeddings for the generation expert.

    Returns:
        Last hidden states of both experts.
    """
    llm = model.config.llm
    assert tokens.num_und == len(und)
    assert len(tokens.position_ids) == len(und) + len(gen)
    tokens.reserve()
    tables = rotary_tables(tokens.position_ids, llm.head_dim, llm.rope_theta)
    rotary = tuple(zip(*(table.split([len(und), len(gen)]) for table in tables), strict=True))
    hidden: Experts = model.language_model.model(und, gen, rotary, tokens)
    return hidden


def _columns(spans: Sequence[Span]) -> Tensor:
    """Row, offset in the row and RoPE position of each token, und tokens first.

    Returns:
        [3, T] without gen tokens. With gen tokens [5, T]: the last two rows are the permutation
        from the order of the spans, and its inverse.
    """
    if all(span.length == 1 for span in spans):  # fast path: one token for each text
        return torch.tensor([[getattr(s, n) for s in spans] for n in ("row", "start", "position")])
    lengths = torch.tensor([span.length for span in spans])
    owner = torch.repeat_interleave(torch.arange(len(spans)), lengths)
    within = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    about = torch.tensor(
        [(s.row, s.start, s.position, s.kind == "text", s.num_gen > 0) for s in spans]
    )
    row, start, position, causal, latents = about[owner].unbind(1)
    columns = [row, start + within, position + within * causal]
    if latents.any():
        is_gen = (latents > 0) & (within > 0) & (within < lengths[owner] - 1)
        order = torch.argsort(is_gen.int(), stable=True)
        columns = [column[order] for column in columns] + [order, torch.argsort(order)]
    return torch.stack(columns)


def _pieces(span: Span) -> list[Span]:
    """Splits long texts; attention is causal, so the result is the same."""
    if span.kind != "text" or span.length <= MAX_CAUSAL:
        return [span]
    return [
        replace(
            span,
            start=span.start + first,
            length=min(MAX_CAUSAL, span.length - first),
            position=span.position + first,
        )
        for first in range(0, span.length, MAX_CAUSAL)
    ]


def _group(spans: Sequence[Span]) -> list[list[Span]]:
    """Groups neighbouring spans that can share one attention call."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and _joins(groups[-1], span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _joins(group: Sequence[Span], span: Span) -> bool:
    last, length = group[-1], group[0].length
    if span.length != length or length > MAX_BATCHED_LENGTH or span.row <= last.row:
        return False
    if length > 1 and "text" in (span.kind, last.kind):
        return False
    return len(group) == 1 or span.row - last.row == last.row - group[-2].row


def _attention_call(group: Sequence[Span], device: torch.device) -> _AttentionCall:
    first, last, end = group[0], group[-1], max(span.end for span in group)
    stride = group[1].row - first.row if len(group) > 1 else 1
    causal = first.kind == "text" and first.length > 1
    mask = None
    if causal and first.start > 0:
        mask = torch.ones(first.length, end, dtype=torch.bool, device=device).tril(first.start)
    elif any(span.end < end for span in group):
        ends = on_device(torch.tensor([span.end for span in group]), device)
        mask = (torch.arange(end, device=device) < ends[:, None])[:, None, None]
    return _AttentionCall(
        rows=slice(first.row, last.row + 1, stride),
        num_rows=len(group),
        length=first.length,
        end=end,
        mask=mask,
        causal=causal,
    )


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
