"""Decoding on white, limits before decoding, and output sizes."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits
from mathcanvas_lightning.data.images.resize import ImageTransform, decode_image
from mathcanvas_lightning.errors import ConfigError
from tests.conftest import encoded, png


def half_transparent(mode: str) -> bytes:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (2, 0, 4, 4))
    buffer = BytesIO()
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([255, 0, 0, 0, 0, 255])
        palette.paste(1, (2, 0, 4, 4))
        palette.save(buffer, "PNG", transparency=0)
    else:
        image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_becomes_white(mode: str) -> None:
    pixels = np.asarray(decode_image(half_transparent(mode), ImageLimits()))
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] != 255).any(axis=-1).all()


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("PNG", "1"), ("JPEG", "CMYK")])
def test_every_mode_gives_the_same_pixels_as_rgb(kind: str, mode: str) -> None:
    colour = {"L": 128, "1": 1, "CMYK": (0, 0, 0, 0)}[mode]
    data = encoded(kind, 50, 40, colour, mode)  # type: ignore[arg-type]
    rule = ImageTransform(max_image_size=64, min_image_size=32)
    pixels = rule(decode_image(data, ImageLimits()))
    assert pixels.shape == (32, 48, 3)
    np.testing.assert_array_equal(pixels, rule(Image.open(BytesIO(data)).convert("RGB")))


def test_grey_images_are_resized_like_rgb() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (45, 37), np.uint8)
    rule = ImageTransform(max_image_size=64, min_image_size=32)
    grey = Image.fromarray(noise)
    np.testing.assert_array_equal(rule(grey), rule(grey.convert("RGB")))


def test_bad_images() -> None:
    with pytest.raises(ImageError, match="over 10"):
        decode_image(png(8, 8), ImageLimits(max_pixels=10))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    buffer = BytesIO()
    noise.save(buffer, "PNG")
    with pytest.raises(ImageError):
        decode_image(buffer.getvalue()[: len(buffer.getvalue()) // 2], ImageLimits())


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), images=st.integers(1, 9))
def test_output_sizes_follow_the_rule(width: int, height: int, images: int) -> None:
    rule = ImageTransform(max_image_size=512, min_image_size=256, image_stride=14)
    new = rule.output_size(width, height, images)
    assert all(side >= 14 and side % 14 == 0 for side in new)
    assert max(new) <= 512 + 7


def test_output_pixels() -> None:
    rule = ImageTransform(max_image_size=64, min_image_size=32)
    pixels = rule(Image.new("RGB", (100, 50), "red"))
    assert pixels.shape == (32, 64, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_contradicting_sizes_are_an_error() -> None:
    with pytest.raises(ConfigError, match="min_image_size 65"):
        ImageTransform(max_image_size=64, min_image_size=65)
