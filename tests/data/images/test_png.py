"""PNG files: what pixels need must be whole, everything else may be large or damaged."""

from collections.abc import Iterator
from io import BytesIO
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mathcanvas_lightning.data.images.decode import Depth, ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.pixels import decode_image
from mathcanvas_lightning.data.images.png import SIGNATURE

LIMITS = ImageLimits()
NOISE = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)  # several IDAT chunks
DEPTHS: list[Depth] = ["header", "checksums", "pixels"]


def plain() -> bytes:
    buffer = BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = crc32(kind + body) if checksum is None else checksum
    return len(body).to_bytes(4, "big") + kind + body + checksum.to_bytes(4, "big")


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    position = len(SIGNATURE)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], position, end
        position = end


def inserted(extra: bytes, before: bytes) -> bytes:
    data = plain()
    start = next(start for kind, start, _ in chunks(data) if kind == before)
    return data[:start] + extra + data[start:]


def check_pixels(data: bytes) -> None:
    for depth in DEPTHS:
        assert check_image(data, LIMITS, depth=depth).width_px == 200
    np.testing.assert_array_equal(np.asarray(decode_image(data, LIMITS)), NOISE)


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"eXIf", b"tIME"])
def test_nonsense_that_decides_no_pixels_does_not_matter(kind: bytes) -> None:
    check_pixels(inserted(chunk(kind, b""), b"IDAT"))


@pytest.mark.parametrize("trailer", [b"\0" * 4096, b"x", plain(), b"\0\0\0\0IEND" * 200])
def test_bytes_after_the_end_are_ignored(trailer: bytes) -> None:
    check_pixels(plain() + trailer)


def test_large_texts_and_profiles_do_not_matter() -> None:
    info = PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    info.add_itxt("prompt", "y" * 3_000_000, zip=True)
    info.add_text("plain", "z" * 3_000_000)
    buffer = BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG", pnginfo=info, icc_profile=bytes(3_000_000))
    check_pixels(buffer.getvalue())


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iCCP", b"gAMA", b"eXIf", b"tIME", b"prVt"])
def test_damage_that_spares_the_pixels(kind: bytes, before: bytes) -> None:
    check_pixels(inserted(chunk(kind, b"no such content", checksum=1), before))


@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS", b"QQQQ", b"\0\0\0\0", b"1abc"])
def test_damage_that_may_change_pixels(kind: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        check_image(inserted(chunk(kind, b"content", checksum=1), b"IDAT"), LIMITS)
    assert caught.value.reason == "image_unreadable"


@pytest.mark.parametrize("kind", [b"CgBI", b"QQQQ"])
def test_chunks_that_change_the_meaning_of_the_pixels(kind: bytes) -> None:
    """CgBI: Xcode writes premultiplied pixels in another order and compression."""
    data = inserted(chunk(kind, b"P\0 \2"), b"IHDR")
    for read in (check_image, decode_image):
        with pytest.raises(ImageError, match=f"non-standard chunk {kind.decode()!r}"):
            read(data, LIMITS)


@settings(deadline=None)
@given(st.data())
def test_damaged_chunk_never_loses_pixels(data: st.DataObject) -> None:
    """Not even if the damage makes a chunk of pixels look like one without."""
    whole = plain()
    _, start, end = data.draw(st.sampled_from(list(chunks(whole))))
    changed = bytearray(whole)
    position = data.draw(st.integers(start, start + 7) | st.integers(start, end - 1))
    changed[position] ^= data.draw(st.just(0x20) | st.integers(1, 255))
    with pytest.raises(ImageError):
        check_image(bytes(changed), LIMITS)
    with pytest.raises(ImageError):
        decode_image(bytes(changed), LIMITS)
