"""Drawings are read back: exactly where they are rendered, and with high rates when disturbed."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mathcanvas_lightning.blockmoving.drawing import draw_state
from mathcanvas_lightning.blockmoving.levels import LEVELS
from mathcanvas_lightning.blockmoving.parts import different_puzzles
from mathcanvas_lightning.blockmoving.reading import all_stacks, count_stacks, read_drawing
from mathcanvas_lightning.blockmoving.rules import Stack


def _drawings(number: int, count: int) -> list[tuple[Stack, Image.Image]]:
    level = LEVELS[number]
    stacks = [puzzle.final for puzzle in different_puzzles(level, "all", 7, count)]
    return [(s, draw_state(s, view_px=level.view_px, views=level.views)) for s in stacks]


def test_level_1_has_1350_stacks_with_different_pictures() -> None:
    stacks = list(all_stacks(LEVELS[1]))
    assert len(set(stacks)) == len(stacks) == count_stacks(LEVELS[1]) == 1350
    pictures = {draw_state(s, view_px=48, views=("corner",)).tobytes() for s in stacks}
    assert len(pictures) == 1350


@pytest.mark.parametrize(("number", "count"), [(1, 20), (3, 4), (4, 1)])
def test_renderings_are_read_exactly(number: int, count: int) -> None:
    for stack, picture in _drawings(number, count):
        reading = read_drawing(picture, LEVELS[number])
        assert reading.stack == stack
        assert reading.confidence == pytest.approx(1.0, abs=1e-3)


def test_blurred_and_noisy_drawings_are_read_mostly_right() -> None:
    rng = np.random.default_rng(0)
    right = {"blur": 0, "noise": 0}
    drawings = _drawings(1, 30)
    for stack, picture in drawings:
        noise = rng.normal(0, 40, (picture.height, picture.width, 3))
        noisy = np.clip(np.asarray(picture, float) + noise, 0, 255).astype(np.uint8)
        disturbed = {
            "blur": picture.filter(ImageFilter.GaussianBlur(1)),
            "noise": Image.fromarray(noisy),
        }
        for kind, image in disturbed.items():
            reading = read_drawing(image, LEVELS[1])
            right[kind] += reading.stack == stack
    assert right["blur"] >= 29
    assert right["noise"] >= 29


def test_a_picture_of_nothing_has_no_confidence() -> None:
    grey = Image.new("RGB", (48, 48), (128, 128, 128))
    assert read_drawing(grey, LEVELS[1]).confidence < 0.5


def test_another_size_is_read_too() -> None:
    stack, picture = _drawings(1, 1)[0]
    assert read_drawing(picture.resize((96, 96)), LEVELS[1]).stack == stack
