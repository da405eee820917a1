"""Resizes images for the VAE and the ViT.

Sizes follow the public reference (MaxLongEdgeMinShortEdgeResize of BAGEL), rounding included.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from mathcanvas_lightning.data.images.pixels import decode_image, on_white
from mathcanvas_lightning.errors import ConfigError

__all__ = ["ImageTransform", "Pixels", "decode_image", "on_white"]

MAX_PIXELS = 14 * 14 * 9 * 1024
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ImageTransform:
    """Resizing for one tower; field names follow the public configuration."""

    max_image_size: int = 512
    """Maximum of the long side, up to rounding."""
    min_image_size: int = 512
    """Minimum of the short side, unless a maximum prevents it."""
    image_stride: int = 16
    """Both sides are rounded to multiples of this."""
    max_pixels: int = MAX_PIXELS
    """Maximum of width times height; all images of a conversation share it."""

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
        """The size after resizing.

        Args:
            width: Width of the source, in pixels.
            height: Height of the source, in pixels.
            num_images: Number of images that share `max_pixels`.

        Returns:
            Width and height, in pixels.
        """
        return _output_size(self, width, height, num_images)

    def __call__(self, image: Image.Image, num_images: int = 1) -> Pixels:
        """Resizes a decoded image with Pillow's antialiased bicubic filter.

        Args:
            image: RGB or grey image.
            num_images: Number of images that share `max_pixels`.

        Returns:
            [H, W, 3] uint8; the channels of a grey image share their memory.
        """
        size = self.output_size(image.width, image.height, num_images)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        # Several times faster than np.asarray, which copies the bytes once more.
        pixels: Pixels = np.frombuffer(image.tobytes(), np.uint8)
        pixels = pixels.reshape(image.height, image.width, len(image.getbands()))
        return np.broadcast_to(pixels, (image.height, image.width, 3))


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
