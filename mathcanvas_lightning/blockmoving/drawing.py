"""Pictures of stacks: from two opposite corners and from above, with axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import cos, pi, sin
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from mathcanvas_lightning.blockmoving.rules import Stack

COLOURS = {
    "red": (214, 48, 49),
    "blue": (41, 98, 199),
    "green": (46, 154, 76),
    "yellow": (245, 205, 47),
    "purple": (134, 69, 178),
    "orange": (240, 132, 36),
    "cyan": (58, 193, 207),
    "pink": (240, 138, 182),
    "brown": (125, 82, 52),
    "grey": (150, 150, 155),
    "white": (244, 244, 240),
    "black": (58, 58, 62),
}
"""Colour names of blocks 0, 1, 2, ... and their RGB values in full light."""
NAMES = tuple(COLOURS)
_RGB = tuple(COLOURS.values())

View = Literal["corner", "above"]
VIEWS = ("corner", "opposite corner", "above")
AXES = {"x": (200, 30, 30), "y": (20, 130, 50), "z": (30, 60, 200)}
INK, FLOOR, LINES = (40, 40, 45), (236, 238, 241), (190, 194, 200)
SHADES = {"top": 1.0, "x": 0.82, "y": 0.66}
SUPERSAMPLING = 2
MIN_VISIBLE_PIXELS = 12
MIN_LABELLED_PX = 96
"""Smaller views have no axes, whose letters could not be read."""

Point = tuple[float, float]
Quad = tuple[tuple[float, float, float], ...]


def draw_state(stack: Stack, *, view_px: int, views: Sequence[str] = VIEWS) -> Image.Image:
    """Draws a stack, its views side by side.

    Args:
        stack: What to draw.
        view_px: Side of one view, in pixels.
        views: Names from `VIEWS`.

    Returns:
        RGB picture of len(views) * view_px by view_px pixels.
    """
    return _draw_rows([stack], view_px, views)


def draw_composite(
    initial: Stack, final: Stack, *, view_px: int, views: Sequence[str] = VIEWS
) -> Image.Image:
    """Draws the initial stack in the top row and the final one in the bottom row.

    Args:
        initial: Top row.
        final: Bottom row.
        view_px: Side of one view, in pixels.
        views: Names from `VIEWS`.

    Returns:
        RGB picture of len(views) * view_px by 2 * view_px pixels.
    """
    return _draw_rows([initial, final], view_px, views)


@lru_cache(maxsize=100_000)
def all_visible(stack: Stack, views: tuple[str, ...] = VIEWS) -> bool:
    """Whether each block can be seen in at least one of the views."""
    visible: set[int] = set()
    for view in views:
        picture = Image.new("L", (64, 64), 255)
        canvas = ImageDraw.Draw(picture)
        for block, quads in _blocks_back_to_front(stack, view):
            for quad, _ in quads:
                canvas.polygon(_project(quad, _Frame(view, stack.size, 64.0)), fill=block)
        pixels = picture.histogram()
        visible |= {block for block, count in enumerate(pixels) if count >= MIN_VISIBLE_PIXELS}
    return {block for _, block in stack} <= visible


@dataclass(frozen=True, slots=True)
class _Frame:
    """How board coordinates become pixels of a view."""

    view: str
    size: int
    side: float
    is_labelled: bool = True


def _draw_rows(stacks: Sequence[Stack], view_px: int, views: Sequence[str]) -> Image.Image:
    side = view_px * SUPERSAMPLING
    picture = Image.new("RGB", (side * len(views), side * len(stacks)), "white")
    for row, stack in enumerate(stacks):
        for column, view in enumerate(views):
            panel = Image.new("RGB", (side, side), "white")
            frame = _Frame(view, stack.size, side, view_px >= MIN_LABELLED_PX)
            _draw_view(ImageDraw.Draw(panel), stack, frame)
            picture.paste(panel, (column * side, row * side))
    return picture.reduce(SUPERSAMPLING)


def _draw_view(canvas: ImageDraw.ImageDraw, stack: Stack, frame: _Frame) -> None:
    size, width = stack.size, max(1, round(frame.side) // 200)
    for x in range(size):
        for y in range(size):
            tile = ((x, y, 0), (x + 1, y, 0), (x + 1, y + 1, 0), (x, y + 1, 0))
            canvas.polygon(_project(tile, frame), fill=FLOOR, outline=LINES, width=width)
    if frame.is_labelled:
        _draw_axes(canvas, size, frame.view, round(frame.side))
    for block, quads in _blocks_back_to_front(stack, frame.view):
        for quad, shade in quads:
            colour = tuple(round(channel * shade) for channel in _RGB[block])
            canvas.polygon(_project(quad, frame), fill=colour, outline=INK, width=width)


def _draw_axes(canvas: ImageDraw.ImageDraw, size: int, view: str, side: int) -> None:
    frame = _Frame(view, size, side)
    font, width = _font(side // 16), max(1, side // 130)
    ends = {"x": (size + 0.45, 0, 0), "y": (0, size + 0.45, 0), "z": (0, 0, size + 0.15)}
    for axis, colour in AXES.items():
        if axis == "z" and view != "corner":  # from the other corner it would cover the blocks
            continue
        start, end = _project(((0, 0, 0), ends[axis]), frame)
        canvas.line((start, end), fill=colour, width=width)
        _draw_arrow_head(canvas, start, end, colour, side / 40)
        x, y, z = (coordinate * 1.11 for coordinate in ends[axis])
        canvas.text(_project(((x, y, z),), frame)[0], axis, colour, font, anchor="mm")
    ticks = _font(side // 24)
    for k in range(size):
        marks: Quad = ((k + 0.5, -0.3, 0.0), (-0.3, k + 0.5, 0.0))
        for cell in marks:
            canvas.text(_project((cell,), frame)[0], str(k), INK, ticks, anchor="mm")


def _draw_arrow_head(
    canvas: ImageDraw.ImageDraw, start: Point, end: Point, colour: tuple[int, ...], length: float
) -> None:
    dx, dy = end[0] - start[0], end[1] - start[1]
    norm = (dx * dx + dy * dy) ** 0.5
    dx, dy = dx / norm * length, dy / norm * length
    left = (end[0] - dx - dy / 2, end[1] - dy + dx / 2)
    right = (end[0] - dx + dy / 2, end[1] - dy - dx / 2)
    canvas.polygon((end, left, right), fill=colour)


def _blocks_back_to_front(stack: Stack, view: str) -> list[tuple[int, list[tuple[Quad, float]]]]:
    """Blocks with the faces that a view shows, those behind first."""
    sign = -1 if view == "opposite corner" else 1
    blocks = sorted(stack, key=lambda item: (sign * (item[0][0] + item[0][1]), item[0][2]))
    if view == "above":
        blocks = sorted(stack, key=lambda item: item[0][2])
    return [(block, _faces(*cell, view)) for cell, block in blocks]


def _faces(x: int, y: int, z: int, view: str) -> list[tuple[Quad, float]]:
    up = z + 1
    top = ((x, y, up), (x + 1, y, up), (x + 1, y + 1, up), (x, y + 1, up))
    if view == "above":
        return [(top, SHADES["top"])]
    near_x, near_y = (x, y) if view == "opposite corner" else (x + 1, y + 1)
    side_x = ((near_x, y, z), (near_x, y + 1, z), (near_x, y + 1, up), (near_x, y, up))
    side_y = ((x, near_y, z), (x + 1, near_y, z), (x + 1, near_y, up), (x, near_y, up))
    return [(side_x, SHADES["x"]), (side_y, SHADES["y"]), (top, SHADES["top"])]


def _project(points: Quad, frame: _Frame) -> list[Point]:
    """Board coordinates to pixels of a view: isometric from a corner, or straight from above."""
    size, side = frame.size, frame.side
    if frame.view == "above":
        margin = 1.0 if frame.is_labelled else 0.1
        scale = side / (size + 2.0 * margin)
        return [(scale * (x + margin), side - scale * (y + margin)) for x, y, _ in points]
    # Without labels the board fills the view.
    scale = side / (2.15 * size + 1.4 if frame.is_labelled else 2.1 * size)
    ground = side * (0.67 if frame.is_labelled else 0.74)
    sign = -1 if frame.view == "opposite corner" else 1
    middle = size / 2
    projected = []
    for x, y, z in points:
        u, v = sign * (x - middle), sign * (y - middle)
        across = (v - u) * cos(pi / 6)
        down = (u + v) * sin(pi / 6) - z
        projected.append((side / 2 + scale * across, ground + scale * down))
    return projected


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(size, 8))
