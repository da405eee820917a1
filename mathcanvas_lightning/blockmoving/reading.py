"""Reads a drawing back: finds the stack that it shows, with a confidence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
from PIL import Image

from mathcanvas_lightning.blockmoving.drawing import draw_state
from mathcanvas_lightning.blockmoving.levels import Level
from mathcanvas_lightning.blockmoving.rules import Stack

MAX_CANDIDATES = 5_000
"""Levels with more stacks are searched cube by cube instead of compared with all of them."""
COMPARED_PX = 24
"""Side of a view in comparisons; at a quarter of the pixels all stacks still differ."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The stack that a drawing shows."""

    stack: Stack
    confidence: float
    """0 to 1: 1 for a perfect rendering, 0 for a picture halfway between two stacks."""


def read_drawing(picture: Image.Image, level: Level) -> Reading:
    """Finds the stack whose rendering is nearest to a picture, by squared differences of pixels.

    Args:
        picture: A drawing of one stack, of any size.
        level: Board, cubes and views of the puzzle that it belongs to.

    Returns:
        The stack. Where a level has too many stacks to compare with all, cubes are placed and
        moved one at a time as long as the rendering comes nearer.
    """
    shape = (COMPARED_PX * len(level.views), COMPARED_PX)
    small = picture.convert("RGB").resize(shape, Image.Resampling.BOX)
    pixels = _as_floats(small)
    if count_stacks(level) <= MAX_CANDIDATES:
        return _nearest(pixels, level)
    return _search(pixels, level)


def count_stacks(level: Level) -> int:
    """Counts the stacks of a level: colours, then columns, in every order."""
    total = 0
    for num_blocks in range(level.min_blocks, level.max_blocks + 1):
        ways = 1
        for placed in range(num_blocks):  # each cube goes onto a column, below or above others
            ways *= level.size * level.size + placed
        for chosen in range(num_blocks):
            ways = ways * (level.num_colours - chosen) // (chosen + 1)
        total += ways
    return total


def all_stacks(level: Level) -> Iterator[Stack]:
    """Yields every stack that leaves room below the ceiling, in a fixed order."""
    for num_blocks in range(level.min_blocks, level.max_blocks + 1):
        for colours in combinations(range(level.num_colours), num_blocks):
            yield from _arrangements(Stack.empty(level.size), colours)


def _arrangements(stack: Stack, blocks: Sequence[int]) -> Iterator[Stack]:
    found = {stack}
    for order in permutations(blocks):
        reached = {stack}
        for block in order:
            reached = {new for old in reached for new in _with_cube(old, block, ceiling=stack.size)}
        found |= reached
    found.discard(stack)
    yield from sorted(found, key=lambda s: s.columns)


def _with_cube(stack: Stack, block: int, *, ceiling: int) -> Iterator[Stack]:
    """Yields the stacks with one more cube, on top of any column."""
    for index, column in enumerate(stack.columns):
        if len(column) < ceiling:
            x, y = divmod(index, stack.size)
            yield stack.with_column(x, y, (*column, block))


@lru_cache(maxsize=4)
def _candidates(level: Level) -> tuple[tuple[Stack, ...], Floats]:
    stacks = tuple(all_stacks(level))
    return stacks, np.stack([_render(stack, level) for stack in stacks])


@lru_cache(maxsize=20_000)
def _render(stack: Stack, level: Level) -> Floats:
    """Returns the pixels of a rendering, shrunk for comparisons, from 0 to 1."""
    picture = draw_state(stack, view_px=level.view_px, views=level.views)
    shape = (COMPARED_PX * len(level.views), COMPARED_PX)
    return _as_floats(picture.resize(shape, Image.Resampling.BOX))


def _as_floats(picture: Image.Image) -> Floats:
    pixels: Floats = np.asarray(picture, np.float32).ravel() / np.float32(255)
    return pixels


def _nearest(pixels: Floats, level: Level) -> Reading:
    stacks, renderings = _candidates(level)
    errors = (renderings**2).sum(1) - 2 * renderings @ pixels + (pixels**2).sum()
    first, second = np.argpartition(errors, 1)[:2]
    if errors[second] < errors[first]:
        first, second = second, first
    apart = ((renderings[first] - renderings[second]) ** 2).sum()
    return Reading(
        stack=stacks[first], confidence=_confidence(errors[second] - errors[first], apart)
    )


def _search(pixels: Floats, level: Level) -> Reading:
    """Improves the stack by single changes until none makes the rendering nearer."""
    stack = Stack.empty(level.size)
    while True:
        shown = _render(stack, level)
        error = float(((shown - pixels) ** 2).sum())
        changes = {new: _render(new, level) for new in _changes(stack, level)}
        # A change that the views hide, such as a cube behind others, is skipped.
        seen = {new: image for new, image in changes.items() if (image != shown).any()}
        errors = {new: float(((image - pixels) ** 2).sum()) for new, image in seen.items()}
        best = min(errors, key=lambda new: errors[new])
        if errors[best] >= error:
            apart = float(((seen[best] - shown) ** 2).sum())
            return Reading(stack=stack, confidence=_confidence(errors[best] - error, apart))
        stack = best


def _changes(stack: Stack, level: Level) -> Iterator[Stack]:
    """Yields the stacks with a cube more, less, moved or recoloured, or two swapped."""
    absent = sorted(set(range(level.num_colours)) - set(stack.cells()))
    for block in absent:
        for index, column in enumerate(stack.columns):
            x, y = divmod(index, stack.size)
            if len(column) < stack.size:
                for height in range(len(column) + 1):
                    yield stack.with_column(x, y, (*column[:height], block, *column[height:]))
    for (x, y, z), _ in stack:
        column = stack.column(x, y)
        without = stack.with_column(x, y, (*column[:z], *column[z + 1 :]))
        yield without
        for block in absent:
            yield stack.with_column(x, y, (*column[:z], block, *column[z + 1 :]))
        yield from _with_cube(without, column[z], ceiling=stack.size)
    for one, other in combinations(stack.cells(), 2):
        swapped = {one: other, other: one}
        columns = (tuple(swapped.get(b, b) for b in column) for column in stack.columns)
        yield Stack(stack.size, tuple(columns))


def _confidence(margin: float, apart: float) -> float:
    """Returns the confidence: 0 halfway between two stacks, 1 at the rendering of the nearest one.

    Args:
        margin: Squared distance to the next stack minus that to the nearest.
        apart: Squared distance of the two renderings.
    """
    return float(np.clip(margin / apart, 0.0, 1.0)) if apart > 0 else 0.0
