"""A small random model that writes and draws, and scripts for its texts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.generation.bagel.contexts import (
    CONTEXTS,
    Context,
    Item,
    ItemMaker,
    Prefiller,
)
from mathcanvas_lightning.generation.bagel.generator import InterleavedGenerator
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.image_steps import Painter
from mathcanvas_lightning.generation.bagel.kv_cache import KVCache
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.generation.bagel.problem import InterleavedConfig
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig, TokenChoice, choose_tokens
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig, VAEConfig
from mathcanvas_lightning.model.vae import LatentVAE

VAE_TRANSFORM = ImageTransform(max_image_size=48, min_image_size=32, image_stride=16)
VIT_TRANSFORM = ImageTransform(max_image_size=42, min_image_size=28, image_stride=14)
FAST = DrawingConfig(num_timesteps=4, default_size=(48, 32))
SIZES = {"vae_transform": VAE_TRANSFORM, "vit_transform": VIT_TRANSFORM}


@cache
def parts() -> tuple[Bagel, LatentVAE, TextTokenizer]:
    """Random model, random autoencoder, and tokenizer."""
    tokenizer = TextTokenizer(None)
    config = BagelConfig.preset(
        "tiny",
        llm_vocab_size=tokenizer.num_ids,
        llm_hidden_size=64,
        llm_intermediate_size=128,
        llm_num_hidden_layers=2,
        llm_initializer_range=0.02,
        llm_rope_theta=1e6,
        vit_hidden_size=32,
        vit_intermediate_size=64,
        vit_num_attention_heads=2,
    )
    model = Bagel.empty(config, dtype=torch.float32, device="cpu")
    model.reset_parameters(0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data.add_(noise if "norm" not in name else noise * 0.1)
    model.reset_tables()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = LatentVAE(VAEConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_num_groups=4))
    return model, vae, tokenizer


@contextmanager
def low_default() -> Iterator[None]:
    """Makes bfloat16 the default dtype in the block, as a Trainer with bf16-true does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    """A picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@dataclass
class Studio:
    """A model with a KV cache."""

    model: Bagel
    maker: ItemMaker
    cache: KVCache
    prefiller: Prefiller
    painter: Painter
    num_used: int = 0

    def contexts(self) -> list[Context]:
        """Three new, empty contexts."""
        first = self.num_used
        self.num_used += len(CONTEXTS)
        return [Context(row=row) for row in range(first, self.num_used)]

    def prefill(self, contexts: Sequence[Context], *items: Item) -> list[tuple[Tensor, Tensor]]:
        """Prefills items into the contexts of their kinds."""
        pairs = [(c, kind) for c, kind in zip(contexts, CONTEXTS, strict=False)]
        return self.prefiller.prefill(
            [(item, [c for c, kind in pairs if item.belongs_to(kind)]) for item in items]
        )


def studio(num_rows: int = 12, capacity: int = 256) -> Studio:
    """A studio with the small model."""
    return open_studio(*parts(), VAE_TRANSFORM, VIT_TRANSFORM, num_rows=num_rows, capacity=capacity)


def open_studio(
    model: Bagel,
    vae: LatentVAE,
    tokenizer: TextTokenizer,
    vae_transform: ImageTransform,
    vit_transform: ImageTransform,
    *,
    num_rows: int,
    capacity: int,
) -> Studio:
    """A studio with any model, on the CPU."""
    maker = ItemMaker(model.config, tokenizer, vae_transform, vit_transform)
    memory = KVCache(
        model.config.llm,
        num_rows=num_rows,
        capacity=capacity,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return Studio(
        model=model,
        maker=maker,
        cache=memory,
        prefiller=Prefiller(model, vae, memory, maker),
        painter=Painter(model, vae, memory, tokenizer.special),
    )


class Script:
    """Chooses tokens by a script; if a text is None, samples as usual up to a maximum length.

    Args:
        texts: Problem -> its texts, each with the action after it: "draw", "write" or "stop".
        length: Of the texts that the model writes.
    """

    def __init__(
        self, texts: Mapping[str, Sequence[tuple[str | None, str]]], length: int = 6
    ) -> None:
        self._texts, self._length = texts, length
        self.chosen: dict[tuple[str, int], list[int]] = {}

    def __call__(self, logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
        sampled = choose_tokens(logits, choices)
        return [self._next(*pair) for pair in zip(choices, sampled, strict=True)]

    def _next(self, choice: TokenChoice, sampled: int) -> int:
        _, _, tokenizer = parts()
        special = tokenizer.special
        actions = {"draw": special.start_of_image, "write": special.bos}
        text, action = self._texts[choice.uid][choice.step - 1]
        ids = None if text is None else tokenizer.encode(text)
        length = self._length if ids is None else len(ids)
        if choice.index < length:
            token = sampled if ids is None else ids[choice.index]
            token = tokenizer.encode("x")[0] if token == special.eos else token
        else:
            last = actions.get(action, special.end_of_text)
            token = special.eos if choice.index == length else last
        self.chosen.setdefault((choice.uid, choice.step), []).append(token)
        return token


def generator(choose: Any, config: InterleavedConfig | None = None, **options: Any) -> Any:
    """A generator of the small model."""
    settings = {"max_batch_size": 4, "max_context_tokens": 400, **SIZES, **options}
    config = config or InterleavedConfig(drawing=FAST, text=TextConfig(temperature=1.0))
    return InterleavedGenerator(*parts(), config=config, choose=choose, **grouped(settings))


def grouped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as the groups that the generator takes."""
    kinds = {"limits": BatchLimits, "images": ImageOptions}
    return {
        name: kind(**{f.name: settings[f.name] for f in fields(kind) if f.name in settings})
        for name, kind in kinds.items()
    }
