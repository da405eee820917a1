"""Ranks: no other program gets their port, and one that fails or hangs is shown."""

import faulthandler
import multiprocessing
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import ranks as ranks_module
from tests.ranks import (
    GlooCrashError,
    again_after_a_crash,
    reserved_port,
    run_ranks,
    wait_for_ranks,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
READY = b"ready\n"


def rank(log: Path, status: int | None) -> None:
    """Ends with a status, or hangs."""
    with log.open("wb", buffering=0) as file:
        faulthandler.disable()  # Lightning has restored older handlers after a run in this process
        faulthandler.enable(file)
        file.write(READY)
        if status is not None:
            file.write(b"no more memory\n")
            os._exit(status)
        time.sleep(600)


def start(folder: Path, *statuses: int | None) -> list[tuple[Any, Path]]:
    context = multiprocessing.get_context("fork")
    logs = [folder / f"{number}.txt" for number in range(len(statuses))]
    made = [context.Process(target=rank, args=pair) for pair in zip(logs, statuses, strict=True)]
    for process, log in zip(made, logs, strict=True):
        process.start()
        while not (log.is_file() and log.read_bytes().startswith(READY)):
            time.sleep(0.01)
    return list(zip(made, logs, strict=True))


def test_equal_statuses_are_fine(tmp_path: Path) -> None:
    wait_for_ranks(start(tmp_path, 3, 3), status=3)


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    ranks = start(tmp_path, None, 1)
    with pytest.raises(AssertionError, match="no more memory"):
        wait_for_ranks(ranks)
    assert [process.exitcode for process, _ in ranks] == [-9, 1]


def test_a_rank_that_hangs_shows_where(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"hung(.|\n)*test_ranks\.py.* in rank"):
        wait_for_ranks(start(tmp_path, None, 0), timeout_s=1)


def test_a_crash_of_gloo_repeats_a_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def crash(ranks: int, folder: Path, *_: Any) -> None:
        assert not list(folder.iterdir())
        (folder / "rank0.txt").touch()
        tries.append(ranks)
        if len(tries) == 1:
            raise GlooCrashError

    monkeypatch.setattr(ranks_module, "_run_ranks", crash)
    run_ranks(2, tmp_path, print)
    assert tries == [2, 2]


@pytest.mark.parametrize(("crashed", "num_runs"), [(True, 2), (False, 1)])
def test_a_crash_of_gloo_repeats_commands_once(
    crashed: bool, num_runs: int, tmp_path: Path
) -> None:
    runs: list[bool] = []
    crash = "double free or corruption\n line 142 in wait_tensor" if crashed else "no more memory"

    def run() -> list[subprocess.CompletedProcess[str]]:
        runs.append((tmp_path / "run").exists())
        (tmp_path / "run").mkdir(exist_ok=True)
        return [subprocess.CompletedProcess([], status, "", crash) for status in (1, -6)]

    assert [one.returncode for one in again_after_a_crash(run, tmp_path / "run")] == [1, -6]
    assert runs == [False] * num_runs


def test_only_a_crash_of_gloo_is_one(tmp_path: Path) -> None:
    crash = "double free or corruption (fasttop)\nFatal Python error: Aborted\n"
    assert GlooCrashError.is_in(f'{crash}  File "f.py", line 142 in wait_tensor\n')
    assert not GlooCrashError.is_in(crash)
    assert not GlooCrashError.is_in("Fatal Python error: Aborted\n  line 142 in wait_tensor\n")


def test_a_reserved_port_is_for_one_listener() -> None:
    port = reserved_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", port))
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen()
        socket.create_connection(("127.0.0.1", port)).close()
