"""A loaded model with its KV cache, and everything that reads into the cache and draws from it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.generation.bagel.contexts import ItemMaker, Prefiller
from mathcanvas_lightning.generation.bagel.image_steps import Painter
from mathcanvas_lightning.generation.bagel.kv_cache import KVCache, plan_batch_size, token_bytes
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.quantized import WeightKind
from mathcanvas_lightning.model.vae import LatentVAE

logger = logging.getLogger(__name__)

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
    dtype: torch.dtype | None = None,
) -> Workshop:
    """Allocates the contexts of as many problems as memory allows.

    Args:
        model: BAGEL, on its device and in its dtype.
        vae: Autoencoder of the model, on the same device.
        tokenizer: Tokenizer of the model.
        num_contexts: Number of contexts of each problem.
        limits: Number of problems, and memory.
        images: How images become tokens.
        dtype: Data type of keys and values; None takes that of the weights.

    Raises:
        ConfigError: If the contexts of one problem do not fit into memory.
    """
    maker = item_maker(model.config, tokenizer, images)
    cache = _make_cache(model, num_contexts, limits, dtype)
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
            interpolate_positions=maker.interpolate_positions,
        ),
    )


def load_parts(
    checkpoint: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    size_px: tuple[int, int] | None,
    text_head: bool = True,
    quantized: WeightKind | None = None,
) -> tuple[Bagel, LatentVAE, TextTokenizer]:
    """Loads model, autoencoder and tokenizer of a checkpoint.

    Args:
        checkpoint: Directory in the layout of BAGEL-7B-MoT.
        dtype: Type of the weights.
        device: Device of the weights.
        size_px: Width and height of the drawings, if they are set; logs a warning if the model was
            trained to draw in another size.
        text_head: Whether the model can write, see `Bagel.from_checkpoint`.
        quantized: How the linear layers are stored, see `Bagel.from_checkpoint`.
    """
    options: Any = {"dtype": dtype, "device": device}
    model = Bagel.from_checkpoint(checkpoint, text_head=text_head, quantized=quantized, **options)
    trained = model.config.drawing_size
    if size_px is not None and trained is not None and tuple(size_px) != tuple(trained):
        logger.warning(
            "drawing.size is %d x %d pixels, but the model was trained to draw %d x %d; remove "
            "drawing.size to use the trained size",
            *size_px,
            *trained,
        )
    model.attention_path = "sdpa"  # image sizes vary, so compiled kernels would not be reused
    vae = LatentVAE.from_checkpoint(checkpoint, model.config.vae, **options)
    return model.eval(), vae, TextTokenizer(checkpoint)


def item_maker(config: BagelConfig, tokenizer: TextTokenizer, images: ImageOptions) -> ItemMaker:
    """Makes items with the given image options, or those of the training.

    Args:
        config: Sizes of the model.
        tokenizer: Tokenizer of the model.
        images: How images become tokens.
    """
    used = images.completed(config)
    return ItemMaker(
        config,
        tokenizer,
        used.vae_transform,
        used.vit_transform,
        interpolate_positions=used.interpolate_positions,
    )


def context_capacity(config: BagelConfig, limits: BatchLimits) -> int:
    """Maximum length of a context, in tokens.

    Args:
        config: Sizes of the model.
        limits: Its `max_context_tokens` wins.
    """
    longest = min(config.llm.max_position_embeddings, DEFAULT_MAX_CONTEXT)
    return limits.max_context_tokens or longest


def _make_cache(
    model: Bagel, num_contexts: int, limits: BatchLimits, dtype: torch.dtype | None
) -> KVCache:
    llm, weight = model.config.llm, model.language_model.model.embed_tokens.weight
    dtype = dtype or weight.dtype
    capacity = context_capacity(model.config, limits)
    problem_bytes = num_contexts * capacity * token_bytes(llm, dtype)
    memory_bytes = limits.memory_bytes
    if memory_bytes is None:
        memory_bytes = int(free_bytes(weight.device) * MEMORY_SHARE)
    num_problems = plan_batch_size(problem_bytes, memory_bytes, limits.max_batch_size)
    return KVCache(
        llm,
        num_rows=num_problems * num_contexts,
        capacity=capacity,
        dtype=dtype,
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
def own_precision(device: torch.device, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Undoes the Trainer's default dtype and autocast.

    Args:
        device: Device of the computation.
        autocast: Type to compute in; None computes in the type of the weights.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            yield
    finally:
        torch.set_default_dtype(default)
