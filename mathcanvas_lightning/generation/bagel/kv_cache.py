"""Keys and values of contexts: allocated once, written in place, attended to as views.

Each context is a row of one tensor a layer. New tokens enter rows as spans; all spans of a forward
pass write their keys and values first, then each attends to what its row holds up to its own end.
So a whole question, a token of each of many texts, or a step of each of many drawings is one pass.
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
"""A causal text; an image of patches, or of latents, with its two markers."""
MARKERS = 2
MAX_TOGETHER = 32
"""Tokens up to which spans of equal length attend in one call. It pads their rows to the longest;
longer spans, an image's for instance, keep a device busy alone."""
MAX_CAUSAL = 256
"""Tokens of a text that attend in one call; a longer one goes piece by piece, because on a GPU a
mask makes attention hold the scores of all its pairs at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """New tokens of one row that are of one kind."""

    row: int
    start: int
    """Tokens before them in the row."""
    length: int
    position: int
    """Rope position of the first; the tokens of an image share it."""
    kind: SpanKind

    @property
    def end(self) -> int:
        """Tokens of the row up to their last."""
        return self.start + self.length

    @property
    def num_gen(self) -> int:
        """Tokens of the generation expert."""
        return self.length - MARKERS if self.kind == "latents" else 0


def in_passes(items: Iterable[T], tokens: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Parts what is to be done into passes, whose size bounds the activations.

    Args:
        items: In their order.
        tokens: Of an item.
        most: Tokens of a pass, unless one item alone has more.

    Yields:
        The items of a pass.
    """
    together: list[T] = []
    total = 0
    for item in items:
        if together and total + tokens(item) > most:
            yield together
            together, total = [], 0
        together.append(item)
        total += tokens(item)
    if together:
        yield together


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies without waiting for what the device still works on.

    Args:
        values: On the CPU.
        device: Where they are needed.

    Returns:
        The same values there.
    """
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def token_bytes(config: LLMConfig, dtype: torch.dtype) -> int:
    """Memory of one token of one context.

    Args:
        config: Of the decoder.
        dtype: Of keys and values.

    Returns:
        layers * KV heads * head dimension * 2 * bytes a number.
    """
    numbers = config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
    return numbers * dtype.itemsize


def plan_batch_size(problem_bytes: int, memory_bytes: int, wanted: int) -> int:
    """How many problems are worked on at a time.

    Args:
        problem_bytes: Memory of one problem's contexts.
        memory_bytes: What there is for all.
        wanted: At most.

    Returns:
        1 or more.

    Raises:
        ConfigError: If not even one fits.
    """
    if problem_bytes > memory_bytes:
        raise ConfigError(
            "memory of the contexts",
            found=f"{problem_bytes / 2**30:.2f} GiB for one problem",
            wanted=f"at most the {memory_bytes / 2**30:.2f} GiB there are",
            remedy="Lower max_context_tokens, or free memory on the device.",
        )
    return min(wanted, memory_bytes // problem_bytes)


class KVCache:
    """Keys and values of a number of contexts.

    Args:
        config: Of the decoder.
        num_rows: Contexts.
        capacity: Tokens of each at most.
        dtype: Of the model.
        device: Of the model.
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
        self.capacity = capacity
        shape = (num_rows, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, because what a mask hides must still be finite; the CPU gives such pages lazily.
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self._used = [0] * num_rows

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.keys[0].device

    def reserve(self, span: Span) -> None:
        """Notes that a span will be written."""
        assert span.end <= self.capacity, span
        self._used[span.row] = max(self._used[span.row], span.end)

    def clear(self, row: int) -> None:
        """Forgets a row, so that nothing of it, not even a NaN, reaches the next one's masks."""
        for tensor in self.keys + self.values:
            tensor[row, :, : self._used[row]] = 0
        self._used[row] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Spans that attend in one call: of equal length, in rows at equal distances."""

    rows: slice
    num_rows: int
    length: int
    """Of each span."""
    end: int
    """Tokens of the longest row."""
    mask: Tensor | None
    """True where a key is seen; None where all are, or all up to the query."""
    causal: bool
    """Whether a token sees none of those after it."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[rows * length, N, H] queries against a layer's cache; the same shape."""
        seen_keys, seen_values = (x[self.rows, :, : self.end] for x in (keys, values))
        num_kv = seen_keys.shape[1]
        query = query.unflatten(0, (self.num_rows, self.length))
        if self.causal:
            out = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                seen_keys,
                seen_values,
                attn_mask=self.mask,
                is_causal=self.mask is None,
                enable_gqa=True,
            )
            return out.transpose(1, 2).flatten(0, 1)
        # Heads that share keys go through as more queries of one head: no key is copied.
        grouped = query.unflatten(2, (num_kv, -1)).permute(0, 2, 3, 1, 4)
        out = F.scaled_dot_product_attention(
            grouped.flatten(2, 3), seen_keys, seen_values, attn_mask=self.mask
        )
        return out.view(grouped.shape).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


class CachedTokens:
    """The attention of one forward pass over new tokens, in all layers.

    Tokens go through the decoder und first, then gen, each in the order of the spans. The object
    may be used again for the same spans, as the steps of a drawing do.

    Args:
        cache: Of all rows.
        spans: What enters; spans of one row in their order.
    """

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self._cache, self._spans = cache, spans
        self.num_und = sum(span.length - span.num_gen for span in spans)
        moved = on_device(_columns(spans), cache.device)
        self._rows, self._places, self.position_ids = moved[:3]
        self._reordered = tuple(moved[3:])
        pieces = [piece for span in spans for piece in _pieces(span)]
        runs = [_make_run(group, cache.device) for group in _group(pieces)]
        self._runs = tuple(runs)
        self._lengths = [run.num_rows * run.length for run in runs]

    def reserve(self) -> None:
        """Notes that the spans will be written, as each pass has to."""
        for span in self._spans:
            self._cache.reserve(span)

    def of_layer(self, number: int) -> "_LayerCache":
        """The attention of one layer."""
        return _LayerCache(self, self._cache.keys[number], self._cache.values[number])

    def attend(
        self, keys: Tensor, values: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Writes new keys and values to a layer's cache, then attends, [T, N, H]."""
        keys[self._rows, :, self._places] = key
        values[self._rows, :, self._places] = value
        if self._reordered:
            query = query[self._reordered[1]]
        parts = [
            run.attend(part, keys, values)
            for run, part in zip(self._runs, query.split(self._lengths), strict=True)
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
    """New tokens through the decoder; their keys and values stay in the cache.

    Args:
        model: On the cache's device.
        tokens: Where they go.
        und: [n, D] embedded tokens of the understanding expert, in the order of the spans.
        gen: [m, D] of the generation expert.

    Returns:
        Last hidden states of both.
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
    """Rows, places and positions of tokens, und first; then, if there are gen ones, two orders.

    Returns:
        [3, T]; or [5, T] with the place of each token in the order of the spans, and the inverse.
    """
    if all(span.length == 1 for span in spans):  # a token of each text: as quick as can be
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
    """Long texts in pieces; a token sees none after it, so that changes nothing."""
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
    """Spans that attend in one call, as far as they stand side by side."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and _joins(groups[-1], span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _joins(group: Sequence[Span], span: Span) -> bool:
    last, length = group[-1], group[0].length
    if span.length != length or length > MAX_TOGETHER or span.row <= last.row:
        return False
    if length > 1 and "text" in (span.kind, last.kind):
        return False
    return len(group) == 1 or span.row - last.row == last.row - group[-2].row


def _make_run(group: Sequence[Span], device: torch.device) -> _Run:
    first, last, end = group[0], group[-1], max(span.end for span in group)
    stride = group[1].row - first.row if len(group) > 1 else 1
    causal = first.kind == "text" and first.length > 1
    mask = None
    if causal and first.start > 0:
        mask = torch.ones(first.length, end, dtype=torch.bool, device=device).tril(first.start)
    elif any(span.end < end for span in group):
        ends = on_device(torch.tensor([span.end for span in group]), device)
        mask = (torch.arange(end, device=device) < ends[:, None])[:, None, None]
    return _Run(
        rows=slice(first.row, last.row + 1, stride),
        num_rows=len(group),
        length=first.length,
        end=end,
        mask=mask,
        causal=causal,
    )
