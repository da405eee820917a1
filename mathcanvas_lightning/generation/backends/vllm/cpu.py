"""What vLLM's engine gets by default without a GPU."""

import json
from collections.abc import Mapping
from typing import Any

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.generation.backends.gpus import CPU_CACHE_BYTES


def cpu_arguments(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The engine's arguments without a GPU: eager, a small KV cache, float32 weights in float32.

    By default vLLM rounds float32 weights to bfloat16, which most processors compute more slowly.

    Args:
        arguments: Arguments of `vllm.LLM`; what they set stays.
        environment: Environment variables; vLLM reads the size of the cache from one of them.
    """
    defaults: dict[str, Any] = {"enforce_eager": True}
    if "VLLM_CPU_KVCACHE_SPACE" not in environment:
        defaults["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
    chosen = defaults | dict(arguments)
    if chosen.get("dtype", "auto") == "auto" and _stored_dtype(chosen["model"]) == "float32":
        chosen["dtype"] = "float32"
    return chosen


def _stored_dtype(model: str) -> str | None:
    """Type of the weights in a model's folder, as its configuration names it."""
    try:
        config = json.loads((local_path(model) / "config.json").read_text())
    except (OSError, ValueError):  # a hub name, or a fault that vLLM reports
        return None
    return config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
