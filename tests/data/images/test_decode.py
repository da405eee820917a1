"""Images are complete, of a known format and a safe size; Pillow's globals stay unchanged."""

import warnings
from io import BytesIO
from zlib import compress, crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mathcanvas_lightning.data.images.decode import (
    FORMATS,
    Depth,
    ImageError,
    ImageLimits,
    check_image,
    image_size,
)
from mathcanvas_lightning.errors import ConfigError
from tests.conftest import encoded, examples, png

LIMITS = ImageLimits()


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    data = encoded(kind, 31, 17)
    info = check_image(data, LIMITS)
    assert (info.format, info.width_px, info.height_px) == (kind, 31, 17)
    assert image_size(data, LIMITS) == (31, 17)
    with pytest.raises(ImageError, match="over 500"):
        image_size(data, ImageLimits(max_pixels=500))
    with pytest.raises(ImageError, match="over 20"):
        image_size(data, ImageLimits(max_bytes=20))
    for length in (0, 8, 20):
        with pytest.raises(ImageError):
            image_size(data[:length], LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("deep", [False, True])
def test_truncated_files_are_detected(kind: str, deep: bool) -> None:
    picture = Image.effect_noise((60, 40), 80).convert("RGB")
    buffer = BytesIO()
    picture.save(buffer, kind)
    data = buffer.getvalue()
    depth: Depth = "pixels" if deep else "checksums"
    for length in [*range(0, len(data), 37), *range(len(data) - 12, len(data))]:
        with pytest.raises(ImageError) as caught:
            check_image(data[:length], LIMITS, depth=depth)
        assert caught.value.reason in ("image_truncated", "image_unreadable")
    with pytest.raises(ImageError) as caught:
        check_image(data[: len(data) * 2 // 3], LIMITS)
    assert caught.value.reason == "image_truncated"


@settings(max_examples=examples(200))
@given(st.integers(8, 400), st.integers(1, 255), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
def test_damaged_files_only_raise_image_errors(position: int, flip: int, kind: str) -> None:
    data = bytearray(encoded(kind, 40, 30))
    data[position % len(data)] ^= flip
    try:
        check_image(bytes(data), LIMITS)
    except ImageError as error:
        assert error.reason.startswith("image_")


def test_too_large_images_are_refused_before_decoding() -> None:
    data = png(4000, 4000)
    with pytest.raises(ImageError, match=r"4000x4000 pixels") as caught:
        check_image(data, ImageLimits(max_pixels=15_999_999))
    assert caught.value.reason == "image_too_large"
    assert check_image(data, ImageLimits(max_pixels=16_000_000)).width_px == 4000
    huge = bytearray(png())
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # the header claims 3.6 gigapixels
    huge[29:33] = crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError) as caught:
        check_image(bytes(huge), LIMITS)
    assert caught.value.reason == "image_too_large"
    assert str(caught.value) == f"more than {LIMITS.max_pixels} pixels"
    with pytest.raises(ImageError) as caught:
        check_image(data, ImageLimits(max_bytes=100))
    assert caught.value.reason == "image_too_large"


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"P6 1 1 255\n\0\0\0"])
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        check_image(data, LIMITS)
    assert caught.value.reason == "image_unreadable"


def test_what_is_no_image_is_named() -> None:
    with pytest.raises(ImageError, match=r"not an image of .*; it is a HEIC photo"):
        check_image(b"\0\0\0\x18ftypheic", LIMITS)


@pytest.mark.parametrize("change", [{"max_pixels": 0}, {"max_bytes": -1}])
def test_limits_are_positive(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="positive"):
        ImageLimits(**change)


@pytest.mark.slow
def test_globals_stay_unchanged() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_image(png(9500, 9500), ImageLimits(max_pixels=10**9))  # Pillow would warn
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_every_changed_byte_of_a_png_is_detected() -> None:
    data = png(30, 20)
    for position in range(8, len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x10
        with pytest.raises(ImageError):
            check_image(bytes(changed), LIMITS)


def test_decoding_detects_what_checksums_do_not() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + crc32(kind + body).to_bytes(4, "big")

    header = (20).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    rows = compress(b"\0" * 61 * 20)[:-9] + b"no zlib"  # all checksums are valid
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    assert check_image(data, LIMITS).height_px == 20
    with pytest.raises(ImageError):
        check_image(data, LIMITS, depth="pixels")


def test_lfs_pointer_is_named() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    with pytest.raises(ImageError, match="Git LFS pointer"):
        check_image(pointer, LIMITS)
