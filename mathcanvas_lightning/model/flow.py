"""Flow matching as pure functions: timesteps, noising, targets, patches.

Source: BAGEL's training loss (rectified flow, x_t = (1 - t) x + t noise).
"""

import torch
from torch import Tensor


def shift_timesteps(timesteps: Tensor, shift: float) -> Tensor:
    """Shifts timesteps towards noise: t -> shift t / (1 + (shift - 1) t).

    Args:
        timesteps: Any shape, 0 (clean) to 1 (noise).
        shift: 1 changes nothing.

    Returns:
        The same shape.
    """
    return shift * timesteps / (1 + (shift - 1) * timesteps)


def timesteps_from_logits(timestep_logits: Tensor, shift: float) -> Tensor:
    """Maps logits to shifted timesteps.

    Args:
        timestep_logits: Any shape; -inf marks a clean image, whose timestep is 0.
        shift: See `shift_timesteps`.

    Returns:
        The same shape, 0 to 1.
    """
    return shift_timesteps(torch.sigmoid(timestep_logits), shift)


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = (1 - t) x + t noise.

    Args:
        latents: [L, P].
        noise: [L, P].
        timesteps: [L], shifted.

    Returns:
        [L, P].
    """
    t = timesteps[:, None].to(latents.dtype)
    return (1 - t) * latents + t * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """Target of the prediction at a noisy latent: noise - x, [L, P]."""
    return noise - latents


def patchify(latent: Tensor, patch: int) -> Tensor:
    """Cuts a latent image into tokens.

    Args:
        latent: [C, H, W]; rows and columns beyond a multiple of the patch are cropped.
        patch: Side of a patch.

    Returns:
        [H // patch * W // patch, patch * patch * C], each in (row, column, channel) order.
    """
    channels, height, width = latent.shape
    rows, columns = height // patch, width // patch
    cut = latent[:, : rows * patch, : columns * patch]
    grid = cut.reshape(channels, rows, patch, columns, patch)
    return grid.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Undoes `patchify`.

    Args:
        tokens: [rows * columns, patch * patch * C].
        rows: Number of token rows.
        columns: Number of token columns.
        patch: Side of a patch.

    Returns:
        [C, rows * patch, columns * patch].
    """
    grid = tokens.reshape(rows, columns, patch, patch, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)
