"""FLUX's autoencoder (diffusers): images to latent tokens and back. It is never trained."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mathcanvas_lightning.batch import PackedBatch, to_unit_range
from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.file_kinds import describe_file
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.model.checkpoint import check_finite
from mathcanvas_lightning.model.config import VAEConfig
from mathcanvas_lightning.model.flow import patchify
from mathcanvas_lightning.model.layers.basic import without_memory

VAE_FILE = "ae.safetensors"
MAX_IMAGES = 8
"""Maximum number of images that are encoded or decoded at once. One layer's output for 43 images of
512 px takes 2.9 GB in bfloat16; from 64 images on it has more values than 32-bit indexes reach."""


class LatentVAE(nn.Module):
    """Frozen autoencoder for images of any size.

    Args:
        config: Sizes, and scale and shift of the latents.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # slow to import, and needed only here

        self.config = config
        levels = len(config.ch_mult)
        self.autoencoder: Any = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.ch * factor for factor in config.ch_mult),
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
            norm_num_groups=config.norm_num_groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        config: VAEConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "LatentVAE":
        """Loads `ae.safetensors` of a checkpoint directory, with BAGEL's parameter names.

        Raises:
            DataError: If the file is missing or doesn't match the configuration.
        """
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        file = local_path(path) / VAE_FILE
        if not file.is_file():
            raise DataError(
                str(file),
                found="nothing",
                wanted="the autoencoder's weights",
                remedy="Copy ae.safetensors from the published checkpoint.",
            )
        with without_memory():
            vae = cls(config)
        try:
            stored = load_file(file)
        except (SafetensorError, OSError) as error:
            raise DataError(
                str(file),
                found=describe_file(file, f"a damaged file ({error})"),
                wanted="a complete safetensors file",
                remedy="Copy or download it again.",
            ) from None
        for name, tensor in stored.items():
            check_finite(tensor, name, file)
        state = convert_ldm_vae_checkpoint(stored, dict(vae.autoencoder.config))
        try:
            vae.autoencoder.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise DataError(
                str(file),
                found=str(error),
                wanted=f"an autoencoder of {config}",
                remedy="Check vae_config in config.json.",
            ) from None
        vae.requires_grad_(False)
        return vae.to(device=device, dtype=dtype)

    def train(self, mode: bool = True) -> "LatentVAE":  # noqa: ARG002
        """Does nothing: the autoencoder stays in evaluation mode."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the parameters and of the computation."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Computes the posterior of images of one size.

        Args:
            images: [n, 3, H, W], uint8 or float from -1 to 1; sides divisible by the downsampling.

        Returns:
            [n, 2 C, H / 8, W / 8] float32: means, then log variances.
        """
        parts = images.split(MAX_IMAGES)
        encode = self.autoencoder.encoder
        return torch.cat([encode(to_unit_range(part).to(self.dtype)).float() for part in parts])

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor], noise: Sequence[Tensor] | None) -> list[Tensor]:
        """Encodes images of any sizes; images of equal size are encoded as one batch.

        Args:
            images: [3, H, W] each.
            noise: [C, H / 8, W / 8] each, to sample the posterior; None returns its mean.

        Returns:
            Scaled latents [C, H / 8, W / 8] float32, one per image.
        """
        latents: dict[int, Tensor] = {}
        for indexes in _by_size(images).values():
            means, logvars = self.moments(torch.stack([images[i] for i in indexes])).chunk(2, dim=1)
            deviations = torch.exp(0.5 * logvars.clamp(-30.0, 20.0))
            for row, index in enumerate(indexes):
                sample = means[row]
                if noise is not None:
                    sample = sample + deviations[row] * noise[index]
                latents[index] = self.config.scale_factor * (sample - self.config.shift_factor)
        return [latents[index] for index in range(len(images))]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes scaled latents of one size.

        Args:
            latents: [n, C, h, w].

        Returns:
            [n, 3, 8 h, 8 w] float32, about -1 to 1.
        """
        unscaled = latents / self.config.scale_factor + self.config.shift_factor
        parts = unscaled.to(self.dtype).split(MAX_IMAGES)
        return torch.cat([self.autoencoder.decoder(part).float() for part in parts])


@cache  # building it takes half a second
def count_vae_parameters(config: VAEConfig) -> int:
    """Counts the parameters of an autoencoder without allocating them."""
    with without_memory():
        vae = LatentVAE(config)
    return sum(parameter.numel() for parameter in vae.parameters())


def to_pixels(images: Tensor) -> Tensor:
    """Converts decoded images to pixels; rounds down, as the reference does.

    Args:
        images: [..., 3, H, W], about -1 to 1.

    Returns:
        [..., H, W, 3] uint8.
    """
    scaled = (images * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.movedim(-3, -1).to(torch.uint8)


def pack_latents(
    vae: LatentVAE, batch: PackedBatch, patch: int, noise: Sequence[Tensor] | None = None
) -> Tensor:
    """Computes the latent tokens of a pack; a repeated image is encoded once.

    Args:
        vae: The autoencoder.
        batch: The pack.
        patch: Side of a latent patch.
        noise: [C, H / 8, W / 8] for each of the pack's images, to sample the posterior.

    Returns:
        [L, patch * patch * C] float32.
    """
    latents = vae.encode(batch.images, noise)
    tokens = [patchify(latents[image], patch) for image in batch.latent_image_ids]
    width = patch * patch * vae.config.z_channels
    return torch.cat(tokens) if tokens else torch.empty(0, width, device=batch.text_ids.device)


def save_random_vae(path: Path, config: VAEConfig, generator: torch.Generator) -> None:
    """Writes a randomly initialized autoencoder with BAGEL's parameter names."""
    vae = LatentVAE(config)
    state = {}
    for name, tensor in vae.autoencoder.state_dict().items():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.02
        drawn = torch.randn(tensor.shape, generator=generator) * scale
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        state[name] = 1.0 + drawn if is_norm else drawn
    save_vae(path, config, state)


def save_vae(path: Path, config: VAEConfig, state: dict[str, Tensor]) -> None:
    """Writes `ae.safetensors` in BAGEL's names.

    Args:
        path: Folder of the file.
        config: Sizes of the autoencoder.
        state: Weights by diffusers' names.
    """
    # The file may be a hard link to that of another model, which must not change.
    with written_whole(path / VAE_FILE) as temporary:
        save_file(to_ldm_names(state, len(config.ch_mult)), temporary)


def to_ldm_names(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Renames the weights of a diffusers autoencoder as in `ae.safetensors`."""
    renamed = {}
    for name, tensor in state.items():
        new, value = _ldm_name(name, levels), tensor
        if ".attn_1." in new and new.endswith("weight") and tensor.ndim == 2:
            value = tensor[:, :, None, None]
        renamed[new] = value.contiguous()
    return renamed


def _ldm_name(name: str, levels: int) -> str:
    for old, new in _LDM_WORDS:
        name = name.replace(old, new)
    parts = name.split(".")
    if parts[1] == "up":  # counted in reverse order
        parts[2] = str(levels - 1 - int(parts[2]))
    return ".".join(parts)


_LDM_WORDS: tuple[tuple[str, str], ...] = (
    ("down_blocks.", "down."),
    ("up_blocks.", "up."),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("mid_block.attentions.0.to_", "mid.attn_1."),
    ("resnets.", "block."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def _by_size(images: Sequence[Any]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(index)
    return groups
