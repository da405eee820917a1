"""Where a training run takes its network from: a checkpoint, or a preset drawn anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.adapters import LoRASettings, add_lora
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import config_for_weights, find_weights
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import LatentVAE

DTypeName = Literal["float32", "bfloat16"]
DTYPES: dict[DTypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ModelSource:
    """The network to train."""

    checkpoint: str | None = None
    """A directory in the layout of BAGEL-7B-MoT."""
    preset: str | None = None
    """Without a checkpoint: a fresh network of this size (tiny, small, 7b)."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings to change, as `BagelConfig.override` takes them, such as llm_num_hidden_layers."""
    seed: int = 0
    """Of what is drawn."""

    def config(self) -> BagelConfig:
        """Sizes.

        Raises:
            ConfigError: If it isn't clear where from.
        """
        if (self.checkpoint is None) == (self.preset is None):
            raise ConfigError(
                "model.source",
                found="both checkpoint and preset" if self.preset else "no checkpoint",
                wanted="one of checkpoint and preset",
                remedy="Name a checkpoint directory; preset: tiny starts a small one from nothing.",
            )
        if self.checkpoint is None:
            assert self.preset is not None
            return BagelConfig.preset(self.preset).override(**self.overrides)
        stored = BagelConfig.from_directory(self.checkpoint)
        return config_for_weights(stored, find_weights(self.checkpoint)).override(**self.overrides)


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class FreezeConfig:
    """What is not trained."""

    llm: bool = False
    """The decoder with both experts and its head."""
    vit: bool = False
    """The image encoder."""
    connector: bool = False
    """Between the image encoder and the decoder."""
    und: bool = False
    """The understanding expert and all that feeds it, as in the published stage 1."""


def load_network(source: ModelSource, dtype: torch.dtype, device: torch.device) -> Bagel:
    """Builds the network in the memory of one device.

    Args:
        source: Where from.
        dtype: Of its parameters.
        device: Where they lie.

    Returns:
        The network, all of it trainable.
    """
    if source.checkpoint is not None:
        return Bagel.from_checkpoint(
            source.checkpoint, dtype=dtype, device=device, seed=source.seed, **source.overrides
        )
    model = Bagel.empty(source.config(), dtype=dtype, device=device)
    model.reset_parameters(source.seed)
    return model


def load_vae(source: ModelSource, dtype: torch.dtype, device: torch.device) -> LatentVAE:
    """Loads the autoencoder; it is never trained.

    Args:
        source: Where from.
        dtype: Of its parameters.
        device: Where they lie.

    Returns:
        The autoencoder; a fresh one for a preset.
    """
    config = source.config().vae
    if source.checkpoint is not None:
        return LatentVAE.from_checkpoint(source.checkpoint, config, dtype=dtype, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        vae = LatentVAE(config)
    return vae.requires_grad_(False).to(device=device, dtype=dtype)


def choose_trainable(model: Bagel, freeze: FreezeConfig, lora: LoRASettings | None) -> None:
    """Sets what is trained: all but what is frozen, or adapters alone.

    Raises:
        ConfigError: If adapters and freezing are both asked for.
    """
    asked = [name for name, wanted in vars(freeze).items() if wanted]
    if lora is not None and asked:
        raise ConfigError(
            "freeze",
            found=f"{', '.join(asked)} beside lora",
            wanted="one of the two",
            remedy="With lora everything but the adapters is frozen; choose lora.parts.",
        )
    if lora is not None:
        add_lora(model, lora)
    else:
        model.freeze(llm=freeze.llm, vit=freeze.vit, connector=freeze.connector, und=freeze.und)
