"""Server processes: start, failures, and a stop in all cases."""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError, generate
from mathcanvas_lightning.generation.backends.gpus import CPU_CACHE_BYTES
from mathcanvas_lightning.generation.backends.server import process as server_process
from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
from mathcanvas_lightning.generation.backends.server.process import (
    ServerConfig,
    ServerProcess,
    hold_port,
)
from mathcanvas_lightning.generation.requests import GenerationRequest, Message
from tests.conftest import ROOT, write_json

PROGRAM = str(ROOT / "tests" / "generation" / "misbehaving.py")
COMMAND = [sys.executable, PROGRAM, "--port", "{port}"]


def config(tmp_path: Path, **options: Any) -> ServerConfig:
    return ServerConfig(
        command=COMMAND,
        options={"pids": tmp_path / "pids", **options},
        log_file=str(tmp_path / "logs" / "server.log"),
        start_timeout_s=200,
        stop_timeout_s=1,
    )


def family(tmp_path: Path) -> list[int]:
    """Ids of the server and its child."""
    server, child = (tmp_path / "pids").read_text().split()
    return [int(server), int(child)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: list[int], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def request(uid: str = "hello") -> GenerationRequest:
    return GenerationRequest(uid=uid, messages=(Message(role="user", parts=(uid,)),))


@pytest.mark.slow
@pytest.mark.parametrize("ignore_term", [False, True])
def test_stop_ends_all_processes(tmp_path: Path, ignore_term: bool) -> None:
    server = ServerProcess(config(tmp_path, ignore_term=ignore_term or None))
    with server:
        server.start()  # is running
        pids = family(tmp_path)
        assert all(map(alive, pids))
        backend = ServerBackend(server.base_url)
        assert [response.uid for response in generate(backend, [request()])] == ["hello"]
        backend.close()
        assert all(map(alive, pids))  # a backend with a URL starts and stops no process
    wait_until_gone(pids)  # killed processes need a moment
    server.stop()
    assert (tmp_path / "logs" / "server.log").read_text() == "loading the model\n"


def test_a_backend_stops_its_server(tmp_path: Path) -> None:
    backend = ServerBackend(server=config(tmp_path))
    backend.start()
    backend.start()
    pids = family(tmp_path)
    assert [response.outputs[0].text for response in generate(backend, [request()])] == [
        "re: hello"
    ]
    backend.close()
    wait_until_gone(pids)
    backend.close()


def test_a_server_that_ends_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(BackendError, match="exit code 3") as raised,
        ServerProcess(config(tmp_path, exit_code=3)),
    ):
        pass
    assert "loading the model" in str(raised.value)


def test_the_log_of_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backend = ServerBackend(server=ServerConfig(command=["no-such-program", "{port}"]))
    words = "No such file or directory: 'no-such-program'"
    with pytest.raises(BackendError, match=words) as raised:
        backend.start()
    (log,) = tmp_path.glob("mathcanvas-server-*.log")
    assert str(log) in str(raised.value)
    assert words in log.read_text()


@pytest.mark.slow
def test_a_server_that_never_becomes_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits() -> bool:
        return any("waiting" in line and "loading the model" in line for line in caplog.messages)

    def now() -> float:  # jumps as soon as all has been seen
        pids = tmp_path / "pids"
        seen = waits() and pids.is_file() and len(pids.read_text().split()) == 2
        return time.monotonic() + 1000 * seen

    clock = SimpleNamespace(monotonic=now, sleep=time.sleep)
    monkeypatch.setattr(server_process, "time", clock)
    monkeypatch.setattr(server_process, "PROGRESS_S", 0.1)
    slow = config(tmp_path, never_ready=True)
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(BackendError, match="not ready after 200 s"),
        ServerProcess(slow),
    ):
        pass
    wait_until_gone(family(tmp_path))
    assert waits()


@pytest.mark.slow
def test_a_server_that_dies_ends_the_run(tmp_path: Path) -> None:
    backend = ServerBackend(server=config(tmp_path, exit_when=tmp_path / "exit"))
    backend.start()
    pids = family(tmp_path)
    assert list(generate(backend, [request()]))
    (tmp_path / "exit").touch()
    with pytest.raises(BackendError, match="out of memory"):
        for number in range(1_000_000):
            list(generate(backend, [request(str(number))]))
    backend.close()
    wait_until_gone(pids)  # its child too


def test_a_killed_launcher_leaves_no_server(tmp_path: Path) -> None:
    with ServerProcess(config(tmp_path)) as server:
        pids = family(tmp_path)
        os.kill(os.getpgid(pids[0]), signal.SIGKILL)
        wait_until_gone([os.getpgid(pids[0])])
        with pytest.raises(BackendError, match="exit code -9"):
            server.check()
        assert all(map(alive, pids))
    wait_until_gone(pids)


SCRIPT = """
import sys, time
from mathcanvas_lightning.generation.backends.server.process import ServerConfig, ServerProcess
server = ServerProcess(ServerConfig(command=sys.argv[2:], stop_timeout_s=1))
server.start()
if sys.argv[1] == "wait":
    print("ready", flush=True)
    time.sleep(600)
"""


def start_script(tmp_path: Path, deed: str, *options: str) -> "subprocess.Popen[str]":
    command = [*COMMAND, "--pids", str(tmp_path / "pids"), *options]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, deed, *command],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--ignore-term",)])
def test_a_killed_process_leaves_no_server(tmp_path: Path, options: tuple[str, ...]) -> None:
    with start_script(tmp_path, "wait", *options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pids = family(tmp_path)
        assert all(map(alive, pids))
        process.send_signal(signal.SIGKILL)
    wait_until_gone(pids)


@pytest.mark.slow
def test_a_process_without_stop_leaves_no_server(tmp_path: Path) -> None:
    with start_script(tmp_path, "end") as process:
        assert process.wait(300) == 0
    wait_until_gone(family(tmp_path))
    assert not list(tmp_path.glob("mathcanvas-server-*"))


@pytest.mark.slow
def test_a_fork_does_not_stop_the_server(tmp_path: Path) -> None:
    with ServerProcess(config(tmp_path)) as server:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.5)
        assert all(map(alive, family(tmp_path)))


def test_options_become_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "distributions", lambda **_: [])
    made = ServerConfig(
        model_path="some model",
        options={
            "max_model_len": 512,
            "enforce-eager": True,
            "enable-prefix-caching": False,
            "seed": None,
            "limit-mm-per-prompt": {"image": 4},
            "lora-modules": ["a=b", "c=d"],
        },
    )
    words = made.arguments(8123)
    assert words[0] == sys.executable
    assert words[words.index("--model") + 1] == "some model"
    assert words[words.index("--port") + 1] == "8123"
    assert words[-9:] == [
        *("--max-model-len", "512", "--enforce-eager", "--no-enable-prefix-caching"),
        *("--limit-mm-per-prompt", '{"image": 4}', "--lora-modules", "a=b", "c=d"),
    ]
    other = ServerConfig(command=["serve", "--json={}", "--at={port}"], options={"x": 1})
    assert other.arguments(5) == ["serve", "--json={}", "--at=5", "--x", "1"]
    monkeypatch.setenv("HOME", "/home/me")
    words = ServerConfig(model_path="~/model").arguments(8123)
    assert words[words.index("--model") + 1] == "/home/me/model"


def test_options_of_bagel(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bagel"})
    words = ServerConfig(model_path=str(tmp_path)).arguments(80)
    assert words[words.index("--hf-overrides") + 1] == '{"architectures": ["MathCanvasBagel"]}'
    assert Path(words[words.index("--chat-template") + 1]).is_file()
    own = ServerConfig(model_path=str(tmp_path), options={"hf_overrides": {}}).arguments(80)
    assert own[own.index("--hf-overrides") + 1] == "{}"
    assert "--chat-template" not in own
    assert "--hf-overrides" not in ServerConfig(model_path="some/model").arguments(80)


def test_vllm_options_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "distributions", lambda **_: [object()])
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    words = ServerConfig(model_path="m", options={"seed": 1}).arguments(80)
    assert "--enforce-eager" in words
    assert int(words[words.index("--kv-cache-memory-bytes") + 1]) == CPU_CACHE_BYTES
    arguments = ServerConfig(
        model_path="m", options={"enforce_eager": False}, env={"VLLM_CPU_KVCACHE_SPACE": "1"}
    ).arguments(80)
    assert arguments[-1] == "--no-enforce-eager"
    assert "--kv-cache-memory-bytes" not in arguments
    assert "--enforce-eager" not in ServerConfig(command=["serve", "{port}"]).arguments(80)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "model_path"),
        ({"command": ["serve"]}, "port"),
        ({"command": ["serve", "{model_path}", "{port}"]}, "model_path"),
        ({"model_path": "m", "start_timeout_s": 0}, "start_timeout_s"),
        ({"model_path": "m", "stop_timeout_s": -1}, "stop_timeout_s"),
        ({"model_path": "m", "num_gpus": -1}, r"server\.num_gpus"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerConfig(**options)


@pytest.mark.parametrize(
    ("num_gpus", "rank", "visible", "wanted"),
    [(None, 0, "0,1", "0,1"), (1, 1, "4,6", "6"), (2, 1, "4,5,6,7", "6,7"), (0, 1, "4,5", "")],
)
def test_each_server_gets_its_gpus(
    num_gpus: int | None,
    rank: int,
    visible: str,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen = "import os, sys; sys.exit('sees ' + os.environ['CUDA_VISIBLE_DEVICES'] + '.')"
    tell = ServerConfig(
        command=[sys.executable, "-c", seen, "{port}"],
        num_gpus=num_gpus,
        log_file=str(tmp_path / "server.log"),
    )
    server = ServerProcess(tell, local_rank=rank)
    with pytest.raises(BackendError, match=rf"sees {wanted}\.$"):
        server.start()


def test_num_gpus_is_required_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match="num_gpus"):
        ServerProcess(ServerConfig(model_path="m"), local_rank=1)
    with pytest.raises(BackendError, match=r"found 2 visible GPUs; wanted 3: .*num_gpus"):
        ServerProcess(ServerConfig(model_path="m", num_gpus=1), local_rank=2)
    one = {"CUDA_VISIBLE_DEVICES": "1"}  # the variables of the server count
    with pytest.raises(BackendError, match="found 1 visible GPUs"):
        ServerProcess(ServerConfig(model_path="m", num_gpus=2, env=one))
    ServerProcess(ServerConfig(model_path="m", env={"CUDA_VISIBLE_DEVICES": ""}), local_rank=1)


def test_a_reserved_port_is_not_reused() -> None:
    with hold_port() as held, socket.socket() as other, socket.socket() as server:
        address = held.getsockname()
        with pytest.raises(OSError, match="in use"):
            other.bind(address)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()
        socket.create_connection(address).close()


def test_the_port_is_reserved_for_the_server(tmp_path: Path) -> None:
    grab = "import socket, sys; socket.socket().bind(('127.0.0.1', int(sys.argv[1])))"
    other = ServerConfig(
        command=[sys.executable, "-c", grab, "{port}"], log_file=str(tmp_path / "server.log")
    )
    server = ServerProcess(other)
    with pytest.raises(BackendError, match="in use"):
        server.start()
    with socket.socket() as another:  # it gets the port later
        another.bind(("127.0.0.1", urlsplit(server.base_url).port))


def test_each_process_has_a_log(tmp_path: Path) -> None:
    with ServerProcess(config(tmp_path), local_rank=2):
        assert (tmp_path / "logs" / "server.log.2").is_file()
