"""How much memory the two sides hold, in words."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mathcanvas_lightning.generation.backends.gpus import CPU_CACHE_BYTES
from mathcanvas_lightning.generation.bagel.workshop import Workshop
from mathcanvas_lightning.model.checkpoint import WeightFiles

MIB, GIB = 2**20, 2**30
NOT_IN_ENGINE = ("llm2vae.",)
"""First parts of the names of weights that the engine skips."""


def engine_memory(
    weights: WeightFiles, dtype: torch.dtype, options: Mapping[str, Any], gpu_share: float
) -> str:
    """Memory of vLLM.

    Args:
        weights: Weights of the checkpoint.
        dtype: Precision of the engine.
        options: Options of the engine.
        gpu_share: Share of each GPU's memory that vLLM may use.
    """
    sizes = (
        torch.Size(shape).numel()
        for name, shape in weights.shapes.items()
        if not name.startswith(NOT_IN_ENGINE)
    )
    text = f"vLLM: {_amount(sum(sizes), dtype)}"
    if torch.cuda.is_available() and "kv_cache_memory_bytes" not in options:
        return f"{text}, and a KV cache; together at most {gpu_share:.0%} of each of its GPUs"
    cache = options.get("kv_cache_memory_bytes", CPU_CACHE_BYTES)
    if "kv_cache_memory_bytes" not in options and "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        cache = int(float(os.environ["VLLM_CPU_KVCACHE_SPACE"]) * GIB)
    return f"{text}, and a KV cache of {_size(cache)}"


def drawer_memory(vae: nn.Module, workshop: Workshop) -> str:
    """Memory of the drawer.

    Args:
        vae: The autoencoder.
        workshop: Model and contexts.
    """
    cache, modules = workshop.cache, (workshop.model, vae)
    number = sum(parameter.numel() for one in modules for parameter in one.parameters())
    contexts = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    return (
        f"the drawer: {_amount(number, cache.keys[0].dtype)}, which are all but the text head "
        "(texts of a context need the understanding expert too), and the contexts of "
        f"{workshop.num_problems} problems, {_size(contexts)}, on {cache.device}"
    )


def _amount(number: int, dtype: torch.dtype) -> str:
    return f"{number / 1e6:,.1f} million parameters, {_size(number * dtype.itemsize)}"


def _size(num_bytes: int) -> str:
    is_large = num_bytes >= GIB
    return f"{num_bytes / GIB:.1f} GiB" if is_large else f"{num_bytes / MIB:.0f} MiB"
