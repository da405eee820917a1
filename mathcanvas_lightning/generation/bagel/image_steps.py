"""Denoising of drawings: one step of many drawings at a time, with all guidance branches."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.data.sequence.pack import positions_in_table
from mathcanvas_lightning.data.sequence.rng import hash64
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens
from mathcanvas_lightning.generation.bagel.contexts import Context
from mathcanvas_lightning.generation.bagel.guidance import (
    DrawingConfig,
    extrapolation_weights,
    guide,
)
from mathcanvas_lightning.generation.bagel.kv_cache import (
    MARKERS,
    CachedTokens,
    KVCache,
    Span,
    forward_cached,
    in_passes,
    on_device,
)
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.flow import unpatchify
from mathcanvas_lightning.model.vae import LatentVAE, to_pixels

MAX_STEP_TOKENS = 16_384
"""Maximum number of tokens in one forward pass (unless a single drawing has more); limits the
memory of the activations."""
MAX_PAINT_TOKENS = 4096
"""Maximum number of latent tokens in one VAE pass, unless a single drawing has more."""


@dataclass(slots=True, kw_only=True)
class Drawing:
    """A drawing that is being denoised."""

    config: DrawingConfig
    rows: int
    """Number of token rows."""
    columns: int
    """Number of token columns."""
    latents: Tensor
    """[L, P] float32 latents at the current time."""
    contexts: Sequence[Context]
    """Contexts for guidance: full, without texts, without images; as many as needed."""
    times: tuple[float, ...]
    """Timesteps from 1 to 0."""
    times_on_device: Tensor
    """[times] float32: the same timesteps on the device."""
    position_ids: Tensor
    """[L] int64: indexes into the position table, on the device."""
    step: int = 0
    """Number of finished steps."""
    history: deque[tuple[float, Tensor]] = field(default_factory=deque)
    """Timesteps at which the network ran, with velocities [branches, L, P], for extrapolation."""

    @property
    def is_done(self) -> bool:
        """Whether time 0 is reached."""
        return self.step == len(self.times) - 1

    @property
    def time(self) -> float:
        """Current timestep."""
        return self.times[self.step]

    @property
    def num_branches(self) -> int:
        """Number of guidance branches in this step."""
        return self.config.num_branches(self.time)

    @property
    def needs_network(self) -> bool:
        """Whether this step runs the network instead of extrapolating."""
        reuse = self.config.feature_cache
        if reuse is None or self.step < reuse.warmup or not self.history:
            return True
        if len(self.history[-1][1]) < self.num_branches:
            return True
        return (self.step - reuse.warmup + 1) % reuse.refresh_every == 0


def initial_noise(rows: int, columns: int, patch_dim: int, *key: object) -> Tensor:
    """Samples the initial noise of a drawing.

    Args:
        rows: Number of token rows.
        columns: Number of token columns.
        patch_dim: Values per token.
        key: Random key; equal keys give equal noise, on any device and in any batch.

    Returns:
        [L, P] float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(hash64("noise", *key) >> 1)
    return torch.randn(rows * columns, patch_dim, generator=generator, dtype=torch.float32)


class Painter:
    """Denoises drawings and decodes them to pictures.

    Args:
        model: BAGEL.
        vae: Decodes latents.
        cache: KV cache of all contexts.
        special: Special tokens, with the image markers.
        interpolate_positions: Whether positions of image tokens are interpolated.
    """

    def __init__(
        self,
        model: Bagel,
        vae: LatentVAE,
        cache: KVCache,
        special: SpecialTokens,
        *,
        interpolate_positions: bool = False,
    ) -> None:
        self._model, self._vae, self._cache = model, vae, cache
        self._markers = torch.tensor(
            [special.start_of_image, special.end_of_image], device=cache.device
        )
        self._interpolate = interpolate_positions
        self._layouts: dict[tuple[Span, ...], CachedTokens] = {}

    def begin(
        self,
        config: DrawingConfig,
        contexts: Sequence[Context],
        size_px: tuple[int, int],
        noise_key: Sequence[object],
    ) -> Drawing:
        """Starts a drawing from noise.

        Args:
            config: Settings of the drawing.
            contexts: Contexts for guidance: full, without texts, without images.
            size_px: Width and height, multiples of a latent token's side.
            noise_key: Random key for the noise.

        Returns:
            The drawing.
        """
        geometry = self._model.config.geometry
        columns, rows = (length // geometry.latent_patch_px for length in size_px)
        noise = initial_noise(rows, columns, self._model.config.latent_dim, *noise_key)
        times = config.times()
        position_ids = positions_in_table(
            rows, columns, self._model.config.max_latent_size, self._interpolate
        )
        depth = 0 if config.feature_cache is None else config.feature_cache.order + 1
        return Drawing(
            config=config,
            rows=rows,
            columns=columns,
            latents=on_device(noise, self._cache.device),
            contexts=contexts,
            times=times,
            times_on_device=on_device(torch.tensor(times, dtype=torch.float32), self._cache.device),
            position_ids=on_device(torch.from_numpy(position_ids), self._cache.device),
            history=deque(maxlen=depth),
        )

    def step(self, drawings: Sequence[Drawing]) -> None:
        """Advances each drawing by one step.

        Args:
            drawings: Unfinished drawings of any size, each at any time.
        """
        velocities = self._velocities([d for d in drawings if d.needs_network])
        pairs = []
        for drawing in drawings:
            if drawing.needs_network:
                velocity = velocities.pop(0)
                drawing.history.append((drawing.time, velocity))
            else:
                velocity = _extrapolate(drawing)
            pairs.append((drawing, velocity))
        for _, group in groupby(pairs, lambda pair: (pair[1].shape, pair[0].config)):
            _advance(list(group))

    def paint(self, drawings: Sequence[Drawing]) -> list[Image.Image | None]:
        """Decodes finished drawings to pictures, drawings of equal size as one batch.

        Args:
            drawings: Finished drawings.

        Returns:
            A picture for each drawing; None if its values are NaN or infinite.
        """
        patch = self._model.config.latent_patch_size
        pictures: dict[int, Image.Image | None] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, drawing in enumerate(drawings):
            by_size.setdefault((drawing.rows, drawing.columns), []).append(index)
        for (rows, columns), same_size in by_size.items():
            for indexes in in_passes(
                same_size, lambda index: len(drawings[index].latents), MAX_PAINT_TOKENS
            ):
                latents = [unpatchify(drawings[i].latents, rows, columns, patch) for i in indexes]
                decoded = self._vae.decode(torch.stack(latents))
                finite = decoded.isfinite().flatten(1).all(1).tolist()
                pixels = to_pixels(decoded).cpu().numpy()
                for index, is_finite, image in zip(indexes, finite, pixels, strict=True):
                    pictures[index] = Image.fromarray(image) if is_finite else None
        return [pictures[index] for index in range(len(drawings))]

    def _velocities(self, drawings: Sequence[Drawing]) -> list[Tensor]:
        """[branches, L, P] float32 velocities of each drawing, in as few passes as possible."""
        if not drawings:
            return []
        # Ordered by branch: contexts of the same kind have similar lengths, so there is little
        # padding.
        order = sorted(
            (branch, index)
            for index, drawing in enumerate(drawings)
            for branch in range(drawing.num_branches)
        )
        embedded = self._embed(drawings)
        parts: list[list[Tensor]] = [[] for _ in drawings]
        kept, self._layouts = self._layouts, {}
        for group in in_passes(order, lambda pair: len(embedded[pair[1]]), MAX_STEP_TOKENS):
            spans = tuple(
                drawings[index].contexts[branch].span(len(embedded[index]) + MARKERS, "latents")
                for branch, index in group
            )
            # Reused while the same drawings are in progress.
            tokens = self._layouts[spans] = kept.get(spans) or CachedTokens(self._cache, spans)
            velocities = self._pass(tokens, [embedded[index] for _, index in group])
            for (_, index), velocity in zip(group, velocities, strict=True):
                parts[index].append(velocity)
        return [torch.stack(branches) for branches in parts]

    def _pass(self, tokens: CachedTokens, embedded: Sequence[Tensor]) -> Sequence[Tensor]:
        """Predicts [L, P] float32 velocities from embedded latents, [L, D] for each drawing."""
        und = self._model.language_model.model.embed_tokens(self._markers)
        _, hidden = forward_cached(
            self._model, tokens, und.repeat(len(embedded), 1), torch.cat(list(embedded))
        )
        velocities: Tensor = self._model.llm2vae(hidden).float()
        return torch.split(velocities, [len(latents) for latents in embedded])

    def _embed(self, drawings: Sequence[Drawing]) -> Sequence[Tensor]:
        """Embeds the latents of each drawing at its time, [L, D]."""
        times = [d.times_on_device[d.step].expand(len(d.latents)) for d in drawings]
        embedded: Tensor = self._model.embed_latents(
            torch.cat([drawing.latents for drawing in drawings]),
            torch.cat(times),
            torch.cat([drawing.position_ids for drawing in drawings]),
        )
        return torch.split(embedded, [len(drawing.latents) for drawing in drawings])


def _advance(pairs: Sequence[tuple[Drawing, Tensor]]) -> None:
    """Makes one Euler step with drawings of equal shape and configuration."""
    drawings = [drawing for drawing, _ in pairs]
    velocity = guide(torch.stack([branches for _, branches in pairs]), drawings[0].config)
    distances = [d.times_on_device[d.step] - d.times_on_device[d.step + 1] for d in drawings]
    distance = torch.stack(distances)[:, None, None]
    latents = torch.stack([d.latents for d in drawings]) - velocity * distance
    for drawing, moved in zip(drawings, latents, strict=True):
        drawing.latents = moved
        drawing.step += 1


def _extrapolate(drawing: Drawing) -> Tensor:
    """Extrapolates the velocities from the history to the current time."""
    branches = drawing.num_branches
    known = [(time, v) for time, v in drawing.history if len(v) >= branches]
    weights = extrapolation_weights([time for time, _ in known], drawing.time)
    stacked = torch.stack([velocities[:branches] for _, velocities in known])
    factors = on_device(torch.tensor(weights, dtype=torch.float32), stacked.device)
    return torch.einsum("k,kblp->blp", factors, stacked)
