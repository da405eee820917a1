"""What is in a pack, for people: its blocks, and a table of them. T packed tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mathcanvas_lightning.batch import AttentionMode, PackedBatch

BlockKind = Literal["padding", "text", "ViT image", "clean latents", "noisy latents"]
Expert = Literal["und", "gen"]
Ints: TypeAlias = npt.NDArray[np.int64]

KINDS: tuple[BlockKind, ...] = ("padding", "text", "ViT image", "clean latents", "noisy latents")
_PADDING, TEXT, _VIT, _CLEAN, _NOISY = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One split of a pack."""

    sample: int
    """Which sample of the pack, from 0."""
    start: int
    """First packed position."""
    end: int
    """Packed position after the last."""
    kind: BlockKind
    """What it holds; "padding" if its positions hold neither text nor image tokens."""
    attention_mode: AttentionMode
    expert: Expert
    """Which weights it passes; the markers of latents pass "und" all the same."""
    positions: tuple[int, int]
    """Rope positions of its first and its last token."""
    ce_tokens: int
    """Tokens that predict a token."""
    mse_tokens: int
    """Tokens that predict a velocity."""
    size: tuple[int, int] | None
    """Rows and columns of its image's tokens; None for texts, for several images in one split, and
    for ViT images whose position ids leave it open."""
    text: str
    """Decoded ids of a text; empty for images."""
    labels: str
    """Decoded tokens that its tokens predict; empty without such a loss."""


def describe_pack(batch: PackedBatch, decode: Callable[[list[int]], str]) -> tuple[Block, ...]:
    """Finds out what the splits of a pack hold, from the pack alone.

    Args:
        batch: The pack, on any device.
        decode: Makes text of token ids.

    Returns:
        The blocks in order; they tile the pack. Splits without tokens are left out.
    """
    splits = [split for split in batch.splits if split.length]
    if not splits:
        return ()
    ends = np.cumsum([split.length for split in splits])
    starts = ends - [split.length for split in splits]
    samples = np.searchsorted(np.cumsum(batch.sample_lens), starts, side="right").tolist()
    kinds = np.maximum.reduceat(token_kinds(batch), starts).tolist()
    rope = to_numpy(batch.position_ids)
    text_ids = _ids_by_range(batch.text_indexes, batch.text_ids, starts, ends)
    labels = _ids_by_range(batch.ce_indexes, batch.ce_label_ids, starts, ends)
    mse_tokens = _counts_by_range(to_numpy(batch.mse_indexes), ends)
    sizes = _sizes_by_range(batch, ends)
    return tuple(
        Block(
            sample=samples[i],
            start=int(starts[i]),
            end=int(ends[i]),
            kind=KINDS[kinds[i]],
            attention_mode=split.attention_mode,
            expert="gen" if kinds[i] in (_CLEAN, _NOISY) else "und",
            positions=(int(rope[starts[i]]), int(rope[ends[i] - 1])),
            ce_tokens=len(labels[i]),
            mse_tokens=int(mse_tokens[i]),
            size=sizes.get(i),
            text=decode(text_ids[i]) if kinds[i] == TEXT else "",
            labels=decode(labels[i]) if labels[i] else "",
        )
        for i, split in enumerate(splits)
    )


def blocks_table(blocks: Sequence[Block], sample_names: Sequence[str]) -> Table:
    """A table with a row for each block.

    Args:
        blocks: Of a pack.
        sample_names: Of its samples; those without a name are numbered.

    Returns:
        The table. Texts take one line; control characters in them are shown as escapes.
    """
    table = Table(title=summary(blocks), title_justify="left")
    table.add_column("sample", no_wrap=True)
    table.add_column("range", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("mode", no_wrap=True)
    table.add_column("expert", no_wrap=True)
    table.add_column("rope", justify="right", no_wrap=True)
    table.add_column("losses", justify="right", no_wrap=True)
    table.add_column("text")
    last = None
    for block in blocks:
        begins = block.sample != last
        if begins and last is not None:
            table.add_section()
        last = block.sample
        name = sample_name(block.sample, sample_names) if begins else ""
        table.add_row(_one_line(name, 24), *_cells(block))
    return table


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """The tensor's values on the CPU."""
    return tensor.detach().cpu().numpy()


def token_kinds(batch: PackedBatch) -> npt.NDArray[np.int8]:
    """[T] numbers of `KINDS`, so ordered that the greatest of an image's tokens is its kind."""
    kinds = np.full(batch.sequence_length, _PADDING, dtype=np.int8)
    kinds[to_numpy(batch.text_indexes)] = TEXT
    kinds[to_numpy(batch.vit_indexes)] = _VIT
    noisy = to_numpy(batch.noisy_latents())
    kinds[to_numpy(batch.latent_indexes)] = np.where(noisy, _NOISY, _CLEAN)
    return kinds


def _counts_by_range(indexes: Ints, ends: Ints) -> Ints:
    return np.bincount(np.searchsorted(ends, indexes, side="right"), minlength=len(ends))


def _ids_by_range(indexes: Tensor, ids: Tensor, starts: Ints, ends: Ints) -> list[list[int]]:
    """The ids that stand in each range, in order."""
    places = to_numpy(indexes)
    order = np.argsort(places, kind="stable")
    places, sorted_ids = places[order], to_numpy(ids)[order]
    bounds = zip(np.searchsorted(places, starts), np.searchsorted(places, ends), strict=True)
    return [sorted_ids[first:last].tolist() for first, last in bounds]


def _sizes_by_range(batch: PackedBatch, ends: Ints) -> dict[int, tuple[int, int] | None]:
    """Sizes of the images in each range, None where it holds several."""
    sizes: dict[int, tuple[int, int] | None] = {}
    vit_ids = cut(to_numpy(batch.vit_position_ids), batch.vit_lens)
    latents = cut(to_numpy(batch.latent_indexes), [h * w for h, w in batch.latent_shapes])
    found = [
        *zip(cut(to_numpy(batch.vit_indexes), batch.vit_lens), _vit_sizes(vit_ids), strict=True),
        *zip(latents, batch.latent_shapes, strict=True),
    ]
    for places, size in found:
        if len(places):
            owner = int(np.searchsorted(ends, places[0], side="right"))
            sizes[owner] = None if owner in sizes else size
    return sizes


def cut(values: Ints, lengths: Sequence[int]) -> list[Ints]:
    """The values in runs of these lengths."""
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []


def _vit_sizes(position_ids: Sequence[Ints]) -> list[tuple[int, int] | None]:
    """Rows and columns of each ViT image.

    An id is row * side + column, with a side that the pack does not tell: where a row ends, the id
    jumps to the next multiple of it. Ids that never jump are one row, or rows of full width; the
    jumps of other images tell which.
    """
    widths = [_first_run(ids) for ids in position_ids]
    jumps = [
        int(ids[width] - ids[0])
        for ids, width in zip(position_ids, widths, strict=True)
        if width < len(ids)
    ]
    sizes: list[tuple[int, int] | None] = []
    for ids, width in zip(position_ids, widths, strict=True):
        if width == len(ids) > 1:
            width = min(width, jumps[0]) if jumps else 0
        sizes.append((len(ids) // width, width) if width and len(ids) % width == 0 else None)
    return sizes


def _first_run(ids: Ints) -> int:
    """How many ids follow one another by 1 from the first on."""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    return int(breaks[0]) + 1 if len(breaks) else len(ids)


def sample_name(sample: int, names: Sequence[str]) -> str:
    """The name of a sample, or its number."""
    return names[sample] if sample < len(names) else f"sample {sample}"


def summary(blocks: Sequence[Block]) -> str:
    """One line about a pack."""
    samples = len({block.sample for block in blocks})
    tokens, ce, mse = (
        sum(counts)
        for counts in zip(
            (0, 0, 0),
            *((b.end - b.start, b.ce_tokens, b.mse_tokens) for b in blocks),
            strict=True,
        )
    )
    return (
        f"{tokens:,} tokens, {samples:,} samples, {len(blocks):,} splits; "
        f"{ce:,} tokens predict text, {mse:,} an image"
    )


def _cells(block: Block) -> Iterator[str | Text]:
    first, last = block.positions
    losses = ((block.ce_tokens, "ce"), (block.mse_tokens, "mse"))
    yield f"{block.start:,}:{block.end:,}"
    yield block.kind
    yield "" if block.size is None else f"{block.size[0]}x{block.size[1]}"
    yield block.attention_mode
    yield block.expert
    yield f"{first:,}" if first == last else f"{first:,} to {last:,}"
    yield ", ".join(f"{count:,} {name}" for count, name in losses if count)
    yield _one_line(block.text if block.text or not block.labels else f"→ {block.labels}", 100)


def _one_line(text: str, limit: int) -> Text:
    """A text whose control characters are dim escapes; being no markup, it may hold brackets."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for character in text[:limit]:
        if character.isprintable():
            line.append(character)
        else:
            line.append(escaped(character), style="dim")
    return line.append("…") if len(text) > limit else line


def escaped(text: str) -> str:
    """The text with its control characters spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
