"""Output sizes and pixels of resized images."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.resize import ImageTransform, decode_image, on_white
from mathcanvas_lightning.errors import ConfigError
from tests.conftest import encoded

RULE = ImageTransform(max_image_size=64, min_image_size=32)


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


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    seed=st.integers(0, 999),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
    differing=st.sampled_from(["nothing", "one value", "a channel", "all channels"]),
)
def test_pixels_equal_those_of_resized_rgb(
    width: int, height: int, seed: int, mode: str, differing: str
) -> None:
    data = encoded_noise(np.random.default_rng(seed), width, height, mode, differing)
    plain = on_white(Image.open(BytesIO(data))).convert("RGB")
    decoded = decode_image(data, ImageLimits())
    shown = np.asarray(plain)
    assert decoded.mode == ("L" if (shown == shown[..., :1]).all() else "RGB")
    np.testing.assert_array_equal(np.asarray(decoded.convert("RGB")), shown)
    for rule in (RULE, ImageTransform(max_image_size=40, min_image_size=20, image_stride=14)):
        wanted = plain.resize(rule.output_size(*plain.size), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(rule(decoded), np.asarray(wanted))


def encoded_noise(
    random: np.random.Generator, width: int, height: int, mode: str, differing: str
) -> bytes:
    """A PNG of this mode, from RGB pixels whose channels are equal but for what differs."""
    levels = [0, 255, *random.integers(0, 256, 9)]
    pixels = np.repeat(random.choice(levels, (height, width, 1)).astype(np.uint8), 3, axis=2)
    if differing == "one value":
        pixels[random.integers(height), random.integers(width), random.integers(3)] ^= 1
    elif differing != "nothing":
        channels = [random.integers(3)] if differing == "a channel" else range(3)
        for channel in channels:
            pixels[..., channel] = random.choice(levels, (height, width))
    image = Image.fromarray(pixels)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode.removesuffix("A"))
        image.putalpha(Image.fromarray(random.choice([0, 255], (height, width)).astype(np.uint8)))
    else:
        image = image.quantize(64) if mode == "P" else image.convert(mode)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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
