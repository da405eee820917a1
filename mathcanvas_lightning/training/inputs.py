"""Latents, noise and timesteps for a pack; random numbers are seeded by sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mathcanvas_lightning.batch import MicroBatch, PackedBatch
from mathcanvas_lightning.model.flow import timesteps_from_logits, velocity_target
from mathcanvas_lightning.model.vae import LatentVAE, pack_latents


@dataclass(frozen=True, slots=True, kw_only=True)
class PackInputs:
    """Inputs of `Bagel.forward` beside the pack."""

    latents: Tensor
    """[L, P] clean latent tokens."""
    noise: Tensor
    """[L, P] noise, zero at clean images."""
    timesteps: Tensor
    """[L] shifted timesteps, 0 at clean images."""

    def target(self, pack: PackedBatch) -> Tensor:
        """Returns the target velocities at the noisy latents, [M, P]."""
        noisy = pack.layout.noisy_latents
        return velocity_target(self.latents[noisy], self.noise[noisy])


@torch.no_grad()
def draw_inputs(vae: LatentVAE, batch: MicroBatch, patch: int, timestep_shift: float) -> PackInputs:
    """Encodes the images of a micro-batch and draws its noise.

    Args:
        vae: The autoencoder, on the batch's device.
        batch: The micro-batch.
        patch: Side of a latent patch.
        timestep_shift: Shift of the timesteps towards noise.

    Returns:
        The inputs. On the same kind of device they depend only on the samples, not on ranks or
        packs.
    """
    pack = batch.pack
    device = pack.text_ids.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in batch.image_seeds]
    factor = vae.config.downsample
    posterior = [
        torch.randn(
            (vae.config.z_channels, *(side // factor for side in image.shape[1:])),
            generator=generator,
            device=device,
        )
        for image, generator in zip(pack.images, generators, strict=True)
    ]
    latents = pack_latents(vae, pack, patch, posterior)
    return PackInputs(
        latents=latents,
        noise=_draw_noise(pack, latents, generators),
        timesteps=timesteps_from_logits(pack.timestep_logits, timestep_shift),
    )


def _draw_noise(
    pack: PackedBatch, latents: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    noise = torch.zeros_like(latents)
    items = zip(pack.latent_shapes, pack.latent_image_ids, pack.layout.noisy_items, strict=True)
    start = 0
    for (rows, columns), image, is_noisy in items:
        end = start + rows * columns
        if is_noisy:
            noise[start:end].normal_(generator=generators[image])
        start = end
    return noise
