"""Formulas of flow matching."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.model.flow import (
    add_noise,
    patchify,
    shift_timesteps,
    timesteps_from_logits,
    unpatchify,
    velocity_target,
)


@given(st.floats(0, 1), st.floats(0.5, 5))
def test_shift_keeps_ends_and_order(t: float, shift: float) -> None:
    shifted = shift_timesteps(torch.tensor([0.0, t, 1.0], dtype=torch.float64), shift)
    assert shifted[0] == 0
    assert shifted[2] == pytest.approx(1)
    assert 0 <= shifted[1] <= 1 + 1e-9
    assert shifted[1] >= t - 1e-9 if shift >= 1 else shifted[1] <= t + 1e-9


def test_clean_images_are_at_time_zero() -> None:
    times = timesteps_from_logits(torch.tensor([-torch.inf, 0.0]), 2.0)
    assert times.tolist() == pytest.approx([0.0, 2 / 3])


def test_noise_and_velocity() -> None:
    x, noise = torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[5.0, -2.0]] * 3)
    times = torch.tensor([0.0, 0.25, 1.0])
    mixed = add_noise(x, noise, times)
    assert mixed.tolist() == [[1.0, 2.0], [2.0, 1.0], [5.0, -2.0]]
    # Integrating the velocity from x over time t gives x_t.
    assert torch.equal(x + times[:, None] * velocity_target(x, noise), mixed)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_patches_and_back(rows: int, columns: int, patch: int, channels: int) -> None:
    latent = torch.randn(channels, rows * patch, columns * patch)
    tokens = patchify(latent, patch)
    assert tokens.shape == (rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, rows, columns, patch), latent)
    first = latent[:, :patch, :patch].permute(1, 2, 0).flatten()
    assert torch.equal(tokens[0], first)


def test_incomplete_patches_are_cropped() -> None:
    latent = torch.randn(2, 5, 7)
    assert torch.equal(patchify(latent, 2), patchify(latent[:, :4, :6], 2))
