"""Initial weights of a run, and which of them are trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.model.adapters import LoRASettings, add_lora
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import TABLES, config_for_weights, find_weights
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import LatentVAE


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ModelSource:
    """Initial weights: a checkpoint, or a preset with random weights."""

    checkpoint: str | None = None
    """Checkpoint directory in BAGEL-7B-MoT layout."""
    preset: str | None = None
    """Size of a randomly initialized network (tiny, small, 7b), instead of a checkpoint."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Model settings to change, such as llm_num_hidden_layers; see `BagelConfig.override`."""
    weights: str | None = None
    """A .ckpt of an earlier run, whose weights replace the initial ones; its optimizer state and
    position are not used."""
    average: bool = False
    """Take the moving averages of `weights`, where it has them."""
    seed: int | None = None
    """Random seed of initialized weights; by default `seed_everything` of the same configuration,
    or 0."""

    def config(self) -> BagelConfig:
        """Reads the sizes of the network.

        Raises:
            ConfigError: If not exactly one of checkpoint and preset is set.
            InputError: If there is no file `weights`.
        """
        if self.weights is not None and not local_path(self.weights).exists():
            raise InputError(
                "model.source.weights",
                found=f"nothing at {self.weights}",
                wanted="a .ckpt of an earlier run",
                remedy="Check the path.",
            )
        if (self.checkpoint is None) == (self.preset is None):
            raise ConfigError(
                "model.source",
                found="both checkpoint and preset" if self.preset else "no checkpoint",
                wanted="either a checkpoint or a preset",
                remedy="Set source.checkpoint to a directory, or source.preset to tiny.",
            )
        if self.checkpoint is None:
            assert self.preset is not None
            return BagelConfig.preset(self.preset).override(**self.overrides)
        stored = BagelConfig.from_directory(self.checkpoint)
        return config_for_weights(stored, find_weights(self.checkpoint)).override(**self.overrides)

    @property
    def initial_seed(self) -> int:
        """Random seed of initialized weights."""
        return self.seed or 0

    def digest(self) -> str:
        """Digest of the initial weights, from a small part of their files."""
        if self.checkpoint is None:
            return f"random weights of seed {self.initial_seed}"
        return find_weights(self.checkpoint).digest()


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class FreezeConfig:
    """Parts of the network that are not trained."""

    llm: bool = False
    """Freeze the decoder with both experts and its head."""
    vit: bool = False
    """Freeze the image encoder."""
    connector: bool = False
    """Freeze the connector between image encoder and decoder."""
    und: bool = False
    """Freeze the understanding expert and everything that feeds it, as in the published stage 1."""


def load_vae(source: ModelSource, dtype: torch.dtype, device: torch.device) -> LatentVAE:
    """Loads the autoencoder, which is never trained.

    Args:
        source: Checkpoint or preset.
        dtype: Type of the parameters.
        device: Device of the parameters.

    Returns:
        The autoencoder; randomly initialized for a preset.
    """
    config = source.config().vae
    if source.checkpoint is not None:
        return LatentVAE.from_checkpoint(source.checkpoint, config, dtype=dtype, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.initial_seed)
        vae = LatentVAE(config)
    return vae.requires_grad_(False).to(device=device, dtype=dtype)


def choose_trainable(model: Bagel, freeze: FreezeConfig, lora: LoRASettings | None) -> None:
    """Freezes parts of the network, or adds adapters and freezes everything else.

    Raises:
        ConfigError: If both freezing and adapters are set.
    """
    frozen = [name for name, value in vars(freeze).items() if value]
    if lora is not None and frozen:
        raise ConfigError(
            "freeze",
            found=f"{', '.join(frozen)} together with lora",
            wanted="either freeze or lora",
            remedy="With lora, everything except the adapters is frozen; set lora.parts instead.",
        )
    if lora is not None:
        add_lora(model, lora)
    else:
        model.freeze(llm=freeze.llm, vit=freeze.vit, connector=freeze.connector, und=freeze.und)


def frozen_names(model: Bagel) -> tuple[str, ...]:
    """Lists the frozen parameters, without the fixed position tables, which are never trained."""
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and name not in TABLES
    )


def leave_out_frozen(module: nn.Module) -> None:
    """Leaves the weights named in `module.left_out` out of a module's state dict.

    They are equal to the initial weights, so that a checkpoint doesn't need them. A state dict that
    has them can be loaded, too.

    Args:
        module: A module with the network as `model`.
    """

    def drop(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:  # noqa: ARG001
        for name in module.left_out:
            state.pop(f"{prefix}model.{name}", None)

    def accept(module: Any, keys: Any) -> None:
        left_out = {f"model.{name}" for name in module.left_out}
        keys.missing_keys[:] = [name for name in keys.missing_keys if name not in left_out]

    module.register_state_dict_post_hook(drop)
    module.register_load_state_dict_post_hook(accept)
