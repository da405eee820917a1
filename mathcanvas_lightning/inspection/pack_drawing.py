"""A picture of a pack: its tokens, its images and its attention mask.

Shape letter: T packed tokens.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mathcanvas_lightning.batch import PackedBatch, to_unit_range
from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.inspection.pack_mask import MAX_MASK_PX, cell_edges, mask_image
from mathcanvas_lightning.inspection.pack_table import (
    KINDS,
    TEXT,
    Block,
    Ints,
    cut,
    escaped,
    sample_name,
    summary,
    to_numpy,
    token_kinds,
)
from mathcanvas_lightning.model.layers.attention import count_attended_pairs


def draw_pack(
    batch: PackedBatch,
    path: Path,
    blocks: Sequence[Block],
    *,
    sample_names: Sequence[str] = (),
) -> None:
    """Draws a pack as a PNG: a ribbon of its tokens, its images, and its attention mask.

    Args:
        batch: A pack.
        path: File to write atomically.
        blocks: Blocks of the pack, from `describe_pack`.
        sample_names: Names of the samples; samples without a name are numbered.

    Raises:
        ValueError: If the blocks don't cover the pack.
    """
    edges = [0, *(block.end for block in blocks)]
    if [block.start for block in blocks] != edges[:-1] or edges[-1] != batch.sequence_length:
        raise ValueError(f"the blocks don't cover the pack of {batch.sequence_length} tokens")
    picture = _Figure(batch, blocks, sample_names).draw()
    with written_whole(path) as temporary:
        picture.save(temporary, "PNG", optimize=True)


# Okabe and Ito's palette, which is suitable for colour-blind people.
_CLASSES: dict[str, tuple[int, int, int]] = {
    "text without loss": (86, 180, 233),
    "text with loss": (0, 114, 178),
    "ViT image": (0, 158, 115),
    "clean latents": (230, 159, 0),
    "noisy latents": (213, 94, 0),
    "image markers": (70, 70, 70),
    "padding": (200, 200, 200),
}
_INK, _SOFT, _FAINT, _PAPER = (34, 34, 34), (110, 110, 110), (228, 228, 228), (255, 255, 255)
_LINE = (170, 170, 170)
_MARGIN, _RIBBON, _GAP, _MIN_WIDTH = 36, 22, 6, 900
_TARGET_PX, _MAX_CELL_PX = 1200, 40
_THUMB_PX, _MIN_THUMB_PX, _LENS_PX = 84, 44, 34
_BODY_PX, _LINE_PX = 17, 26
_MIN_RULED_PX, _MIN_GRID_PX = 4, 12
"""Minimum size of a cell for lines between splits, and between tokens."""


class _Figure:
    """The drawing of a pack, from top to bottom."""

    def __init__(
        self, batch: PackedBatch, blocks: Sequence[Block], sample_names: Sequence[str]
    ) -> None:
        self._batch = batch
        self._blocks = blocks
        self._names = sample_names
        self._total = batch.sequence_length
        self._classes = _token_classes(batch, blocks)
        cells = min(self._total, MAX_MASK_PX)
        self._cell_px = min(_TARGET_PX // max(cells, 1), _MAX_CELL_PX)
        self._side = cells * self._cell_px
        self._left = _MARGIN + 76 + _RIBBON + _GAP
        self._ranges = _image_ranges(batch)
        self._images = _evenly_chosen(self._ranges, self._side // (_MIN_THUMB_PX + _GAP))
        lines = [line for note in self._notes() for line in note] + [self._images_note()]
        notes = [_font(_BODY_PX).getlength(line) for line in lines]
        right = self._left + self._side + int(24 + max(notes))
        self._width = max(right + _MARGIN, _MIN_WIDTH)
        self._legend = self._legend_slots()
        self._ribbon_top = (
            112 + _LINE_PX + 28 * (1 + max((row for _, row in self._legend), default=0))
        )
        if self._images:
            self._ribbon_top += self._thumb_px() + _LENS_PX + 12
        self._top = self._ribbon_top + _RIBBON + _GAP
        height = self._top + self._side + (84 if self._total else 0)
        self._canvas = Image.new("RGB", (self._width, height), _PAPER)
        self._pen = ImageDraw.Draw(self._canvas)

    def draw(self) -> Image.Image:
        self._draw_title()
        self._draw_legend()
        if self._total:
            self._draw_images()
            self._draw_mask()
            self._draw_axes()
            self._draw_samples()
        return self._canvas

    def _x(self, position: float) -> float:
        """Pixels from the left or upper end of the mask to a packed position."""
        return position * self._side / self._total

    def _draw_title(self) -> None:
        self._pen.text((_MARGIN, 28), "Contents and attention mask of a pack", _INK, _font(26))
        pairs = count_attended_pairs(self._batch.sample_lens, self._batch.splits)
        share = pairs / max(self._total, 1) ** 2
        about = f"Each row is a token and attends to the coloured tokens: {share:.1%} of all pairs"
        for i, line in enumerate((summary(self._blocks), about)):
            self._pen.text((_MARGIN, 66 + i * _LINE_PX), line, _SOFT, _font(_BODY_PX))

    def _legend_slots(self) -> list[tuple[int, int]]:
        """Left edge and row of each entry of the legend."""
        slots, left, row = [], _MARGIN, 0
        for name, count in self._counts():
            width = 56 + int(_font(_BODY_PX).getlength(f"{name}  {count}"))
            if left + width > self._width - _MARGIN and left > _MARGIN:
                left, row = _MARGIN, row + 1
            slots.append((left, row))
            left += width
        return slots

    def _counts(self) -> list[tuple[str, str]]:
        counts = np.bincount(self._classes, minlength=len(_CLASSES)).tolist()
        return [(n, f"{c:,}") for n, c in zip(_CLASSES, counts, strict=True) if c]

    def _draw_legend(self) -> None:
        for (name, count), (left, row) in zip(self._counts(), self._legend, strict=True):
            top = 106 + _LINE_PX + 28 * row
            self._pen.rounded_rectangle((left, top, left + 17, top + 17), 4, _CLASSES[name])
            self._pen.text((left + 26, top + 9), name, _INK, _font(_BODY_PX), anchor="lm")
            after = left + 26 + _font(_BODY_PX).getlength(f"{name}  ")
            self._pen.text((after, top + 9), count, _SOFT, _font(_BODY_PX), anchor="lm")

    def _images_note(self) -> str:
        shown, known = len(self._images), len(self._ranges)
        return f"{shown} of {known} images" if shown < known else ""

    def _thumb_px(self) -> int:
        return min(_THUMB_PX, self._side // len(self._images) - _GAP)

    def _draw_images(self) -> None:
        """Draws the images above their tokens, as far as there is room."""
        if not self._images:
            return
        size, ranges = self._thumb_px(), list(self._images.values())
        centres = [self._x((of[0][0] + of[-1][1]) / 2) for of in ranges]
        lefts = _side_by_side(centres, size + _GAP, self._side)
        top = self._ribbon_top - _LENS_PX - size
        # Drawn at 4x and scaled down, since Pillow does not antialias polygons.
        lens = Image.new("RGB", (self._side * 4, _LENS_PX * 4), _PAPER)
        pen = ImageDraw.Draw(lens)
        for image, of, left in zip(self._images, ranges, lefts, strict=True):
            thumb = _thumbnail(self._batch.images[image], size)
            x = int(left + (size - thumb.width) / 2)
            corner = (self._left + x, top + size - thumb.height)
            self._canvas.paste(thumb, corner)
            for start, end in of:
                ends = [(self._x(end), _LENS_PX), (self._x(start), _LENS_PX)]
                shape = [(x, 0), (x + thumb.width, 0), *ends]
                pen.polygon([(4 * across, 4 * down) for across, down in shape], _FAINT)
        beside = (self._left + self._side + 14, top + size / 2)
        self._pen.text(beside, self._images_note(), _SOFT, _font(_BODY_PX), anchor="lm")
        small = lens.resize((self._side, _LENS_PX), Image.Resampling.LANCZOS)
        self._canvas.paste(small, (self._left, self._ribbon_top - _LENS_PX))

    def _draw_mask(self) -> None:
        """Draws the mask in the colours of its keys, with a ribbon above and beside it."""
        edges = cell_edges(self._total, MAX_MASK_PX)
        palette = np.array(list(_CLASSES.values()), dtype=np.float32)
        sums = np.add.reduceat(palette[self._classes], edges[:-1])
        colours = sums / np.diff(edges)[:, None].astype(np.float32)
        share = mask_image(self._batch)[..., None]
        ribbon = self._enlarged(np.broadcast_to(colours, (1, *colours.shape)), _RIBBON)
        self._canvas.paste(ribbon, (self._left, self._ribbon_top))
        upright = ribbon.transpose(Image.Transpose.TRANSPOSE)
        self._canvas.paste(upright, (self._left - _RIBBON - _GAP, self._top))
        mask = self._enlarged(255 - share * (255 - colours), self._side)
        self._canvas.paste(mask, (self._left, self._top))
        self._draw_rules()

    def _draw_rules(self) -> None:
        """Draws white lines between splits, and fainter ones between tokens, in large cells."""
        if self._cell_px < _MIN_RULED_PX:
            return
        box = (self._left - _RIBBON - _GAP, self._ribbon_top)
        area = (self._left + self._side, self._top + self._side)
        veil = Image.new("L", (area[0] - box[0], area[1] - box[1]), 0)
        pen, indent = ImageDraw.Draw(veil), _RIBBON + _GAP
        tokens = range(self._total) if self._cell_px >= _MIN_GRID_PX else ()
        for positions, strength in ((tokens, 70), ([b.start for b in self._blocks], 255)):
            for position in positions:
                at = indent + position * self._cell_px
                pen.line((indent, at, veil.width, at), strength)
                pen.line((0, at, _RIBBON - 1, at), strength)
                pen.line((at, 0, at, veil.height), strength)
        self._canvas.paste(_PAPER, box, veil)

    def _enlarged(self, pixels: npt.NDArray[np.floating], height: int) -> Image.Image:
        image = Image.fromarray(pixels.round().astype(np.uint8))
        return image.resize((self._side, height), Image.Resampling.NEAREST)

    def _draw_axes(self) -> None:
        bottom, font = self._top + self._side, _font(14)
        for position in range(0, self._total, _tick_step(self._total)):
            at = self._x(position + 0.5)
            x, y = self._left + at, self._top + at
            self._pen.line((x, bottom + 1, x, bottom + 6), _SOFT)
            self._pen.text((x, bottom + 10), f"{position:,}", _SOFT, font, anchor="mt")
            edge = self._left - _RIBBON - _GAP
            self._pen.line((edge - 6, y, edge - 2, y), _SOFT)
            self._pen.text((edge - 10, y), f"{position:,}", _SOFT, font, anchor="rm")
        middle = self._left + self._side / 2
        self._pen.text((middle, bottom + 34), "key position", _INK, _font(_BODY_PX), anchor="mt")
        label = _upright("query position", _font(_BODY_PX))
        self._canvas.paste(label, (_MARGIN - 20, self._top + (self._side - label.height) // 2))

    def _notes(self) -> list[tuple[str, str]]:
        """Name and size of each sample."""
        return [
            (_shortened(escaped(sample_name(i, self._names))), f"{length:,} tokens")
            for i, length in enumerate(self._batch.sample_lens)
        ]

    def _draw_samples(self) -> None:
        """Draws lines between samples, and their names on the right as far as there is room."""
        right, bottom = self._left + self._side, self._top + self._side
        ends = np.cumsum(self._batch.sample_lens).tolist()
        frame, free = (self._left - 1, self._top - 1, right, bottom), 0.0
        for end, length, note in zip(ends, self._batch.sample_lens, self._notes(), strict=True):
            at = int(self._x(end))
            if end < self._total:
                x, y = self._left + at, self._top + at
                self._pen.line((x, self._ribbon_top, x, bottom), _LINE)
                self._pen.line((self._left - _RIBBON - _GAP, y, right + 10, y), _LINE)
            lines = note if self._x(length) >= 44 else note[:1]
            middle = self._top + self._x(end - length / 2)
            if middle - 10 * len(lines) >= free:
                for i, line in enumerate(lines):
                    beside = (right + 14, middle + 20 * (i - (len(lines) - 1) / 2))
                    self._pen.text(beside, line, (_INK, _SOFT)[i], _font(_BODY_PX), anchor="lm")
                free = middle + 10 * len(lines)
        self._pen.rectangle(frame, outline=_SOFT)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _token_classes(batch: PackedBatch, blocks: Sequence[Block]) -> Ints:
    """[T] indexes into `_CLASSES`."""
    names = list(_CLASSES)
    numbers = np.array([names.index(k) if k in names else -1 for k in KINDS])
    kinds = token_kinds(batch)
    classes = numbers[kinds]
    of_block = np.repeat(
        np.array([KINDS.index(block.kind) for block in blocks], dtype=np.int64),
        np.array([block.end - block.start for block in blocks], dtype=np.int64),
    )
    with_loss = np.zeros(len(kinds), dtype=bool)
    with_loss[to_numpy(batch.ce_indexes)] = True
    is_text = kinds == TEXT
    classes[is_text & ~with_loss] = names.index("text without loss")
    classes[is_text & with_loss] = names.index("text with loss")
    classes[is_text & (of_block != TEXT)] = names.index("image markers")
    classes[of_block == KINDS.index("padding")] = names.index("padding")
    return classes


def _image_ranges(batch: PackedBatch) -> dict[int, list[tuple[int, int]]]:
    """Image -> ranges of its latent tokens, in order of the sequence."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    positions = cut(to_numpy(batch.latent_indexes), [h * w for h, w in batch.latent_shapes])
    for image, of in zip(batch.latent_image_ids, positions, strict=True):
        if image < len(batch.images) and len(of):
            ranges.setdefault(image, []).append((int(of[0]), int(of[-1]) + 1))
    return {image: ranges[image] for image in sorted(ranges, key=lambda image: ranges[image][0])}


def _evenly_chosen(
    ranges: dict[int, list[tuple[int, int]]], room: int
) -> dict[int, list[tuple[int, int]]]:
    """Selects at most `room` images, evenly spaced over the pack."""
    images = list(ranges)
    chosen = np.linspace(0, len(images) - 1, min(len(images), room)).round().astype(int)
    return {images[i]: ranges[images[i]] for i in chosen.tolist()}


def _side_by_side(centres: Sequence[float], width: float, span: float) -> list[float]:
    """Left edges of boxes near their centres, without overlaps, between 0 and `span`."""
    lefts: list[float] = []
    for centre in centres:
        lefts.append(max(centre - width / 2, lefts[-1] + width if lefts else 0.0))
    limit = span
    for i in reversed(range(len(lefts))):
        limit = lefts[i] = min(lefts[i], limit - width)
    return lefts


def _thumbnail(image: Tensor, size: int) -> Image.Image:
    pixels = to_numpy(
        ((to_unit_range(image) + 1) * 127.5).clamp(0, 255).round().byte().permute(1, 2, 0)
    )
    picture = Image.fromarray(pixels)
    scale = size / max(picture.size)
    shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    thumb = picture.resize(shape, Image.Resampling.LANCZOS)
    ImageDraw.Draw(thumb).rectangle((0, 0, shape[0] - 1, shape[1] - 1), outline=_SOFT)
    return thumb


def _upright(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    label = Image.new("RGB", (int(font.getlength(text)) + 2, 22), _PAPER)
    ImageDraw.Draw(label).text((1, 11), text, _INK, font, anchor="lm")
    return label.transpose(Image.Transpose.ROTATE_90)


def _tick_step(total: int) -> int:
    """A step of 1, 2 or 5 times a power of ten that gives about ten ticks."""
    step = 1
    while step * 10 < total:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step


def _shortened(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
