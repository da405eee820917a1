"""Decodes images to 8-bit pixels on white, turns them upright, and encodes them for a page."""

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mathcanvas_lightning.data.images.decode import Depth, ImageLimits, opened_image
from mathcanvas_lightning.data.images.png import SIGNATURE

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's grey modes of more than 8 bits; its own conversion clips them."""
BROWSER_FORMATS = ("PNG", "JPEG", "WEBP")
BROWSER_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decodes an image on a white background; an EXIF orientation is ignored.

    Args:
        data: The encoded file.
        limits: Maximum sizes, checked before decoding.

    Returns:
        An RGB image; a grey image if all its channels are equal, which is faster to resize.

    Raises:
        ImageError: If it can't be decoded, is truncated, or exceeds a limit.
    """
    # Pillow decodes a PNG with a damaged or missing end without an error, unlike other formats.
    depth: Depth = "checksums" if data.startswith(SIGNATURE) else "header"
    with opened_image(data, limits, depth=depth) as (image, _):
        return _grey_if_equal(on_white(image))


def on_white(image: Image.Image) -> Image.Image:
    """Decodes an image and puts transparent parts on white.

    Args:
        image: Image of any mode; more than 8 bits a pixel are scaled to 8.

    Returns:
        An RGB image, or a grey image if the source is grey.
    """
    if image.mode in DEEP_MODES:
        return _eight_bits(image)
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        if image.mode in ("RGB", "L"):
            image.load()
            return image
        return image.convert("L" if image.mode == "1" else "RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGB", layered.size, (255, 255, 255))
    white.paste(layered, mask=layered.getchannel("A"))
    return white


def upright_image(data: bytes, limits: ImageLimits) -> bytes:
    """Turns an image as its EXIF orientation says.

    Args:
        data: The encoded file.
        limits: Maximum sizes, checked before decoding.

    Returns:
        A PNG file with the same pixels, on white and without EXIF data.

    Raises:
        ImageError: If it can't be decoded, is truncated, or exceeds a limit.
    """
    with opened_image(data, limits, depth="header") as (image, _):
        return _png(on_white(ImageOps.exif_transpose(image)))


def image_for_page(data: bytes, limits: ImageLimits) -> tuple[bytes, str]:
    """An image as the model gets it, in a format that browsers show.

    Args:
        data: The encoded file.
        limits: Maximum sizes, checked before decoding.

    Returns:
        File and Pillow's name of its format. The file is unchanged if browsers show the pixels
        that `decode_image` returns; otherwise (EXIF orientation, 16 bits, colour profile,
        animation, TIFF) it is a PNG of these pixels.

    Raises:
        ImageError: If it can't be decoded, is truncated, or exceeds a limit.
    """
    with opened_image(data, limits, depth="header") as (image, info):
        is_same = (
            info.format in BROWSER_FORMATS
            and info.mode in BROWSER_MODES
            and info.orientation == 1
            and not image.info.keys() & {"icc_profile", "gamma"}
            and b"iCCP" not in data  # not in `info` if it is too large for Pillow
            and not getattr(image, "is_animated", False)
        )
    return (data, info.format) if is_same else (_png(decode_image(data, limits)), "PNG")


def _grey_if_equal(image: Image.Image) -> Image.Image:
    """The grey image of an RGB image whose channels are equal, such as most line drawings.

    Filters treat each channel alone, so resizing one of them gives the same pixels.
    """
    if image.mode != "RGB":
        return image
    few = image.resize((-(-image.width // 8), -(-image.height // 8)), Image.Resampling.NEAREST)
    is_grey = _has_equal_channels(few) and _has_equal_channels(image)
    return image.getchannel("R") if is_grey else image


def _has_equal_channels(image: Image.Image) -> bool:
    red, green, blue = (channel.tobytes() for channel in image.split())
    return red == green == blue


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales grey values to 0..255. White is the maximum of the smallest range that holds them.

    16-bit modes always have the range 0..65535. The wider modes say nothing of their range: it is
    0..1 for floats, 0..255 or 0..65535, and beyond these the largest value is white.
    """
    values: npt.NDArray[np.float32] = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0)
    largest = float(values.max(initial=0.0))
    ranges = [1.0] * (image.mode == "F") + [255.0] * (image.mode in ("I", "F")) + [65535.0]
    white = next((limit for limit in ranges if largest <= limit), largest)
    scaled = np.clip(values, 0.0, white) * (255.0 / white)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255.0
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    image.info.clear()  # Pillow would write EXIF data and profiles again
    return encode_png(image)


def encode_png(image: Image.Image) -> bytes:
    """Encodes an image as PNG, with Pillow's defaults."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
