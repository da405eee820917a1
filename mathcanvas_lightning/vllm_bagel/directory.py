"""What the plugin reads from a BAGEL directory: sizes, special tokens, weight files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.images.trained import TrainedImages
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens, TextTokenizer
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.checkpoint import WeightFiles, config_for_weights, find_weights
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.vllm_bagel import PAD
from mathcanvas_lightning.vllm_bagel.blocks import MARKERS
from mathcanvas_lightning.vllm_bagel.pictures import PictureRules

PICTURE_OPTIONS = ("vae_transform", "vit_transform", "interpolate_positions")


@dataclass(frozen=True, slots=True)
class BagelDirectory:
    """Sizes and special tokens of a checkpoint."""

    config: BagelConfig
    special: SpecialTokens
    pad: int
    """Id of `PAD`."""
    weights: WeightFiles

    @property
    def max_block_tokens(self) -> int:
        """Number of tokens of the largest image block, with markers."""
        sides = (self.config.max_latent_size, self.config.vit_max_num_patch_per_side)
        return max(sides) ** 2 + MARKERS

    def picture_rules(self, options: Mapping[str, Any]) -> PictureRules:
        """The rules for pictures.

        Args:
            options: vLLM's `mm_processor_kwargs`: vae_transform and vit_transform (fields of
                `ImageTransform`), interpolate_positions. The defaults are those of the training, as
                the directory records them, else those published.

        Raises:
            ConfigError: If an option is unknown.
        """
        for name in options:
            if name not in PICTURE_OPTIONS:
                raise ConfigError(
                    f"mm_processor_kwargs.{name}",
                    found="an unknown option",
                    wanted=f"one of {', '.join(PICTURE_OPTIONS)}",
                    remedy="Correct or remove it.",
                )
        trained = TrainedImages.from_json(self.config.trained_images)
        patch = self.config.vit.patch_size
        default = trained or TrainedImages.published(patch)
        return PictureRules(
            geometry=self.config.geometry,
            special=self.special,
            vae_transform=_transform(options, "vae_transform", 16) or default.vae_transform,
            vit_transform=_transform(options, "vit_transform", patch) or default.vit_transform,
            interpolate_positions=bool(
                options.get("interpolate_positions", default.interpolate_positions)
            ),
        )


def read_directory(path: str) -> BagelDirectory:
    """Reads the sizes and special tokens of a checkpoint.

    Args:
        path: Directory in BAGEL-7B-MoT layout.

    Raises:
        ConfigError: If a config file or the tokenizer can't be used.
        DataError: If there are no weights.
    """
    weights = find_weights(path)
    tokenizer = TextTokenizer(path)
    pad = tokenizer.token_id(PAD)
    if pad is None:
        raise ConfigError(
            f"tokenizer {path}",
            found=f"no token {PAD}",
            wanted="the special tokens of Qwen2.5",
            remedy="Use the tokenizer files of a BAGEL checkpoint.",
        )
    config = config_for_weights(BagelConfig.from_directory(path), weights)
    return BagelDirectory(config=config, special=tokenizer.special, pad=pad, weights=weights)


@lru_cache(maxsize=4)
def engine_directory(path: str) -> BagelDirectory:
    """Like `read_directory`, once in the life of an engine's process."""
    return read_directory(path)


def _transform(options: Mapping[str, Any], name: str, stride: int) -> ImageTransform | None:
    values = options.get(name)
    if values is None or isinstance(values, ImageTransform):
        return values
    try:
        return ImageTransform(**{"image_stride": stride, **values})
    except TypeError as error:
        raise ConfigError(
            f"mm_processor_kwargs.{name}",
            found=str(error),
            wanted="max_image_size, min_image_size, image_stride, max_pixels",
            remedy="Correct it.",
        ) from None
