"""Kills jobs in the middle or again and again at random times, for tests that they resume.

MATHCANVAS_KILLS sets the number of kills of each such test.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import folder_bytes
from tests.ranks import new_process

NUM_KILLS = int(os.environ.get("MATHCANVAS_KILLS", "3"))


def kill_in_the_middle(
    command: list[str],
    output: Path,
    *,
    is_far: Callable[[], object],
    is_finished: Callable[[], bool],
    **options: Any,
) -> None:
    """Runs a command and kills it in the middle; a command that ends too early starts anew.

    Args:
        command: Program and arguments.
        output: Folder in which it writes; removed before it starts anew.
        is_far: Whether the command has come far enough to be killed.
        is_finished: Whether it has come too far.
        options: Options of the process.
    """
    for _ in range(20):
        process = subprocess.Popen(command, **options)
        family = []
        while process.poll() is None and not is_far():
            time.sleep(0.002)
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        assert not psutil.wait_procs(family, timeout=240)[1]
        if not is_finished():
            return
        shutil.rmtree(output)
    raise AssertionError(f"always finished before it was killed: {command}")


def kill_and_resume(
    job: Callable[..., Any], arguments: tuple[Any, ...], output: Path, *, seed: int = 0
) -> tuple[dict[str, bytes], int]:
    """Runs a job in processes that are killed at random times, until all kills have happened.

    The job writes to a folder and resumes there. After each completed run the folder is compared
    with that of the first, uninterrupted run, and the job starts anew.

    Args:
        job: Importable function; its last argument is the folder.
        arguments: Its other arguments.
        output: The folder.
        seed: Seed of the times.

    Returns:
        Files of an uninterrupted run, and the number of kills.
    """
    times = random.Random(seed)
    _run(job, (*arguments, output), None)  # starts the server
    shutil.rmtree(output)
    started = time.monotonic()
    _run(job, (*arguments, output), None)
    longest_s = time.monotonic() - started
    straight = _files(output)
    kills = 0
    while kills < NUM_KILLS:
        shutil.rmtree(output)
        for _ in range(NUM_KILLS):
            if not _run(job, (*arguments, output), times.uniform(0, longest_s)):
                break
            kills += 1
            for name, content in _files(output).items():
                assert content == straight.get(name, content), f"{name} is damaged by kill {kills}"
        else:
            _run(job, (*arguments, output), None)
        assert _files(output) == straight, f"after {kills} kills"
    return straight, kills


def _run(job: Callable[..., Any], arguments: tuple[Any, ...], kill_after_s: float | None) -> bool:
    """Whether the job was killed before its end."""
    process = new_process(job, *arguments)
    process.start()
    process.join(kill_after_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        if process.exitcode == -9:
            return True
    assert process.exitcode == 0
    return False


def _files(folder: Path) -> dict[str, bytes]:
    """Finished files: neither locks nor temporary files."""
    if not folder.exists():
        return {}
    found = folder_bytes(folder).items()
    return {name: data for name, data in found if not Path(name).name.startswith(".")}
