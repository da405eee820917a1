"""Pure functions to sample a drawing: timesteps, and classifier-free guidance with two scales.

Source: the public inference code of BAGEL (`generate_image` and `_forward_flow`).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mathcanvas_lightning.errors import check_settings
from mathcanvas_lightning.model.flow import shift_timesteps

Renorm = Literal["global", "channel", "text_channel"]
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class FeatureCache:
    """Skips some passes of the network and extrapolates the velocity from earlier steps.

    The extrapolation is a polynomial through the last velocities, which equals the Taylor series
    with finite differences (Liu et al., "From Reusable to Forecasting: Accelerating Diffusion
    Models with TaylorSeers", 2025), but works for any distance between timesteps. The velocity is
    linear in the last hidden features, so extrapolating either gives the same result.
    """

    refresh_every: int = 3
    """Number of steps from one pass of the network to the next; 1 skips none."""
    order: int = 1
    """Degree of the polynomial; 0 repeats the last velocity."""
    warmup: int = 3
    """Number of first steps that always run the network."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class DrawingConfig:
    """Sampling of drawings; the defaults are those published for visual reasoning.

    Raises:
        ConfigError: If a value is out of range.
    """

    text_scale: float = 4.0
    """Scale of the guidance by texts; 1 or less turns off all guidance."""
    image_scale: float = 2.0
    """Scale of the guidance by images; 1 or less turns it off."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Shifted timesteps with guidance: above the first value, up to the second."""
    renorm: Renorm = "text_channel"
    """Limits the norm of the guided velocity to that of the unguided one: over the whole drawing
    ("global"), for each token ("channel"), or for each token before the image guidance
    ("text_channel")."""
    renorm_min: float = 0.0
    """Lower limit of the factor that `renorm` scales by."""
    timestep_shift: float = 3.0
    """Timestep shift at inference; above 1, more steps are near the noise."""
    num_timesteps: int = 50
    """Number of timesteps from 1 to 0, including both: one more than the number of steps."""
    size: tuple[int, int] | None = None
    """Width and height of drawings in pixels. None takes the size that the model was trained to
    draw; where that is unknown, the size of the last picture of the problem."""
    default_size: tuple[int, int] = (512, 512)
    """Width and height in pixels if the question has no picture."""
    feature_cache: FeatureCache | None = None
    """Settings to skip passes of the network; None runs it at each step."""

    def __post_init__(self) -> None:
        low, high = self.interval
        reuse = self.feature_cache or FeatureCache()
        kinds, shift, steps = get_args(Renorm), self.timestep_shift, self.num_timesteps
        check_settings(
            ("drawing.interval", self.interval, low <= high, "low and high, in this order"),
            (
                "drawing.renorm",
                repr(self.renorm),
                self.renorm in kinds,
                f"one of {', '.join(kinds)}",
            ),
            ("drawing.renorm_min", self.renorm_min, 0 <= self.renorm_min <= 1, "0 to 1"),
            ("drawing.timestep_shift", shift, shift > 0, "above 0"),
            ("drawing.num_timesteps", steps, steps >= 2, "2 or more"),
            (
                "drawing.feature_cache",
                self.feature_cache,
                reuse.refresh_every >= 1 and reuse.order >= 0 and reuse.warmup >= 1,
                "refresh_every and warmup of 1 or more, order of 0 or more",
            ),
        )

    @property
    def num_contexts(self) -> int:
        """Maximum number of contexts that guidance needs: 1, 2 or 3."""
        if self.text_scale <= 1:
            return 1
        return 3 if self.image_scale > 1 else 2

    def num_branches(self, time: float) -> int:
        """Number of contexts that guidance needs at a timestep."""
        # Timesteps are float32, so the interval is compared in float32 too.
        low, high = torch.tensor(self.interval, dtype=torch.float32).tolist()
        return self.num_contexts if low < time <= high else 1

    def times(self) -> tuple[float, ...]:
        """The shifted timesteps from 1 to 0, in float32 precision."""
        even = torch.linspace(1, 0, self.num_timesteps, dtype=torch.float32)
        return tuple(shift_timesteps(even, self.timestep_shift).tolist())


def guide(velocities: Tensor, config: DrawingConfig) -> Tensor:
    """Combines the branches of drawings of one size into the guided velocity.

    Args:
        velocities: [n, branches, L, P] float32: with the full context, without texts, without
            images. A single branch is returned as it is.
        config: Scales and renorm.

    Returns:
        [n, L, P] guided velocity.
    """
    plain, *others = velocities.unbind(1)
    if not others:
        return plain
    guided = others[0] + config.text_scale * (plain - others[0])
    if config.renorm == "text_channel":
        guided = _shrink(guided, plain, (-1,), config.renorm_min)
    if len(others) > 1:
        guided = others[1] + config.image_scale * (guided - others[1])
    if config.renorm == "channel":
        guided = _shrink(guided, plain, (-1,), config.renorm_min)
    elif config.renorm == "global":
        guided = _shrink(guided, plain, (-2, -1), config.renorm_min)
    return guided


def _shrink(guided: Tensor, plain: Tensor, dims: tuple[int, ...], least: float) -> Tensor:
    """Scales the guided velocity down to the norm of the unguided one, if it is larger."""
    lengths = [torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (plain, guided)]
    shrunk: Tensor = guided * (lengths[0] / (lengths[1] + EPSILON)).clamp(least, 1.0)
    return shrunk


def extrapolation_weights(times: list[float], time: float) -> list[float]:
    """Lagrange weights to extrapolate values from some times to another time.

    Args:
        times: Distinct times with known values.
        time: Time to extrapolate to.

    Returns:
        One weight for each known value; they sum to 1.
    """
    weights = []
    for i, own in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if i != j:
                weight *= (time - other) / (own - other)
        weights.append(weight)
    return weights
