"""What is in a pack, for people: its blocks, and a table of them. T packed tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mathcanvas_lightning.batch import AttentionMode, PackedBatch

BlockKind = Literal["padding", "text", "ViT image", "clean latents", "noisy latents"]
Expert = Literal["und", "gen"]
Ints: TypeAlias = npt.NDArray[np.int64]

KINDS: tuple[BlockKind, ...] = ("padding", "text", "ViT image", "clean latents", "noisy latents")
_PADDING, TEXT, _VIT, _CLEAN, _NOISY = range(5)
MIN_TABLE_WIDTH = 140
"""Columns of the terminal that a table of blocks needs to show texts."""


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
    """What it holds; "padding" stands in place of a sample that couldn't be read."""
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
    for ViT images whose position ids leave it open, such as interpolated ones."""
    text: str
    """Decoded ids of a text; empty for images and padding."""
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
    rope = to_numpy(batch.position_ids)
    text_ids = _ids_by_range(batch.text_indexes, batch.text_ids, starts, ends)
    labels = _ids_by_range(batch.ce_indexes, batch.ce_label_ids, starts, ends)
    kinds = _kinds_by_range(token_kinds(batch), starts, text_ids, labels)
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


def print_blocks(console: Console, blocks: Sequence[Block], sample_names: Sequence[str]) -> None:
    """Prints the table of a pack, wide enough to show its texts.

    Args:
        console: Where; made wider if it is too narrow.
        blocks: Of the pack.
        sample_names: Of its samples; those without a name are numbered.
    """
    console.width = max(console.width, MIN_TABLE_WIDTH)
    console.print(blocks_table(blocks, sample_names))


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


def _kinds_by_range(
    kinds: npt.NDArray[np.int8],
    starts: Ints,
    text_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
) -> list[int]:
    greatest = np.maximum.reduceat(kinds, starts).tolist()
    return [
        _PADDING if kind == TEXT and not predicted and _is_filling(ids) else kind
        for kind, ids, predicted in zip(greatest, text_ids, labels, strict=True)
    ]


def _is_filling(ids: Sequence[int]) -> bool:
    """Whether one token is repeated. A text begins and ends with different markers."""
    return len(ids) > 1 and len(set(ids)) == 1


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

    An id is row * side + column, with a side that the pack does not tell: it is by how much the
    first id of a row passes that of the row before, the same in all images. Where they disagree,
    or the ids between are not consecutive, images are spread over the table and their sizes lost.
    """
    runs = [_first_run(ids) for ids in position_ids]
    steps = {
        int(ids[run] - ids[0])
        for ids, run in zip(position_ids, runs, strict=True)
        if run < len(ids)
    }
    side = steps.pop() if len(steps) == 1 else 0
    sizes: list[tuple[int, int] | None] = []
    for ids, run in zip(position_ids, runs, strict=True):
        columns = max(min(run, side), 1)  # rows of full width run on into one another
        rows = len(ids) // columns
        grid = np.arange(rows)[:, None] * side + np.arange(columns)
        known = len(ids) == 1 or (side > 0 and np.array_equal(ids - ids[:1], grid.ravel()))
        sizes.append((rows, columns) if known else None)
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
    tokens = sum(block.end - block.start for block in blocks)
    samples = len({block.sample for block in blocks})
    ce, mse = sum(block.ce_tokens for block in blocks), sum(block.mse_tokens for block in blocks)
    counts = ((tokens, "token"), (samples, "sample"), (len(blocks), "split"))
    named = ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts)
    return f"{named}; {ce:,} predict text, {mse:,} an image"


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
