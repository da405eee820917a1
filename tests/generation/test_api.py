"""`generate_responses` and the settings of backends: all keywords in Python, YAML and the tool."""

from dataclasses import fields
from inspect import signature
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from mathcanvas_lightning.cli.main import COMMANDS, run_command
from mathcanvas_lightning.generation.api import (
    BackendOptions,
    DataOptions,
    generate_responses,
)
from mathcanvas_lightning.generation.backends.base import GenerationBackend
from mathcanvas_lightning.generation.backends.server.backend import RetrySettings, ServerBackend
from mathcanvas_lightning.generation.backends.server.client import RetryPolicy
from mathcanvas_lightning.generation.backends.vllm.backend import (
    ResourceLimits,
    ResourceSettings,
    VLLMBackend,
)
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.options import BagelOptions, BagelSettings
from mathcanvas_lightning.generation.bagel.vllm.backend import VLLMBagelBackend
from mathcanvas_lightning.generation.requests import Sampling

SETTINGS: list[tuple[type, type, str]] = [
    (RetrySettings, RetryPolicy, "retries"),
    (ResourceSettings, ResourceLimits, "resources"),
    (BagelSettings, BagelOptions, "settings"),
]


def names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def test_each_option_belongs_to_one_group() -> None:
    parameters = set(signature(generate_responses).parameters)
    sampling = names(Sampling) & parameters
    assert names(DataOptions) | names(BackendOptions) | sampling == parameters
    assert len(names(DataOptions)) + len(names(BackendOptions)) + len(sampling) == len(parameters)


@pytest.mark.parametrize(("settings", "values", "name"), SETTINGS)
def test_flat_settings_and_their_values_have_the_same_names(
    settings: type, values: type, name: str
) -> None:
    assert set(settings.__annotations__) == names(values)


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        (
            ServerBackend,
            {
                "base_url": "http://127.0.0.1:1/v1",
                "model_name": "m",
                "api_key": "k",
                "max_concurrency": 2,
                "max_pending": 3,
                "extra_body": {"top_k": 1},
                "max_retries": 1,
                "timeout_s": 2.0,
                "backoff_s": 0.1,
                "max_backoff_s": 3.0,
            },
        ),
        (
            VLLMBackend,
            {
                "model_path": "m",
                "model_name": "n",
                "tensor_parallel_size": 2,
                "pipeline_parallel_size": 2,
                "max_model_len": 64,
                "dtype": "float32",
                "gpu_memory_utilization": 0.5,
                "max_images": 1,
                "lora_path": "a",
                "engine_options": {"seed": 1},
                "max_pending": 5,
            },
        ),
        (
            BagelBackend,
            {
                "checkpoint": "c",
                "model_name": "n",
                "mode": "image",
                "think": True,
                "drawing": {"num_timesteps": 5},
                "max_steps": 2,
                "max_images": 3,
                "max_batch_size": 4,
                "max_context_tokens": 64,
                "dtype": "float32",
                "weights": "int8",
                "vae_transform": {"max_image_size": 64, "min_image_size": 32},
                "interpolate_positions": True,
                "vit_transform": {"max_image_size": 56, "min_image_size": 28},
            },
        ),
        (
            VLLMBagelBackend,
            {
                "checkpoint": "c",
                "model_name": "n",
                "mode": "image",
                "think": True,
                "drawing": {"num_timesteps": 5},
                "max_steps": 2,
                "max_images": 3,
                "engine": {
                    "tensor_parallel_size": 2,
                    "gpu_memory_utilization": 0.4,
                    "engine_options": {"seed": 1},
                },
                "max_batch_size": 4,
                "max_context_tokens": 64,
                "dtype": "float32",
                "vae_transform": {"max_image_size": 64, "min_image_size": 32},
            },
        ),
    ],
)
def test_all_keywords_are_accepted_in_yaml(backend: type, settings: dict[str, Any]) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(GenerationBackend, "backend")
    path = f"{backend.__module__}.{backend.__name__}"
    config = parser.parse_object({"backend": {"class_path": path, "init_args": settings}})
    found = parser.instantiate(config).backend
    assert isinstance(found, backend)
    assert isinstance(found, GenerationBackend)


@pytest.mark.parametrize(
    ("name", "kind"), [("bagel", BagelBackend), ("vllm_bagel", VLLMBagelBackend)]
)
def test_backends_that_draw(name: Any, kind: type) -> None:
    options = BackendOptions(
        backend=name,
        model_path="folder",
        model_name="mine",
        base_url=None,
        tensor_parallel_size=2,
        max_model_len=600,
    )
    made = options.make_backend()
    assert type(made) is kind
    assert made.model_name == "mine"
    assert made.settings["max_context_tokens"] == 600
    if isinstance(made, VLLMBagelBackend):
        assert made.engine.tensor_parallel_size == 2


def test_defaults_of_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signature(generate_responses).parameters["tensor_parallel_size"].default == 1
    assert COMMANDS["generate-response"].defaults == {"tensor_parallel_size": 4}


def test_the_tool_lists_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("generate-response", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Number of GPUs that share the model. (type: int, default: 4)" in text
