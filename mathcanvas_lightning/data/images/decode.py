"""Checks image files: known format, complete, and of a size that is safe to decode.

The limits are arguments; Pillow's global settings are never changed.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Raster formats only: for none of them Pillow starts an external program."""
Depth = Literal["header", "checksums", "pixels"]
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
MAX_PIXELS = 64_000_000
"""Default limit of width times height; Pillow warns at 89 million."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ImageLimits:
    """Maximum sizes of an image; larger ones are refused without decoding."""

    max_pixels: int = MAX_PIXELS
    """Maximum of width times height."""
    max_bytes: int = 64 * 2**20
    """Maximum size of the encoded file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """Format, size and mode from an image header."""

    format: str
    """Pillow's name of the format: "PNG", "JPEG", ..."""
    width_px: int
    height_px: int
    mode: str
    """Pillow's name of the mode: "RGB", "RGBA", "P", ..."""


class ImageError(Exception):
    """An image that can't be used.

    Args:
        reason: `image_unreadable`, `image_truncated` or `image_too_large`.
        message: Description of the problem.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_image(data: bytes, limits: ImageLimits, *, depth: Depth = "checksums") -> ImageInfo:
    """Reads the header of an image and checks that the file is complete.

    Args:
        data: The encoded file.
        limits: Maximum sizes, checked before decoding.
        depth: "header" reads only the header. "checksums" verifies the checksums of a PNG, which
            cover every byte and cost a hundredth of decoding; other formats have no checksums and
            are decoded. "pixels" decodes all formats.

    Returns:
        Format, size and mode.

    Raises:
        ImageError: If it has none of the known formats, is truncated, or exceeds a limit.
    """
    if len(data) > limits.max_bytes:
        raise ImageError("image_too_large", f"{len(data)} bytes, over {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these problems are checked here
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                info = _read_header(image, limits)
                if depth != "header":
                    _check_whole(image, data, depth)
                return info
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from None
    except Exception as error:  # decoders raise any exception on broken input
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
    # Decoding a JPEG at an eighth of its size reads all data with less arithmetic.
    image.draft("L", (1, 1))
    image.load()


def _broken(data: bytes, error: Exception) -> ImageError:
    if not data:
        return ImageError("image_truncated", "the file is empty")
    text = str(error) or type(error).__name__
    if data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return ImageError("image_truncated", f"the WebP has only {len(data)} bytes")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("image_unreadable", f"not an image of the formats {', '.join(FORMATS)}")
    truncated = isinstance(error, EOFError) or "truncated" in text.lower()
    return ImageError("image_truncated" if truncated else "image_unreadable", text)
