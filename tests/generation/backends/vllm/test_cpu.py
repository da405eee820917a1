"""Defaults of the engine without a GPU."""

import json
from pathlib import Path

import pytest

from mathcanvas_lightning.generation.backends.gpus import CPU_CACHE_BYTES
from mathcanvas_lightning.generation.backends.vllm.cpu import cpu_arguments


def test_what_is_set_stays() -> None:
    given = {"model": "hub/name", "enforce_eager": False, "kv_cache_memory_bytes": 7}
    assert cpu_arguments(given, {}) == given
    chosen = cpu_arguments({"model": "hub/name"}, {})
    assert chosen["enforce_eager"]
    assert chosen["kv_cache_memory_bytes"] == CPU_CACHE_BYTES
    sized = cpu_arguments({"model": "hub/name"}, {"VLLM_CPU_KVCACHE_SPACE": "1"})
    assert "kv_cache_memory_bytes" not in sized


@pytest.mark.parametrize(
    ("config", "dtype", "chosen"),
    [
        ({"dtype": "float32"}, "auto", "float32"),
        ({"torch_dtype": "float32"}, "auto", "float32"),  # as older checkpoints name it
        ({"dtype": "float32"}, "bfloat16", "bfloat16"),
        ({"dtype": "bfloat16"}, "auto", "auto"),
        ({}, "auto", "auto"),
        ([], "auto", "auto"),
    ],
)
def test_float32_weights_stay_in_float32(
    tmp_path: Path, config: object, dtype: str, chosen: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = {"model": str(tmp_path), "dtype": dtype}
    assert cpu_arguments(arguments, {})["dtype"] == chosen
