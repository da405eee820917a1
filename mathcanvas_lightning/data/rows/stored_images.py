"""Sizes of a shard's images in its footer: the converter knows them, so indexing reads no image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from mathcanvas_lightning.data.images.decode import ImageInfo, ImageLimits

IMAGES_KEY = b"mathcanvas_images"
"""Key of the sizes in the metadata of a Parquet file."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Facts about an encoded image of a shard."""

    width_px: int
    height_px: int
    num_bytes: int
    """Size of the encoded file."""
    orientation: int = 1
    """EXIF orientation, see `ImageInfo`."""

    @classmethod
    def of(cls, data: bytes, info: ImageInfo) -> "StoredImage":
        """The facts about an encoded image whose header was read."""
        return cls(info.width_px, info.height_px, len(data), info.orientation)

    def fits(self, limits: ImageLimits) -> bool:
        """Whether the image is within the limits."""
        is_small = self.num_bytes <= limits.max_bytes
        return is_small and self.width_px * self.height_px <= limits.max_pixels


StoredRow = tuple[tuple[StoredImage, ...], tuple[StoredImage, ...]]
"""Images of the question and of the solution of a row."""


def encode_images(rows: Sequence[StoredRow]) -> bytes:
    """Encodes the images of all rows of a shard for its footer."""
    numbers = [[[astuple(image) for image in section] for section in row] for row in rows]
    return json.dumps(numbers, separators=(",", ":")).encode()


def decode_images(metadata: Mapping[bytes, bytes] | None, num_rows: int) -> list[StoredRow] | None:
    """Decodes what `encode_images` returns.

    Args:
        metadata: Metadata of the Parquet file.
        num_rows: Rows of the file.

    Returns:
        The images of each row; None if the footer doesn't hold them.
    """
    encoded = (metadata or {}).get(IMAGES_KEY)
    if encoded is None:
        return None
    try:
        rows = [
            tuple(tuple(StoredImage(*map(int, image)) for image in section) for section in row)
            for row in json.loads(encoded)
        ]
        found: list[StoredRow] = [(question, solution) for question, solution in rows]
    except (TypeError, ValueError):
        return None
    return found if len(found) == num_rows else None
