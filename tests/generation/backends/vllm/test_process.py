"""The child process: messages arrive, and it never outlives its parent."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from mathcanvas_lightning.generation.backends.vllm import process as engine_process
from mathcanvas_lightning.generation.backends.vllm.process import EngineProcess, ProcessEndedError
from tests.conftest import ROOT, lasting_processes, run_python

CHILDREN = "tests.generation.backends.vllm.children"


@pytest.fixture
def echoing(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProcess]:
    monkeypatch.setattr(engine_process, "GRACE_S", 200.0)  # it ends by itself, however slowly
    process = EngineProcess(f"{CHILDREN}:echo", os.environ)
    yield process
    process.close()


def gone(*pids: int) -> bool:
    """Whether processes end within two minutes; killed ones need a moment."""
    deadline = time.monotonic() + 120
    while any(psutil.pid_exists(p) and _status(p) != psutil.STATUS_ZOMBIE for p in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def test_objects_come_back_in_order(
    echoing: EngineProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger=engine_process.__name__)
    sent = [{"n": n, "data": bytes(100_000)} for n in range(20)]
    for message in sent[:2]:
        echoing.send(message)
    assert [echoing.receive() for _ in range(2)] == sent[:2]
    assert not echoing.has_message
    assert echoing.status is None
    echoing.close()
    assert echoing.status == 0
    assert echoing.lines == ("echo runs",)
    assert "echo runs" in caplog.text
    with pytest.raises(ProcessEndedError):
        echoing.send("more")
    with pytest.raises(ProcessEndedError):
        echoing.receive()
    assert echoing.has_message  # receive would raise at once


def test_the_environment_is_passed_on() -> None:
    process = EngineProcess(f"{CHILDREN}:variables", {"PATH": os.environ["PATH"], "COLOUR": "red"})
    environment = process.receive()
    process.close()
    assert environment["COLOUR"] == "red"
    assert "HOME" not in environment


def test_close_ends_all_descendants(echoing: EngineProcess) -> None:
    echoing.send("fork")
    below = echoing.receive()
    assert psutil.pid_exists(below)
    echoing.close()
    echoing.close()
    assert gone(echoing.pid, below)
    assert not lasting_processes()


@pytest.mark.slow
def test_a_process_that_ignores_the_pipe_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "GRACE_S", 0.5)
    process = EngineProcess(f"{CHILDREN}:stubborn", os.environ)
    below = process.receive()
    process.close()
    assert process.status == -signal.SIGKILL
    assert gone(process.pid, below)


def test_a_dead_process_takes_its_descendants_along(echoing: EngineProcess) -> None:
    echoing.send("fork")
    below = echoing.receive()
    echoing.send("die")
    with pytest.raises(ProcessEndedError):
        echoing.receive()
    assert gone(echoing.pid, below)


LEAVER = f"""
import os, sys
from mathcanvas_lightning.generation.backends.vllm.process import EngineProcess
process = EngineProcess("{CHILDREN}:echo", os.environ)
process.send("fork")
print(process.pid, process.receive(), flush=True)
"""


@pytest.mark.parametrize(
    "last",
    [
        "",
        pytest.param("del process", marks=pytest.mark.slow),
        pytest.param("if os.fork(): 1", marks=pytest.mark.slow),
        "raise SystemExit(3)",
    ],
)
def test_an_unclosed_process_ends_too(last: str) -> None:
    done = run_python("-W", "ignore", "-c", LEAVER + last, timeout=300)
    assert done.returncode == (3 if "3" in last else 0), done.stderr
    assert gone(*map(int, done.stdout.split()))


FORKED = """
import signal, time
if os.fork() == 0:
    time.sleep(600)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_forked_copy_of_a_killed_process_keeps_nothing_alive() -> None:
    short = "from mathcanvas_lightning.generation.backends.vllm import process; process.GRACE_S = 1"
    command = [sys.executable, "-W", "ignore", "-c", short + LEAVER + FORKED]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        below = [int(word) for word in process.stdout.readline().split()]
        try:
            process.wait(300)
            assert len(below) == 2
            assert gone(*below)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the copy


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12, of threads
def test_a_forked_copy_does_not_end_it(echoing: EngineProcess) -> None:
    child = os.fork()
    if child == 0:
        echoing.close()
        os._exit(0)
    os.waitpid(child, 0)
    echoing.send("still there")
    assert echoing.receive() == "still there"
