"""Is this really an image, whole, and of a size that is safe to decode?

Pillow's globals are never changed: the limits are arguments.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Raster formats alone: none of them makes Pillow start another program."""
Depth = Literal["header", "checksums", "pixels"]
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


MAX_PIXELS = 64_000_000
"""Default limit of width times height; Pillow itself warns at 89 million."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ImageLimits:
    """How large an image may be before it is refused without being decoded."""

    max_pixels: int = MAX_PIXELS
    """Width times height."""
    max_bytes: int = 64 * 2**20
    """Of the encoded file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What the header of an image says."""

    format: str
    """Pillow's name: "PNG", "JPEG", ..."""
    width_px: int
    height_px: int
    mode: str
    """Pillow's name: "RGB", "RGBA", "P", ..."""


class ImageError(Exception):
    """An image that can't be used.

    Args:
        reason: `image_unreadable`, `image_truncated` or `image_too_large`.
        message: What is wrong with it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_image(data: bytes, limits: ImageLimits, *, depth: Depth = "checksums") -> ImageInfo:
    """Reads an image's header and, unless told not to, checks that all of it is there.

    Args:
        data: The encoded file.
        limits: Checked before any pixel is decoded.
        depth: "header" looks no further. "checksums" checks those of a PNG, which covers every
            byte of it at a hundredth of the cost of its pixels, and decodes other formats, which
            have none. "pixels" decodes all formats.

    Returns:
        Format, size and mode.

    Raises:
        ImageError: If it is no image of the known formats, is cut short, or is over a limit.
    """
    if len(data) > limits.max_bytes:
        raise ImageError("image_too_large", f"{len(data)} bytes, over {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked here
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                info = _read_header(image, limits)
                if depth != "header":
                    _check_whole(image, data, depth)
                return info
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from None
    except Exception as error:  # decoders raise whatever comes to them on broken input
        raise _broken(data, error) from None


def _read_header(image: Image.Image, limits: ImageLimits) -> ImageInfo:
    if image.width * image.height > limits.max_pixels:
        size = f"{image.width}x{image.height} pixels"
        raise ImageError("image_too_large", f"{size}, over {limits.max_pixels}")
    assert image.format is not None
    return ImageInfo(
        format=image.format, width_px=image.width, height_px=image.height, mode=image.mode
    )


def _check_whole(image: Image.Image, data: bytes, depth: Depth) -> None:
    if image.format == "PNG":
        if PNG_END not in data[-1024:]:
            raise ImageError("image_truncated", "the PNG has no end chunk")
        if depth == "checksums":
            image.verify()
            return
    # An eighth of a JPEG's size needs all of its data, yet only a part of the arithmetic.
    image.draft("L", (1, 1))
    image.load()


def _broken(data: bytes, error: Exception) -> ImageError:
    if not data:
        return ImageError("image_truncated", "the file is empty")
    text = str(error) or type(error).__name__
    if data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return ImageError("image_truncated", f"the WebP holds {len(data)} bytes, not all of them")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("image_unreadable", f"not an image of the formats {', '.join(FORMATS)}")
    cut_short = isinstance(error, EOFError) or "truncated" in text.lower()
    return ImageError("image_truncated" if cut_short else "image_unreadable", text)
