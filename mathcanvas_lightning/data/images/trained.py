"""Image sizes of a training, as `config.json` of an exported model records them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedImages:
    """How images became tokens in a training."""

    vae_transform: ImageTransform
    """Resizes images for the VAE."""
    vit_transform: ImageTransform
    """Resizes images for the ViT."""
    interpolate_positions: bool = False
    """Whether positions were spread over the whole position table."""

    @classmethod
    def published(cls, vit_patch_px: int) -> Self:
        """The sizes of the published recipes: 512 pixels.

        Args:
            vit_patch_px: Side of a patch of the ViT.
        """
        return cls(
            vae_transform=ImageTransform(),
            vit_transform=ImageTransform(image_stride=vit_patch_px),
        )

    def to_json(self) -> dict[str, Any]:
        """Converts the sizes to plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Reads what `to_json` wrote.

        Args:
            values: Plain types; None if nothing was recorded.

        Returns:
            The sizes; None if nothing was recorded.

        Raises:
            ConfigError: If a value is missing, unknown or out of range.
        """
        if values is None:
            return None
        try:
            return cls(
                vae_transform=ImageTransform(**values["vae_transform"]),
                vit_transform=ImageTransform(**values["vit_transform"]),
                interpolate_positions=bool(values.get("interpolate_positions", False)),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                "trained_images in config.json of the model",
                found=f"{values!r:.120} ({error})",
                wanted="vae_transform and vit_transform with the fields of ImageTransform",
                remedy="Export the model again, or remove the key.",
            ) from None


def describe(transform: ImageTransform) -> str:
    """The sizes of a transform, for a message."""
    return (
        f"{transform.min_image_size} to {transform.max_image_size} pixels in steps of "
        f"{transform.image_stride}"
    )
