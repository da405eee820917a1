"""How a drawing is sampled: its times, and classifier-free guidance with two scales. Pure.

Source: the public inference code of BAGEL (`generate_image` and `_forward_flow`).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.flow import shift_timesteps

Renorm = Literal["global", "channel", "text_channel"]
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class FeatureCache:
    """Spares passes of the network by extrapolating what it said at earlier times.

    A polynomial through the last times at which the network ran: what Taylor's series with
    finite differences gives (Liu et al., "From Reusable to Forecasting: Accelerating Diffusion
    Models with TaylorSeers", 2025), for times at any distance. The velocity is linear in the last
    hidden features, so extrapolating the one is extrapolating the other.
    """

    refresh_every: int = 3
    """Steps from one pass to the next; 1 spares none."""
    order: int = 1
    """Degree of the polynomial; 0 repeats the last velocity."""
    warmup: int = 3
    """First steps, which always run the network."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class DrawingConfig:
    """How drawings are made; the defaults are those published for visual reasoning.

    Raises:
        ConfigError: If a value is out of its range.
    """

    text_scale: float = 4.0
    """Guidance away from what would be drawn without the texts; 1 or less turns all guidance
    off."""
    image_scale: float = 2.0
    """Guidance away from what would be drawn without the images; 1 or less turns it off."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guidance applies at shifted times above the first, up to the second."""
    renorm: Renorm = "text_channel"
    """What is kept from growing longer than the unguided velocity: the whole drawing ("global"),
    each token ("channel"), or each token before the image guidance ("text_channel")."""
    renorm_min: float = 0.0
    """Shrinks to no less than this."""
    timestep_shift: float = 3.0
    """Of inference; above 1, more of the steps are spent near the noise."""
    num_timesteps: int = 50
    """Times from 1 to 0, both included: one more than there are steps."""
    default_size: tuple[int, int] = (512, 512)
    """Width and height in pixels where no picture is given."""
    feature_cache: FeatureCache | None = None
    """None runs the network at each step."""

    def __post_init__(self) -> None:
        low, high = self.interval
        reuse = self.feature_cache or FeatureCache()
        limits = {
            "interval": (low <= high, "low and high, in this order"),
            "renorm": (self.renorm in get_args(Renorm), f"one of {', '.join(get_args(Renorm))}"),
            "renorm_min": (0 <= self.renorm_min <= 1, "0 to 1"),
            "timestep_shift": (self.timestep_shift > 0, "above 0"),
            "num_timesteps": (self.num_timesteps >= 2, "2 or more"),
            "feature_cache": (
                reuse.refresh_every >= 1 and reuse.order >= 0 and reuse.warmup >= 1,
                "refresh_every and warmup of 1 or more, order of 0 or more",
            ),
        }
        for name, (fits, wanted) in limits.items():
            if not fits:
                raise ConfigError(
                    f"drawing.{name}",
                    found=repr(getattr(self, name)),
                    wanted=wanted,
                    remedy="Change it.",
                )

    @property
    def num_contexts(self) -> int:
        """How many of the three contexts are needed at most."""
        if self.text_scale <= 1:
            return 1
        return 3 if self.image_scale > 1 else 2

    def num_branches(self, time: float) -> int:
        """How many contexts are needed at a time."""
        # Times are float32, so the ends are compared as such too.
        low, high = torch.tensor(self.interval, dtype=torch.float32).tolist()
        return self.num_contexts if low < time <= high else 1

    def times(self) -> tuple[float, ...]:
        """The shifted times, from 1 to 0, as float32 has them."""
        even = torch.linspace(1, 0, self.num_timesteps, dtype=torch.float32)
        return tuple(shift_timesteps(even, self.timestep_shift).tolist())


def guide(velocities: Tensor, config: DrawingConfig) -> Tensor:
    """The guided velocity of drawings of one size.

    Args:
        velocities: [n, branches, L, P] float32: with the full context, without texts, without
            images; one branch is not guided.
        config: Scales and renorm.

    Returns:
        [n, L, P].
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
    """Makes the guided velocity no longer than the plain one."""
    lengths = [torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (plain, guided)]
    shrunk: Tensor = guided * (lengths[0] / (lengths[1] + EPSILON)).clamp(least, 1.0)
    return shrunk


def extrapolation_weights(times: list[float], time: float) -> list[float]:
    """Weights of values at some times in the polynomial through them, at another time.

    Args:
        times: Distinct.
        time: Where the polynomial is wanted.

    Returns:
        Lagrange's weights; they sum to 1.
    """
    weights = []
    for i, own in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if i != j:
                weight *= (time - other) / (own - other)
        weights.append(weight)
    return weights
