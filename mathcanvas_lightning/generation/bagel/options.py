"""Options of the BAGEL backend and its generator: limits of the batch, handling of images."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypedDict

import torch

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.images.trained import TrainedImages, describe
from mathcanvas_lightning.errors import ConfigError, check_settings
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.problem import InterleavedConfig, Mode
from mathcanvas_lightning.generation.requests import GIVEN_DRAWINGS, DrawingsUse
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.quantized import WeightKind

log = logging.getLogger(__name__)

StoredWeights = Literal["auto", "bf16", "int8", "nf4"]
Precision = Literal["auto", "float32", "bfloat16"]


class BagelSettings(TypedDict, total=False):
    """Less common settings of a BagelBackend; see `BagelOptions`."""

    max_batch_size: int
    """Maximum number of problems in progress, if memory allows. Default: 16."""
    max_context_tokens: int | None
    """Maximum length of a question with its answer, in tokens. Default: the maximum of the model,
    at most 16,384."""
    dtype: Precision
    """Precision of weights and KV cache; "auto" is bfloat16 on GPUs, float32 elsewhere. Default:
    auto."""
    weights: StoredWeights
    """How the linear layers of decoder and ViT are stored: "auto" in `dtype`, "bf16" (with all else
    in bfloat16, too), "int8", or "nf4" (4.5 bits per weight, with the package bitsandbytes).
    Default: auto."""
    vae_transform: ImageTransform | None
    """How pictures are resized for the VAE; drawings get the same size. Default: the sizes of the
    training, as recorded in the checkpoint directory, else those published (512 pixels)."""
    vit_transform: ImageTransform | None
    """How the resized picture is resized again for the ViT. Default: as for the VAE."""
    interpolate_positions: bool | None
    """Whether positions of image tokens are interpolated; must be the same as in training. Default:
    as recorded in the checkpoint directory, else false."""
    drawings: DrawingsUse
    """What interleaved answers have where the model wants to draw: own, none, shuffled (another
    problem's drawing of this step) or reference (the true one). Default: own."""
    min_images: int
    """Minimum number of drawings in an interleaved answer: where the model would end its answer
    before, it draws. Default: 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much the generator computes at a time.

    Raises:
        ConfigError: If a number is below 1.
    """

    max_batch_size: int = 16
    """Maximum number of problems in progress; fewer if memory is short."""
    max_context_tokens: int | None = None
    """Maximum length of a context; by default the maximum of the model, at most 16,384."""
    memory_bytes: int | None = None
    """Memory for all contexts; by default most of the free memory of the device."""
    tokens_per_turn: int = 8
    """Number of tokens generated for each text between two steps of the drawings."""

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_context_tokens", "tokens_per_turn"):
            number = getattr(self, name)
            is_right = number is None or number >= 1
            check_settings((name, number, is_right, "1 or more"), remedy="Raise it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How images become tokens."""

    vae_transform: ImageTransform | None = None
    """Resizes pictures for the VAE; drawings get the same size. None: as in the training."""
    vit_transform: ImageTransform | None = None
    """Resizes the result again for the ViT. None: as in the training."""
    interpolate_positions: bool | None = None
    """Whether positions of image tokens are interpolated. None: as in the training."""

    def completed(self, config: BagelConfig) -> TrainedImages:
        """Fills in what is not set.

        Args:
            config: The model. If it records no sizes of its training, those published are taken.
        """
        trained = TrainedImages.from_json(config.trained_images)
        return replace(trained or TrainedImages.published(config.vit.patch_size), **self._given)

    def warn_of_sizes(self, config: BagelConfig) -> None:
        """Warns of sizes that the model was not trained with.

        Args:
            config: The model, as its directory describes it.
        """
        trained = TrainedImages.from_json(config.trained_images)
        if trained is not None:
            _warn_of_others(self._given, trained)
        elif self.vae_transform is not None:
            _warn_of_small(self.vae_transform, config)

    @property
    def _given(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


SMALL = 4
"""Pictures below this part of what the position table can hold are likely a mistake."""


def _warn_of_others(given: Mapping[str, Any], trained: TrainedImages) -> None:
    for name, value in given.items():
        expected = getattr(trained, name)
        if value != expected:
            found, known = (
                describe(one) if isinstance(one, ImageTransform) else one
                for one in (value, expected)
            )
            log.warning(
                "%s is %s, but the model was trained with %s; remove %s to use the trained sizes",
                *(name, found, known, name),
            )


def _warn_of_small(transform: ImageTransform, config: BagelConfig) -> None:
    largest = config.geometry.max_latent_side * config.geometry.latent_patch_px
    if transform.max_image_size * SMALL < largest:
        log.warning(
            "vae_transform shrinks pictures to %d pixels, but the model can read %d. Its directory "
            "does not record the sizes of its training: remove vae_transform and vit_transform for "
            "the published sizes (512), unless it was trained with yours",
            *(transform.max_image_size, largest),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BagelOptions:
    """Values of `BagelSettings`, with their defaults.

    Raises:
        ConfigError: If the weights are less precise than the computation wants.
    """

    max_batch_size: int = 16
    max_context_tokens: int | None = None
    dtype: Precision = "auto"
    weights: StoredWeights = "auto"
    vae_transform: ImageTransform | None = None
    vit_transform: ImageTransform | None = None
    interpolate_positions: bool | None = None
    drawings: DrawingsUse = "own"
    min_images: int = 0

    def config(
        self, mode: Mode, drawing: DrawingConfig, *, max_steps: int, max_images: int
    ) -> InterleavedConfig:
        """Configuration for the generator.

        Raises:
            ConfigError: If a limit is out of range, or the mode cannot have such drawings.
        """
        for name, value, is_used in (
            ("drawings", self.drawings, self.drawings in GIVEN_DRAWINGS),
            ("min_images", self.min_images, self.min_images > 0),
        ):
            if is_used and mode != "interleaved":
                raise ConfigError(
                    name,
                    found=f"{value} with the mode {mode}",
                    wanted="the mode interleaved, in which an answer has texts and drawings",
                    remedy="Change the mode, or leave it out.",
                )
        return InterleavedConfig(
            drawing=drawing,
            max_steps=max_steps,
            max_images=max_images,
            min_images=self.min_images,
            drawings=self.drawings,
        )

    def __post_init__(self) -> None:
        if self.weights == "bf16" and self.dtype == "float32":
            raise ConfigError(
                "weights",
                found="bf16, with dtype float32",
                wanted="bf16 with dtype bfloat16 or auto",
                remedy="Leave one of them out.",
            )

    @property
    def precision(self) -> Precision:
        """Precision of the computation and the KV cache."""
        return "bfloat16" if self.weights == "bf16" else self.dtype

    @property
    def quantized(self) -> WeightKind | None:
        """Type of quantized weights; None if the weights have the type of the computation."""
        return self.weights if self.weights in ("int8", "nf4") else None

    @property
    def limits(self) -> BatchLimits:
        """Limits for the generator."""
        return BatchLimits(
            max_batch_size=self.max_batch_size, max_context_tokens=self.max_context_tokens
        )

    def torch_dtype(self, device: torch.device) -> torch.dtype:
        """Precision on a device."""
        name = self.precision
        if name == "auto":
            name = "float32" if device.type == "cpu" else "bfloat16"
        found: torch.dtype = getattr(torch, name)
        return found

    def for_journal(self) -> dict[str, Any]:
        """Options that change the answers: JSON values.

        Newer options are left out where they have their defaults, so that older journals stay
        valid.
        """
        transforms = (self.vae_transform, self.vit_transform)
        vae, vit = (one and asdict(one) for one in transforms)
        return {
            "max_context_tokens": self.max_context_tokens,
            "dtype": self.precision,
            "vae_transform": vae,
            "vit_transform": vit,
            "interpolate_positions": bool(self.interpolate_positions),
            **({} if self.drawings == "own" else {"drawings": self.drawings}),
            **({} if self.quantized is None else {"quantized": self.quantized}),
            **({"min_images": self.min_images} if self.min_images else {}),
        }

    @property
    def images(self) -> ImageOptions:
        """Image options for the generator."""
        return ImageOptions(
            vae_transform=self.vae_transform,
            vit_transform=self.vit_transform,
            interpolate_positions=self.interpolate_positions,
        )
