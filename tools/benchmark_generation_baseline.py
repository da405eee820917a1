"""Baseline for the benchmark of the generator: one problem at a time, step by step.

It works like the public inference code, with the same weights: each context is prefilled
separately, an image is encoded again for each context, keys and values are concatenated for each
token, a text is generated in a copy of its context and then prefilled again, and each step of a
drawing needs one pass per guidance branch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.data.sequence.pack import pack_samples, positions_in_table
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.generation.bagel.contexts import Item, ItemMaker
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig, guide
from mathcanvas_lightning.generation.bagel.image_steps import initial_noise
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.flow import unpatchify
from mathcanvas_lightning.model.layers.basic import rotary_tables
from mathcanvas_lightning.model.vae import LatentVAE, pack_latents, to_pixels

Choose = Callable[[Tensor, int, int], int]
"""Logits, step, index -> a token."""


@dataclass
class PlainContext:
    """Keys and values of each layer, [tokens, heads, H]."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    position: int = 0

    def copy(self) -> "PlainContext":
        """A copy with the same content."""
        return PlainContext(list(self.keys), list(self.values), self.position)


class Concatenation:
    """Attention to a context and to new tokens after it."""

    def __init__(self, context: PlainContext, *, causal: bool, keep: bool) -> None:
        self._context, self._causal, self._keep = context, causal, keep
        self._layer = 0

    def of_layer(self, number: int) -> "Concatenation":
        """Selects a layer."""
        self._layer = number
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Computes the attention."""
        context, layer = self._context, self._layer
        if context.keys and layer < len(context.keys):
            keys = torch.cat([context.keys[layer], key])
            values = torch.cat([context.values[layer], value])
        else:
            keys, values = key, value
        if self._keep:
            context.keys[layer : layer + 1] = [keys]
            context.values[layer : layer + 1] = [values]
        mask = None
        if self._causal and len(query) > 1:
            shape = (len(query), len(keys))
            mask = torch.ones(shape, dtype=torch.bool, device=query.device)
            mask = mask.tril(len(keys) - len(query))
        q, k, v = (x.transpose(0, 1)[None] for x in (query, keys, values))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)


class PlainGenerator:
    """Answers one problem after the other.

    Args:
        model: The model.
        vae: Its autoencoder.
        tokenizer: Its tokenizer.
        maker: Prepares texts and pictures.
        config: How drawings are made; three branches.
    """

    def __init__(
        self,
        model: Bagel,
        vae: LatentVAE,
        tokenizer: TextTokenizer,
        maker: ItemMaker,
        config: DrawingConfig,
    ) -> None:
        self._model, self._vae, self._tokenizer = model, vae, tokenizer
        self._maker, self._config = maker, config
        self._device = model.llm2vae.weight.device

    @torch.inference_mode()
    def answer(
        self,
        uid: str,
        inputs: Sequence[str | Image.Image],
        choose: Choose,
        max_steps: int = 10,
    ) -> list[str | Image.Image]:
        """Texts and drawings of one problem."""
        special = self._tokenizer.special
        full, images, texts = contexts = [PlainContext() for _ in range(3)]
        size = (0, 0)
        for given in inputs:
            if isinstance(given, str):
                self._read(self._maker.text(given), full, texts)
            else:
                item = self._maker.image(given)
                size = item.size_px or size
                self._read(item, full, images)
        steps: list[str | Image.Image] = []
        for number in range(1, max_steps + 1):
            ids, action = self._write(full.copy(), choose, number)
            text = self._tokenizer.decode(ids).strip()
            steps.append(text)
            if action not in (special.start_of_image, special.bos):
                break
            self._read(self._maker.text(text), full, texts)
            if action == special.start_of_image:
                picture = self._draw(contexts, size, (0, uid, number))
                steps.append(picture)
                self._read(self._maker.image(picture), full, images)
        return steps

    def _read(self, item: Item, *contexts: PlainContext) -> None:
        model, special = self._model, self._tokenizer.special
        for context in contexts:
            pack = pack_samples([item.content], self._maker.geometry, special).to(self._device)
            if item.size_px is None:
                und = model.language_model.model.embed_tokens(pack.text_ids)
                self._pass(context, und, und[:0], causal=True, keep=True)
                continue
            start, end = model.language_model.model.embed_tokens(pack.text_ids[:2]).split(1)
            latents = pack_latents(self._vae, pack, model.config.latent_patch_size)
            gen = model.embed_latents(
                latents, latents.new_zeros(len(latents)), pack.latent_position_ids
            )
            self._pass(context, torch.cat([start, end]), gen, causal=False, keep=True)
            patches = model.embed_vit(pack.vit_patches, pack.vit_position_ids, pack.vit_lens)
            und = torch.cat([start, patches, end])
            self._pass(context, und, gen[:0], causal=False, keep=True)

    def _pass(
        self, context: PlainContext, und: Tensor, gen: Tensor, *, causal: bool, keep: bool
    ) -> tuple[Tensor, Tensor]:
        llm, num_tokens = self._model.config.llm, len(und) + len(gen)
        steps = torch.arange(num_tokens, device=self._device) * causal
        tables = rotary_tables(context.position + steps, llm.head_dim, llm.rope_theta)
        rotary = tuple(zip(*(table.split([len(und), len(gen)]) for table in tables), strict=True))
        attention = Concatenation(context, causal=causal, keep=keep)
        hidden: tuple[Tensor, Tensor] = self._model.language_model.model(
            und, gen, rotary, attention
        )
        if keep:
            context.position += num_tokens if causal else 1
        return hidden

    def _write(self, context: PlainContext, choose: Choose, number: int) -> tuple[list[int], int]:
        special, ids = self._tokenizer.special, [self._tokenizer.special.bos]
        while True:
            token = torch.tensor(ids[-1:], device=self._device)
            und = self._model.language_model.model.embed_tokens(token)
            hidden, _ = self._pass(context, und, und[:0], causal=True, keep=True)
            chosen = choose(self._model.language_model.lm_head(hidden), number, len(ids) - 1)
            if ids[-1] == special.eos:
                return ids[1:-1], chosen
            ids.append(chosen)

    def _draw(
        self, contexts: Sequence[PlainContext], size: tuple[int, int], key: tuple[object, ...]
    ) -> Image.Image:
        model, special = self._model, self._tokenizer.special
        config, geometry = model.config, self._maker.geometry
        columns, rows = (length // geometry.latent_patch_px for length in size)
        latents = initial_noise(rows, columns, config.latent_dim, *key).to(self._device)
        positions = positions_in_table(rows, columns, config.max_latent_size, False)
        position_ids = torch.from_numpy(positions).to(self._device)
        marks = torch.tensor([special.start_of_image, special.end_of_image], device=self._device)
        und = model.language_model.model.embed_tokens(marks)
        times = self._config.times()
        for time, after in pairwise(times):
            branches = []
            for context in contexts:
                now = torch.full((len(latents),), time, device=self._device)
                gen = model.embed_latents(latents, now, position_ids)
                _, hidden = self._pass(context, und, gen, causal=False, keep=False)
                branches.append(model.llm2vae(hidden).float())
            velocity = guide(torch.stack(branches)[None], self._config)[0]
            latents = latents - velocity * (time - after)
        latent = unpatchify(latents, rows, columns, config.latent_patch_size)
        return Image.fromarray(to_pixels(self._vae.decode(latent[None]))[0].cpu().numpy())
