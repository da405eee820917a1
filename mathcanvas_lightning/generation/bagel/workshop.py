"""A loaded model with its KV cache, and everything that reads into the cache and draws from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.generation.bagel.contexts import ItemMaker, Prefiller
from mathcanvas_lightning.generation.bagel.image_steps import Painter
from mathcanvas_lightning.generation.bagel.kv_cache import KVCache, plan_batch_size, token_bytes
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import LatentVAE

DEFAULT_MAX_CONTEXT = 16_384
MEMORY_SHARE = 0.8
"""Share of the free memory that contexts may use, if no amount is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """A model, the contexts of a fixed number of problems, and the steps of the computation."""

    model: Bagel
    maker: ItemMaker
    cache: KVCache
    num_contexts: int
    """Number of contexts of each problem, as the guidance needs."""
    prefiller: Prefiller
    painter: Painter

    @property
    def num_problems(self) -> int:
        """Number of problems whose contexts fit into the cache."""
        return self.cache.num_rows // self.num_contexts

    def rows(self, slot: int, count: int) -> range:
        """Rows of the cache for a problem; they are cleared.

        Args:
            slot: Number of the problem, below `num_problems`.
            count: Number of contexts that it needs.
        """
        first = slot * self.num_contexts
        rows = range(first, first + count)
        for row in rows:
            self.cache.clear(row)
        return rows


def open_workshop(
    model: Bagel,
    vae: LatentVAE,
    tokenizer: TextTokenizer,
    *,
    num_contexts: int,
    limits: BatchLimits,
    images: ImageOptions,
) -> Workshop:
    """Allocates the contexts of as many problems as memory allows.

    Args:
        model: BAGEL, on its device and in its dtype.
        vae: Autoencoder of the model, on the same device.
        tokenizer: Tokenizer of the model.
        num_contexts: Number of contexts of each problem.
        limits: Number of problems, and memory.
        images: How images become tokens.

    Raises:
        ConfigError: If the contexts of one problem do not fit into memory.
    """
    maker = item_maker(model.config, tokenizer, images)
    cache = _make_cache(model, num_contexts, limits)
    return Workshop(
        model=model,
        maker=maker,
        cache=cache,
        num_contexts=num_contexts,
        prefiller=Prefiller(model, vae, cache, maker),
        painter=Painter(
            model,
            vae,
            cache,
            tokenizer.special,
            interpolate_positions=images.interpolate_positions,
        ),
    )


def item_maker(config: BagelConfig, tokenizer: TextTokenizer, images: ImageOptions) -> ItemMaker:
    """Makes items with the given image options, or BAGEL's.

    Args:
        config: Sizes of the model.
        tokenizer: Tokenizer of the model.
        images: How images become tokens.
    """
    return ItemMaker(
        config,
        tokenizer,
        images.vae_transform or ImageTransform(),
        images.vit_transform or ImageTransform(image_stride=config.vit.patch_size),
        interpolate_positions=images.interpolate_positions,
    )


def context_capacity(config: BagelConfig, limits: BatchLimits) -> int:
    """Maximum length of a context, in tokens.

    Args:
        config: Sizes of the model.
        limits: Its `max_context_tokens` wins.
    """
    longest = min(config.llm.max_position_embeddings, DEFAULT_MAX_CONTEXT)
    return limits.max_context_tokens or longest


def _make_cache(model: Bagel, num_contexts: int, limits: BatchLimits) -> KVCache:
    llm, weight = model.config.llm, model.language_model.model.embed_tokens.weight
    capacity = context_capacity(model.config, limits)
    problem_bytes = num_contexts * capacity * token_bytes(llm, weight.dtype)
    memory_bytes = limits.memory_bytes
    if memory_bytes is None:
        memory_bytes = int(free_bytes(weight.device) * MEMORY_SHARE)
    num_problems = plan_batch_size(problem_bytes, memory_bytes, limits.max_batch_size)
    return KVCache(
        llm,
        num_rows=num_problems * num_contexts,
        capacity=capacity,
        dtype=weight.dtype,
        device=weight.device,
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, including what PyTorch has reserved but does not use."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        unused: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    available: int = psutil.virtual_memory().available
    return available


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Undoes the Trainer's default dtype and autocast, so that only the model's dtypes count."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)
