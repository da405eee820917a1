"""Checks image files: known format, complete, and of a size that is safe to decode.

The limits are arguments; Pillow's global settings are never changed.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from mathcanvas_lightning.common.file_kinds import POINTER, is_lfs_pointer, kind_of
from mathcanvas_lightning.data.images.errors import ImageError
from mathcanvas_lightning.data.images.png import SIGNATURE, png_size, read_png
from mathcanvas_lightning.errors import check_settings

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Depth",
    "ImageError",
    "ImageInfo",
    "ImageLimits",
    "check_image",
    "image_size",
    "opened_image",
]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Raster formats only: for none of them Pillow starts an external program."""
Depth = Literal["header", "checksums", "pixels"]
MAX_PIXELS = 64_000_000
"""Default limit of width times height; Pillow warns at 89 million."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ImageLimits:
    """Maximum sizes of an image; larger ones are refused without decoding."""

    max_pixels: int = MAX_PIXELS
    """Maximum of width times height."""
    max_bytes: int = 64 * 2**20
    """Maximum size of the encoded file."""

    def __post_init__(self) -> None:
        """Checks the limits.

        Raises:
            ConfigError: If one is not positive.
        """
        check_settings(
            ("max_pixels of images", self.max_pixels, self.max_pixels >= 1, "a positive number"),
            ("max_bytes of images", self.max_bytes, self.max_bytes >= 1, "a positive number"),
            remedy="Leave it out to use the default.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What the header of an image says."""

    format: str
    """Pillow's name of the format: "PNG", "JPEG", ..."""
    width_px: int
    height_px: int
    mode: str
    """Pillow's name of the mode: "RGB", "RGBA", "P", ..."""
    orientation: int = 1
    """EXIF orientation, 1 (upright) to 8. Browsers turn the image, the reference does not; sizes
    and pixels are those before turning."""


def check_image(data: bytes, limits: ImageLimits, *, depth: Depth = "checksums") -> ImageInfo:
    """Reads the header of an image and checks that the file is complete.

    Args:
        data: The encoded file.
        limits: Maximum sizes, checked before decoding.
        depth: "header" reads only the header. "checksums" verifies the checksums of a PNG, which
            cover every byte and cost a hundredth of decoding; other formats have no checksums and
            are decoded. "pixels" decodes all formats.

    Returns:
        Format, size, mode and orientation.

    Raises:
        ImageError: If it has none of the known formats, is truncated, or exceeds a limit.
    """
    with opened_image(data, limits, depth=depth) as (_, info):
        return info


def image_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Reads width and height in pixels; of a PNG without Pillow, which takes longer.

    Args:
        data: The encoded file.
        limits: Maximum sizes.

    Raises:
        ImageError: If it has no readable header or exceeds a limit.
    """
    size = png_size(data)
    if size is None or size[0] * size[1] > limits.max_pixels or len(data) > limits.max_bytes:
        info = check_image(data, limits, depth="header")
        return info.width_px, info.height_px
    return size


@contextlib.contextmanager
def opened_image(
    data: bytes, limits: ImageLimits, *, depth: Depth = "checksums"
) -> Iterator[tuple[Image.Image, ImageInfo]]:
    """Opens an image as `check_image` does; the block may decode it.

    Args:
        data: The encoded file.
        limits: Maximum sizes, checked before decoding.
        depth: What is checked, see `check_image`.

    Yields:
        Pillow's image, which may be decoded already in a small size, and its header.

    Raises:
        ImageError: As `check_image`, and for any exception that decoders raise in the block.
    """
    if len(data) > limits.max_bytes:
        raise ImageError("image_too_large", f"{len(data)} bytes, over {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these problems are checked here
            content, must_decode = _decodable(data, depth)
            with _open(content) as image:
                info = _read_header(image, limits)
                if must_decode:
                    # Decoding a JPEG at an eighth of its size reads all data with less arithmetic.
                    image.draft("L", (1, 1))
                    image.load()
                yield image, info
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("image_too_large", f"more than {limits.max_pixels} pixels") from None
    except Exception as error:  # decoders raise any exception on broken input
        raise _broken(data, error) from None


def _decodable(data: bytes, depth: Depth) -> tuple[bytes, bool]:
    """The bytes for the decoder, and whether only decoding shows that the file is complete."""
    if depth == "header":
        return data, False
    if not data.startswith(SIGNATURE):
        return data, True
    png = read_png(data)
    return png.data, depth == "pixels" or png.is_damaged


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Exception:
        if not data.startswith(SIGNATURE):
            raise
        return Image.open(BytesIO(read_png(data, only_pixels=True).data), formats=FORMATS)


def _read_header(image: Image.Image, limits: ImageLimits) -> ImageInfo:
    if image.width * image.height > limits.max_pixels:
        size = f"{image.width}x{image.height} pixels"
        raise ImageError("image_too_large", f"{size}, over {limits.max_pixels}")
    assert image.format is not None
    return ImageInfo(
        format=image.format,
        width_px=image.width,
        height_px=image.height,
        mode=image.mode,
        orientation=_orientation(image),
    )


def _orientation(image: Image.Image) -> int:
    if not image.info.get("exif") or image.format == "TIFF":  # Pillow turns a TIFF itself
        return 1
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # an image with damaged EXIF data is shown unturned
        exif.load(image.info["exif"])
        value = exif.get(ExifTags.Base.Orientation)
        if isinstance(value, int) and 1 <= value <= 8:
            return value
    return 1


def _broken(data: bytes, error: Exception) -> ImageError:
    if not data:
        return ImageError("image_truncated", "the file is empty")
    if is_lfs_pointer(data):
        return ImageError("image_unreadable", POINTER)
    text = str(error) or type(error).__name__
    if data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return ImageError("image_truncated", f"the WebP has only {len(data)} bytes")
    if isinstance(error, UnidentifiedImageError):
        kind = kind_of(data)
        what = f"; it is {kind.name}" if kind and kind.name != "a picture" else ""
        message = f"not an image of the formats {', '.join(FORMATS)}{what}"
        return ImageError("image_unreadable", message)
    truncated = isinstance(error, EOFError) or "truncated" in text.lower()
    return ImageError("image_truncated" if truncated else "image_unreadable", text)
