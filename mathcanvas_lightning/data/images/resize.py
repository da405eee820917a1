"""From an encoded image to the pixels that a tower sees.

Sizes follow the public reference (MaxLongEdgeMinShortEdgeResize of BAGEL), rounding included.
"""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from mathcanvas_lightning.data.images.decode import FORMATS, ImageError, ImageLimits, check_image
from mathcanvas_lightning.errors import ConfigError

MAX_PIXELS = 14 * 14 * 9 * 1024
PNG_START = b"\x89PNG"
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ImageTransform:
    """How an image is resized for one tower; names are those of the public configuration."""

    max_image_size: int = 512
    """The long side is made no longer than this, but for rounding."""
    min_image_size: int = 512
    """The short side is made no shorter than this, unless a limit forbids it."""
    image_stride: int = 16
    """Both sides become multiples of it."""
    max_pixels: int = MAX_PIXELS
    """Width times height, shared by all images of a conversation."""

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            ConfigError: If they contradict each other.
        """
        if not 0 < self.min_image_size <= self.max_image_size or self.image_stride < 1:
            raise ConfigError(
                "image transform",
                found=f"min_image_size {self.min_image_size}, max_image_size "
                f"{self.max_image_size}, image_stride {self.image_stride}",
                wanted="0 < min_image_size <= max_image_size and a positive stride",
                remedy="The published recipes use 512, 512 and the patch size of the tower.",
            )

    def output_size(self, width: int, height: int, num_images: int = 1) -> tuple[int, int]:
        """The size an image is resized to.

        Args:
            width: Of the source, pixels.
            height: Of the source, pixels.
            num_images: How many images share `max_pixels`.

        Returns:
            Width and height, pixels.
        """
        return _output_size(self, width, height, num_images)

    def __call__(self, image: Image.Image, num_images: int = 1) -> Pixels:
        """Resizes a decoded image, bicubic with antialias as Pillow does it.

        Args:
            image: RGB, or grey.
            num_images: How many images share `max_pixels`.

        Returns:
            [H, W, 3] uint8.
        """
        size = self.output_size(image.width, image.height, num_images)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels: Pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


@lru_cache(maxsize=65536)
def _output_size(rule: ImageTransform, width: int, height: int, num_images: int) -> tuple[int, int]:
    max_pixels = rule.max_pixels / num_images
    scale = min(rule.max_image_size / max(width, height), 1.0)
    scale = max(scale, rule.min_image_size / min(width, height))
    width, height = _scaled(rule, width, height, scale)
    if width * height > max_pixels:
        width, height = _scaled(rule, width, height, max_pixels / (width * height))
    if max(width, height) > rule.max_image_size:
        width, height = _scaled(rule, width, height, rule.max_image_size / max(width, height))
    return width, height


def _scaled(rule: ImageTransform, width: int, height: int, factor: float) -> tuple[int, int]:
    def side(length: int) -> int:
        steps = round(round(length * factor) / rule.image_stride)
        return max(rule.image_stride, steps * rule.image_stride)

    return side(width), side(height)


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decodes an image; what is transparent becomes white.

    Args:
        data: The encoded file.
        limits: Checked before any pixel is decoded.

    Returns:
        An RGB image; a grey one where the source is grey, which is quicker to resize.

    Raises:
        ImageError: If it can't be decoded, is cut short, or is over a limit.
    """
    # Pillow decodes a PNG with damaged or missing ends without a word; other formats it refuses.
    check_image(data, limits, depth="checksums" if data.startswith(PNG_START) else "header")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked by the limits
            return on_white(Image.open(BytesIO(data), formats=FORMATS))
    except Exception as error:  # decoders raise whatever comes to them on broken input
        raise ImageError("image_unreadable", str(error) or type(error).__name__) from None


def on_white(image: Image.Image) -> Image.Image:
    """Decodes an image; what is transparent becomes white.

    Args:
        image: Of any mode.

    Returns:
        An RGB image, or a grey one where it is grey.
    """
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        if image.mode in ("RGB", "L"):
            image.load()
            return image
        return image.convert("L" if image.mode == "1" else "RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGB", layered.size, (255, 255, 255))
    white.paste(layered, mask=layered.getchannel("A"))
    return white
