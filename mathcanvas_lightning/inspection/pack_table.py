"""The blocks of a pack, and a table of them.

Shape letter: T packed tokens.
"""

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
"""Width of the terminal from which a table of blocks shows texts, in columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One split of a pack."""

    sample: int
    """Number of the sample within the pack, from 0."""
    start: int
    """First packed position."""
    end: int
    """Packed position after the last token."""
    kind: BlockKind
    """Type of the content; "padding" replaces a sample that couldn't be read."""
    attention_mode: AttentionMode
    expert: Expert
    """Expert of its tokens; the markers around latents always use "und"."""
    positions: tuple[int, int]
    """RoPE positions of the first and last token."""
    ce_tokens: int
    """Number of tokens with a text loss."""
    mse_tokens: int
    """Number of tokens with a drawing loss."""
    size: tuple[int, int] | None
    """Rows and columns of the image's tokens; None for texts, for several images in one split, and
    for ViT images with ambiguous position ids, such as interpolated ones."""
    text: str
    """Decoded text; empty for images and padding."""
    labels: str
    """Decoded labels of the text loss; empty without such a loss."""


def describe_pack(batch: PackedBatch, decode: Callable[[list[int]], str]) -> tuple[Block, ...]:
    """Describes the splits of a pack.

    Args:
        batch: A pack, on any device.
        decode: Decodes token ids to text.

    Returns:
        The blocks in order; they cover the pack without gaps. Empty splits are left out.
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
    """Makes a table with a row for each block.

    Args:
        blocks: Blocks of a pack.
        sample_names: Names of the samples; samples without a name are numbered.

    Returns:
        The table. Each text takes one line, with control characters as escapes.
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
        is_first = block.sample != last
        if is_first and last is not None:
            table.add_section()
        last = block.sample
        name = sample_name(block.sample, sample_names) if is_first else ""
        table.add_row(_one_line(name, 24), *_cells(block))
    return table


def print_blocks(console: Console, blocks: Sequence[Block], sample_names: Sequence[str]) -> None:
    """Prints the table of a pack, wide enough to show its texts.

    Args:
        console: Console to print to; it is widened if it is too narrow.
        blocks: Blocks of the pack.
        sample_names: Names of the samples; samples without a name are numbered.
    """
    console.width = max(console.width, MIN_TABLE_WIDTH)
    console.print(blocks_table(blocks, sample_names))


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """The tensor's values on the CPU."""
    return tensor.detach().cpu().numpy()


def token_kinds(batch: PackedBatch) -> npt.NDArray[np.int8]:
    """[T] indexes into `KINDS`; the kind of an image is the maximum over its tokens."""
    kinds = np.full(batch.sequence_length, _PADDING, dtype=np.int8)
    kinds[to_numpy(batch.text_indexes)] = TEXT
    kinds[to_numpy(batch.vit_indexes)] = _VIT
    noisy = to_numpy(batch.noisy_latents())
    kinds[to_numpy(batch.latent_indexes)] = np.where(noisy, _NOISY, _CLEAN)
    return kinds


def _counts_by_range(indexes: Ints, ends: Ints) -> Ints:
    return np.bincount(np.searchsorted(ends, indexes, side="right"), minlength=len(ends))


def _ids_by_range(indexes: Tensor, ids: Tensor, starts: Ints, ends: Ints) -> list[list[int]]:
    """The ids in each range of positions, in order."""
    positions = to_numpy(indexes)
    order = np.argsort(positions, kind="stable")
    positions, sorted_ids = positions[order], to_numpy(ids)[order]
    bounds = zip(np.searchsorted(positions, starts), np.searchsorted(positions, ends), strict=True)
    return [sorted_ids[first:last].tolist() for first, last in bounds]


def _kinds_by_range(
    kinds: npt.NDArray[np.int8],
    starts: Ints,
    text_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
) -> list[int]:
    greatest = np.maximum.reduceat(kinds, starts).tolist()
    return [
        _PADDING if kind == TEXT and not predicted and _is_padding(ids) else kind
        for kind, ids, predicted in zip(greatest, text_ids, labels, strict=True)
    ]


def _is_padding(ids: Sequence[int]) -> bool:
    """Whether one token is repeated; a text begins and ends with different markers."""
    return len(ids) > 1 and len(set(ids)) == 1


def _sizes_by_range(batch: PackedBatch, ends: Ints) -> dict[int, tuple[int, int] | None]:
    """Index of the range -> size of its image; None for several images in a range."""
    sizes: dict[int, tuple[int, int] | None] = {}
    vit_ids = cut(to_numpy(batch.vit_position_ids), batch.vit_lens)
    latents = cut(to_numpy(batch.latent_indexes), [h * w for h, w in batch.latent_shapes])
    found = [
        *zip(cut(to_numpy(batch.vit_indexes), batch.vit_lens), _vit_sizes(vit_ids), strict=True),
        *zip(latents, batch.latent_shapes, strict=True),
    ]
    for positions, size in found:
        if len(positions):
            owner = int(np.searchsorted(ends, positions[0], side="right"))
            sizes[owner] = None if owner in sizes else size
    return sizes


def cut(values: Ints, lengths: Sequence[int]) -> list[Ints]:
    """Splits values into runs of the given lengths."""
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []


def _vit_sizes(position_ids: Sequence[Ints]) -> list[tuple[int, int] | None]:
    """Rows and columns of each ViT image.

    An id is row * side + column. The pack does not contain the side, so it is inferred as the
    difference between the first ids of consecutive rows, which is the same in all images. If the
    differences disagree, or the ids of a row are not consecutive, the positions were interpolated
    and the sizes are unknown.
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
        columns = max(min(run, side), 1)  # the ids of rows of full width are consecutive
        rows = len(ids) // columns
        grid = np.arange(rows)[:, None] * side + np.arange(columns)
        known = len(ids) == 1 or (side > 0 and np.array_equal(ids - ids[:1], grid.ravel()))
        sizes.append((rows, columns) if known else None)
    return sizes


def _first_run(ids: Ints) -> int:
    """Length of the run of consecutive ids at the start."""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    return int(breaks[0]) + 1 if len(breaks) else len(ids)


def sample_name(sample: int, names: Sequence[str]) -> str:
    """The name of a sample, or its number."""
    return names[sample] if sample < len(names) else f"sample {sample}"


def summary(blocks: Sequence[Block]) -> str:
    """One line with the counts of a pack."""
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
    """One line of text without markup; control characters become dim escapes."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for character in text[:limit]:
        if character.isprintable():
            line.append(character)
        else:
            line.append(escaped(character), style="dim")
    return line.append("…") if len(text) > limit else line


def escaped(text: str) -> str:
    """The text with control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
