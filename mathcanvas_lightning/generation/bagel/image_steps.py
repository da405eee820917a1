"""Drawing: one step of many drawings at a time, all branches of guidance in one pass."""

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
"""Tokens of one pass at most, unless one drawing alone has more: bounds the activations."""
MAX_PAINT_TOKENS = 4096
"""Latent tokens decoded at once at most, unless one drawing alone has more."""


@dataclass(slots=True, kw_only=True)
class Drawing:
    """A drawing on its way from noise."""

    config: DrawingConfig
    rows: int
    """Tokens down."""
    columns: int
    """Tokens across."""
    latents: Tensor
    """[L, P] float32 at the present time."""
    contexts: Sequence[Context]
    """Full, without texts, without images; as many as the guidance needs."""
    times: tuple[float, ...]
    """From 1 to 0."""
    clock: Tensor
    """[times] float32: the same, on the device."""
    places: Tensor
    """[L] int64: its tokens in the position table, on the device."""
    step: int = 0
    """Steps done."""
    history: deque[tuple[float, Tensor]] = field(default_factory=deque)
    """Times at which the network ran, and its velocities [branches, L, P]; kept for
    extrapolation alone."""

    @property
    def is_done(self) -> bool:
        """Whether it has come to time 0."""
        return self.step == len(self.times) - 1

    @property
    def time(self) -> float:
        """Where it is."""
        return self.times[self.step]

    @property
    def num_branches(self) -> int:
        """Contexts that this step needs."""
        return self.config.num_branches(self.time)

    @property
    def needs_network(self) -> bool:
        """Whether this step runs the network, rather than extrapolates."""
        reuse = self.config.feature_cache
        if reuse is None or self.step < reuse.warmup or not self.history:
            return True
        if len(self.history[-1][1]) < self.num_branches:
            return True
        return (self.step - reuse.warmup + 1) % reuse.refresh_every == 0


def draw_noise(rows: int, columns: int, patch_dim: int, *key: object) -> Tensor:
    """The noise a drawing starts from.

    Args:
        rows: Tokens down.
        columns: Tokens across.
        patch_dim: Numbers in a token.
        key: What it is for; equal keys give equal noise, on any device, in any batch.

    Returns:
        [L, P] float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(hash64("noise", *key) >> 1)
    return torch.randn(rows * columns, patch_dim, generator=generator, dtype=torch.float32)


class Painter:
    """Takes drawings from noise to pictures.

    Args:
        model: The model.
        vae: Decodes latents.
        cache: Of all contexts.
        special: Ids of the image markers.
        interpolate_positions: Spread images over the whole position table.
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
        """A drawing that is all noise.

        Args:
            config: How it is made.
            contexts: Full, without texts, without images.
            size_px: Width and height, multiples of a latent token's side.
            noise_key: Decides the noise.

        Returns:
            The drawing.
        """
        geometry = self._model.config.geometry
        columns, rows = (length // geometry.latent_patch_px for length in size_px)
        noise = draw_noise(rows, columns, self._model.config.latent_dim, *noise_key)
        times = config.times()
        places = positions_in_table(
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
            clock=on_device(torch.tensor(times, dtype=torch.float32), self._cache.device),
            places=on_device(torch.from_numpy(places), self._cache.device),
            history=deque(maxlen=depth),
        )

    def step(self, drawings: Sequence[Drawing]) -> None:
        """Takes each drawing one step further, wherever it is.

        Args:
            drawings: Any sizes, at any times, none of them done.
        """
        velocities = self._velocities([d for d in drawings if d.needs_network])
        pairs = []
        for drawing in drawings:
            if drawing.needs_network:
                own = velocities.pop(0)
                drawing.history.append((drawing.time, own))
            else:
                own = _extrapolate(drawing)
            pairs.append((drawing, own))
        for _, group in groupby(pairs, lambda pair: (pair[1].shape, pair[0].config)):
            _advance(list(group))

    def paint(self, drawings: Sequence[Drawing]) -> list[Image.Image]:
        """Pictures of finished drawings; those of equal size are decoded together."""
        patch = self._model.config.latent_patch_size
        pictures: dict[int, Image.Image] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, drawing in enumerate(drawings):
            by_size.setdefault((drawing.rows, drawing.columns), []).append(index)
        for (rows, columns), same_size in by_size.items():
            for indexes in in_passes(
                same_size, lambda index: len(drawings[index].latents), MAX_PAINT_TOKENS
            ):
                latents = [unpatchify(drawings[i].latents, rows, columns, patch) for i in indexes]
                pixels = to_pixels(self._vae.decode(torch.stack(latents))).cpu().numpy()
                pictures |= {i: Image.fromarray(p) for i, p in zip(indexes, pixels, strict=True)}
        return [pictures[index] for index in range(len(drawings))]

    def _velocities(self, drawings: Sequence[Drawing]) -> list[Tensor]:
        """[branches, L, P] float32 of each drawing, from as few passes as may be."""
        if not drawings:
            return []
        # All full contexts, then all without texts, ...: neighbours are of like length, so that
        # attending together pads little.
        order = sorted(
            (branch, index)
            for index, drawing in enumerate(drawings)
            for branch in range(drawing.num_branches)
        )
        embedded = self._embed(drawings)
        parts: list[list[Tensor]] = [[] for _ in drawings]
        kept, self._layouts = self._layouts, {}
        for together in in_passes(order, lambda pair: len(embedded[pair[1]]), MAX_STEP_TOKENS):
            spans = tuple(
                drawings[index].contexts[branch].span(len(embedded[index]) + MARKERS, "latents")
                for branch, index in together
            )
            # It stays the same for as long as the same drawings go on.
            tokens = self._layouts[spans] = kept.get(spans) or CachedTokens(self._cache, spans)
            found = self._pass(tokens, [embedded[index] for _, index in together])
            for (_, index), part in zip(together, found, strict=True):
                parts[index].append(part)
        return [torch.stack(own) for own in parts]

    def _pass(self, tokens: CachedTokens, embedded: Sequence[Tensor]) -> Sequence[Tensor]:
        """[L, P] float32 velocities of embedded latents, [L, D] each."""
        und = self._model.language_model.model.embed_tokens(self._markers)
        _, hidden = forward_cached(
            self._model, tokens, und.repeat(len(embedded), 1), torch.cat(list(embedded))
        )
        velocities: Tensor = self._model.llm2vae(hidden).float()
        return torch.split(velocities, [len(own) for own in embedded])

    def _embed(self, drawings: Sequence[Drawing]) -> Sequence[Tensor]:
        """[L, D] latents of each drawing at its time."""
        times = [drawing.clock[drawing.step].expand(len(drawing.latents)) for drawing in drawings]
        embedded: Tensor = self._model.embed_latents(
            torch.cat([drawing.latents for drawing in drawings]),
            torch.cat(times),
            torch.cat([drawing.places for drawing in drawings]),
        )
        return torch.split(embedded, [len(drawing.latents) for drawing in drawings])


def _advance(pairs: Sequence[tuple[Drawing, Tensor]]) -> None:
    """One Euler step of drawings with velocities of one shape."""
    drawings = [drawing for drawing, _ in pairs]
    velocity = guide(torch.stack([own for _, own in pairs]), drawings[0].config)
    distance = torch.stack([d.clock[d.step] - d.clock[d.step + 1] for d in drawings])[:, None, None]
    latents = torch.stack([d.latents for d in drawings]) - velocity * distance
    for drawing, own in zip(drawings, latents, strict=True):
        drawing.latents = own
        drawing.step += 1


def _extrapolate(drawing: Drawing) -> Tensor:
    """The velocities at this time, by the polynomial through the last ones."""
    branches = drawing.num_branches
    known = [(time, v) for time, v in drawing.history if len(v) >= branches]
    weights = extrapolation_weights([time for time, _ in known], drawing.time)
    stacked = torch.stack([velocities[:branches] for _, velocities in known])
    on_times = on_device(torch.tensor(weights, dtype=torch.float32), stacked.device)
    return torch.einsum("k,kblp->blp", on_times, stacked)
