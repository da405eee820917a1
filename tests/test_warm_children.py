"""Warm processes are children like cold ones: streams, files, groups, signals, own children."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.warm_children import start_nursery

ABOUT = """
import json, os, sys
print(json.dumps({
    "warm": "colorsys" in sys.modules, "argv": sys.argv, "path": sys.path[:2], "cwd": os.getcwd(),
    "parent": os.getppid(), "leads": os.getsid(0) == os.getpid(), "env": dict(os.environ),
}))
"""


@pytest.fixture(scope="module", autouse=True)
def _nursery() -> Iterator[None]:
    with start_nursery(["colorsys"]) as nursery, nursery.used():
        yield


def about(*words: str, **options: Any) -> dict[str, Any]:
    """What a process finds."""
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=True, **options
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_runs_as_a_cold_process_but_has_imported(tmp_path: Path) -> None:
    env = {"COLOUR": "é=1", "PYTHONPATH": str(tmp_path)}
    found = about("-c", ABOUT, "a", "b", cwd=tmp_path, env=env, start_new_session=True)
    assert found["warm"]
    assert found["leads"]
    assert found["parent"] == os.getpid()
    assert found["cwd"] == str(tmp_path)
    assert found["argv"] == ["-c", "a", "b"]
    assert found["path"] == ["", str(tmp_path)]
    assert found["env"] == env
    script = tmp_path / "script.py"
    script.write_text(ABOUT)
    found = about(str(script), "x", cwd="/")
    assert (found["argv"], found["path"][0]) == ([str(script), "x"], str(tmp_path))
    assert not found["leads"]
    found = about("-P", "-m", "script", cwd="/", env=env)
    assert (found["argv"], found["path"][0]) == ([str(script)], str(tmp_path))
    assert not about("-I", "-c", ABOUT)["warm"]


def test_streams_files_and_the_exit_status() -> None:
    code = "import os, sys; os.write(int(sys.argv[1]), sys.stdin.buffer.read()); sys.exit('bad')"
    read, write = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code, str(write)],
        input="hello",
        pass_fds=[write],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    os.close(write)
    assert os.read(read, 9) == b"hello"
    assert os.read(read, 9) == b""  # nobody else holds the other end
    os.close(read)
    assert (done.returncode, done.stdout) == (1, "bad\n")


def test_signals_end_a_process_and_its_group() -> None:
    """The second process is a child of the first, in its group."""
    inner = "import sys; print('ready', flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", outer],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout.read() == b""  # both have ended
    assert process.returncode == -signal.SIGTERM


def test_processes_of_multiprocessing_are_warm() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=tell, args=(results,))
    process.start()
    assert results.get() == (process.pid, os.getpid(), True)
    process.join()
    assert process.exitcode == 0


def tell(results: Any) -> None:
    """Sends what it is."""
    results.put((os.getpid(), os.getppid(), "colorsys" in sys.modules))
