"""Timesteps, guidance and extrapolation of drawings."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel import image_steps
from mathcanvas_lightning.generation.bagel.guidance import (
    DrawingConfig,
    FeatureCache,
    extrapolation_weights,
    guide,
)
from mathcanvas_lightning.generation.bagel.image_steps import Drawing, initial_noise
from mathcanvas_lightning.generation.bagel.kv_cache import CachedTokens
from tests.generation.drawing import low_default, parts, picture, studio

RENORMS = ["global", "channel", "text_channel"]


def velocities(seed: int, branches: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, branches, 5, 4, generator=generator)


@settings(deadline=None)
@given(st.integers(2, 60), st.floats(0.5, 6))
def test_times_go_from_one_to_zero(count: int, shift: float) -> None:
    times = DrawingConfig(num_timesteps=count, timestep_shift=shift).times()
    assert len(times) == count
    assert times[0] == pytest.approx(1)
    assert times[-1] == 0
    assert all(a > b for a, b in pairwise(times))


def test_branches() -> None:
    config = DrawingConfig(interval=(0.4, 0.8))
    assert [config.num_branches(t) for t in (0.3, 0.4, 0.5, 0.8, 0.9)] == [1, 1, 3, 3, 1]
    assert DrawingConfig(image_scale=1.0).num_branches(0.5) == 2
    # Without text guidance there is no guidance at all.
    assert DrawingConfig(text_scale=1.0, image_scale=9.0).num_branches(0.5) == 1


def test_the_interval_is_compared_in_float32() -> None:
    """In float32, 0.4 and 0.6 are slightly larger than in double precision."""
    config = DrawingConfig(num_timesteps=6, timestep_shift=1.0, interval=(0.4, 0.6))
    assert [round(t, 6) for t in config.times()] == [1, 0.8, 0.6, 0.4, 0.2, 0]
    assert [config.num_branches(t) for t in config.times()] == [1, 1, 3, 1, 1, 1]


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from(RENORMS), st.floats(0, 1), st.booleans())
def test_renorm(seed: int, renorm: Any, least: float, three: bool) -> None:
    branches = velocities(seed, 3 if three else 2)
    config = DrawingConfig(renorm=renorm, renorm_min=least)
    plain, no_text = branches[:, 0], branches[:, 1]
    guided = no_text + config.text_scale * (plain - no_text)
    if renorm == "text_channel":
        ratio = plain.norm(dim=-1, keepdim=True) / (guided.norm(dim=-1, keepdim=True) + 1e-8)
        guided = guided * ratio.clamp(least, 1)
    if three:
        guided = branches[:, 2] + config.image_scale * (guided - branches[:, 2])
    if renorm == "channel":
        ratio = plain.norm(dim=-1, keepdim=True) / (guided.norm(dim=-1, keepdim=True) + 1e-8)
        guided = guided * ratio.clamp(least, 1)
    if renorm == "global":
        norms = [v.flatten(1).norm(dim=-1)[:, None, None] for v in (plain, guided)]
        guided = guided * (norms[0] / (norms[1] + 1e-8)).clamp(least, 1)
    torch.testing.assert_close(guide(branches, config), guided)


def test_one_branch_is_not_guided() -> None:
    branches = velocities(0, 1)
    assert torch.equal(guide(branches, DrawingConfig()), branches[:, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": (0.9, 0.1)},
        {"renorm": "none"},
        {"renorm_min": 1.5},
        {"timestep_shift": 0.0},
        {"num_timesteps": 1},
        {"feature_cache": FeatureCache(refresh_every=0)},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DrawingConfig(**wrong)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True),
    st.floats(0, 1),
    st.lists(st.floats(-3, 3), min_size=1, max_size=4),
)
def test_extrapolation_is_exact_for_polynomials(
    places: list[int], time: float, coefficients: list[float]
) -> None:
    times = [place / 60 for place in places]
    coefficients = coefficients[: len(times)]

    def polynomial(t: float) -> float:
        return sum(c * t**power for power, c in enumerate(coefficients))

    weights = extrapolation_weights(times, time)
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    found = sum(w * polynomial(t) for w, t in zip(weights, times, strict=True))
    assert found == pytest.approx(polynomial(time), abs=1e-4)


def test_noise_depends_only_on_its_key() -> None:
    noise = initial_noise(2, 3, 4, 0, "a", 1)
    assert noise.shape == (6, 4)
    assert torch.equal(noise, initial_noise(2, 3, 4, 0, "a", 1))
    for other in ((0, "a", 2), (0, "b", 1), (1, "a", 1)):
        assert not torch.equal(noise, initial_noise(2, 3, 4, *other))


def test_the_default_dtype_does_not_matter() -> None:
    config = DrawingConfig(num_timesteps=7, interval=(0.3, 0.7))
    wanted = initial_noise(2, 3, 4, 0), config.times(), config.num_branches(0.70001)
    with low_default():
        found = initial_noise(2, 3, 4, 0), config.times(), config.num_branches(0.70001)
    assert torch.equal(found[0], wanted[0])
    assert found[1:] == wanted[1:]


class Sketch:
    """Contexts of a question, as the start of drawings."""

    def __init__(self) -> None:
        self.desk = studio(num_rows=18)

    @torch.inference_mode()
    def begin(self, config: DrawingConfig, seed: int = 0, size: Any = (48, 32)) -> Drawing:
        contexts = self.desk.contexts()
        maker = self.desk.maker
        self.desk.prefill(contexts, maker.text(f"draw {seed} lines"), maker.image(picture(seed)))
        return self.desk.painter.begin(config, contexts, size, (seed,))

    @torch.inference_mode()
    def finish(self, *drawings: Drawing) -> torch.Tensor:
        while remaining := [d for d in drawings if not d.is_done]:
            self.desk.painter.step(remaining)
        return torch.cat([drawing.latents for drawing in drawings])


def test_drawings_do_not_depend_on_each_other() -> None:
    """Sizes, settings and times differ within the batch."""
    wanted: list[tuple[DrawingConfig, Any]] = [
        (DrawingConfig(num_timesteps=6), (48, 32)),
        (DrawingConfig(num_timesteps=9, renorm="global", interval=(0.3, 0.7)), (32, 32)),
        (DrawingConfig(num_timesteps=6, feature_cache=FeatureCache()), (48, 48)),
        (DrawingConfig(num_timesteps=6), (48, 32)),
        (DrawingConfig(num_timesteps=3, text_scale=1.0), (48, 32)),
    ]
    sketch = Sketch()
    together = []
    for seed, (config, size) in enumerate(wanted):
        together.append(sketch.begin(config, seed, size))
        with torch.inference_mode():
            sketch.desk.painter.step([d for d in together if not d.is_done])
    found = sketch.finish(*together)
    alone = []
    for seed, (config, size) in enumerate(wanted):
        own = Sketch()
        alone.append(own.finish(own.begin(config, seed, size)))
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=0)


def test_steps_and_pictures_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller passes give the same result; layouts are built once for all steps."""
    made, decoded = [], []
    real_layout, real_decode = CachedTokens, parts()[1].decode
    monkeypatch.setattr(
        image_steps, "CachedTokens", lambda *args: made.append(args) or real_layout(*args)
    )
    monkeypatch.setattr(
        parts()[1], "decode", lambda latents: decoded.append(len(latents)) or real_decode(latents)
    )
    results = []
    for step_tokens, paint_tokens in ((10_000, 10_000), (2 * (6 + 2), 12)):
        monkeypatch.setattr(image_steps, "MAX_STEP_TOKENS", step_tokens)
        monkeypatch.setattr(image_steps, "MAX_PAINT_TOKENS", paint_tokens)
        sketch = Sketch()
        drawings = [sketch.begin(DrawingConfig(num_timesteps=4), seed) for seed in range(3)]
        latents = sketch.finish(*drawings)
        with torch.inference_mode():
            pictures = sketch.desk.painter.paint(drawings)
        results.append((latents, [np.asarray(p).astype(int) for p in pictures]))
    assert len(made) == 1 + 5  # nine branches, two per pass
    assert decoded == [3, 2, 1]
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    assert np.abs(np.stack(results[0][1]) - np.stack(results[1][1])).max() <= 1


def passes_of(drawing: Drawing, sketch: Sketch) -> tuple[torch.Tensor, int]:
    passes = 0
    with torch.inference_mode():
        while not drawing.is_done:
            passes += drawing.needs_network
            sketch.desk.painter.step([drawing])
    return drawing.latents, passes


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.4, 1.0), (0.0, 0.6)])
def test_feature_cache(interval: tuple[float, float]) -> None:
    """It skips passes; the error decreases with more refreshes, and 1 is exact."""
    results = {}
    for every in (None, 1, 2, 3):
        reuse = None if every is None else FeatureCache(refresh_every=every)
        config = DrawingConfig(num_timesteps=25, interval=interval, feature_cache=reuse)
        sketch = Sketch()
        results[every] = passes_of(sketch.begin(config), sketch)
    exact, num_steps = results[None]
    assert num_steps == 24
    assert results[1][1] == 24
    assert torch.equal(results[1][0], exact)
    moved = (exact - initial_noise(2, 3, exact.shape[1], 0)).norm()
    errors = {every: ((results[every][0] - exact).norm() / moved).item() for every in (2, 3)}
    assert errors[2] < 0.05
    assert errors[3] < 0.1
    assert results[2][1] <= 15
    assert results[3][1] <= 12


def test_higher_orders_extrapolate_better() -> None:
    errors, sketch = [], Sketch()
    exact = sketch.finish(sketch.begin(DrawingConfig(num_timesteps=40)))
    for order in (0, 1, 2):
        reuse = FeatureCache(refresh_every=2, order=order)
        config = DrawingConfig(num_timesteps=40, feature_cache=reuse)
        errors.append((sketch.finish(sketch.begin(config)) - exact).norm().item())
    assert errors[0] > errors[1] > errors[2]
