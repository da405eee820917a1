"""Decoded pixels: on white, scaled to 8 bits, and what a page shows."""

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.pixels import decode_image, image_for_page, upright_image
from tests.conftest import png

LIMITS = ImageLimits()
RAMP = np.linspace(0, 65535, 1024).reshape(32, 32)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def encode(pixels: npt.NDArray[Any], kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(NOISE, kind, exif=exif)


def pixels_of(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(decode_image(data, LIMITS))


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


def test_bad_images() -> None:
    with pytest.raises(ImageError, match="over 10"):
        decode_image(png(8, 8), ImageLimits(max_pixels=10))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    buffer = BytesIO()
    noise.save(buffer, "PNG")
    with pytest.raises(ImageError):
        decode_image(buffer.getvalue()[: len(buffer.getvalue()) // 2], ImageLimits())


@pytest.mark.parametrize(
    ("kind", "values", "white"),
    [
        ("PNG", RAMP.astype(np.uint16), 65535),
        ("PNG", (RAMP / 100).astype(np.uint16), 65535),  # dark, but not stretched
        ("TIFF", RAMP.astype(np.uint16), 65535),
        ("TIFF", RAMP.astype(np.int32), 65535),
        ("TIFF", (RAMP / 257).astype(np.int32), 255),
        ("TIFF", (RAMP * 100).astype(np.int32), 6553500),
        ("TIFF", (RAMP - 30000).astype(np.int32), 65535),
        ("TIFF", (RAMP / 65535).astype(np.float32), 1),
        ("TIFF", (RAMP / 257).astype(np.float32), 255),
        ("TIFF", RAMP.astype(np.float32), 65535),
    ],
)
def test_deep_grey_is_scaled_to_eight_bits(
    kind: str, values: npt.NDArray[Any], white: float
) -> None:
    pixels = pixels_of(encode(values, kind))
    expected = np.clip(values.astype(np.float64), 0, None) * 255 / white
    assert np.abs(pixels - expected).max() <= 0.501
    assert pixels.shape == (32, 32)


def test_values_that_are_no_numbers_are_black() -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[0, :3] = [np.nan, np.inf, -np.inf]
    pixels = pixels_of(encode(values, "TIFF"))
    assert pixels[0, :3].tolist() == [0, 0, 0]
    assert set(pixels[1:].flat) == {128}


def test_transparent_value_of_deep_grey_becomes_white() -> None:
    pixels = pixels_of(encode(RAMP.astype(np.uint16), "PNG", transparency=0))
    assert pixels[0, 0] == 255
    assert pixels[16, 0] == 128


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int) -> None:
    data = turned(kind, orientation)
    info = check_image(data, LIMITS)
    assert info.orientation == orientation
    assert (info.width_px, info.height_px) == decode_image(data, LIMITS).size == (60, 40)
    upright = upright_image(data, LIMITS)
    assert check_image(upright, LIMITS).orientation == 1
    unturned = Image.fromarray(pixels_of(data))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    wanted = unturned if orientation == 1 else unturned.transpose(turns[orientation])
    np.testing.assert_array_equal(pixels_of(upright), np.asarray(wanted))


def test_tiff_is_turned_by_the_decoder() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    info = check_image(encode(NOISE, "TIFF", exif=exif), LIMITS)
    assert (info.width_px, info.height_px, info.orientation) == (40, 60, 1)


def test_damaged_exif_data_is_upright() -> None:
    assert check_image(encode(NOISE, "JPEG", exif=b"Exif\0\0 none"), LIMITS).orientation == 1


@pytest.mark.parametrize(
    "data",
    [
        turned("JPEG", 6),
        turned("WEBP", 3),
        encode(RAMP.astype(np.uint16), "PNG"),
        encode(RAMP.astype(np.float32), "TIFF"),
        encode(NOISE, "BMP"),
        encode(NOISE, "GIF"),
        encode(NOISE, "PNG", icc_profile=b"profile"),
        encode(NOISE, "PNG", icc_profile=bytes(2**21)),
        encode(NOISE, "PNG", save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
    ],
)
def test_page_shows_the_pixels_of_the_model(data: bytes) -> None:
    shown, kind = image_for_page(data, LIMITS)
    assert kind == "PNG"
    plain = Image.open(BytesIO(shown))
    assert not plain.info
    np.testing.assert_array_equal(np.asarray(plain), pixels_of(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_page_shows_plain_files_unchanged(kind: str) -> None:
    data = encode(NOISE, kind)
    assert image_for_page(data, LIMITS) == (data, kind)
