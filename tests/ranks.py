"""Processes of tests, and ranks that communicate over gloo.

Importing takes seconds, so it is done once, in a server from which all others are forked.
"""

import faulthandler
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from tests.warm import LATER, last_words

IMPORTED = [
    "mathcanvas_lightning.cli.fit",
    "mathcanvas_lightning.conversion.convert",
    "mathcanvas_lightning.data.index.index",
    "tests.training.launch",
    *LATER,
    "tests.freeze",
]
TIMEOUT_S = 450
"""Time after which ranks count as hanging; less than a test has, which would not show where."""


class GlooCrashError(AssertionError):
    """A rank was aborted while it waited for a collective, as memory was freed twice.

    Seen once in about a hundred starts of two ranks with PyTorch 2.13 on CPUs, and not again when
    the same test ran 59 times. The stack ends in PyTorch's `wait_tensor`; the cause is unknown. A
    run that has just begun may be repeated once.
    """

    @staticmethod
    def is_in(output: str) -> bool:
        """Whether a rank has ended in this way."""
        return "double free or corruption" in output and " in wait_tensor" in output


def new_process(work: Callable[..., object], *arguments: object) -> Any:
    """A process that calls a function; it imports nothing but the function's module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)  # there is one server; `fit` may have set other ones
    return context.Process(target=work, args=arguments)


_holders: list[socket.socket] = []


def reserved_port() -> int:
    """A port on which one process can listen; no other program gets it while this process lives."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the listener does
    _holders.append(holder)
    port: int = holder.getsockname()[1]
    return port


def become_rank(rank: int, ranks: int, port: int, log: Path) -> None:
    """Makes this process a rank, with its own session, whose output goes to a file."""
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
        os.dup2(file.fileno(), sys.stdout.fileno())
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "GROUP_RANK": 0,
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ.update({name: str(value) for name, value in environment.items()})
    faulthandler.enable()
    torch.set_num_threads(1)


def wait_for_ranks(
    ranks: Sequence[tuple[Any, Path]], status: int = 0, timeout_s: float = TIMEOUT_S
) -> None:
    """Waits for processes; kills all of them if one fails or hangs.

    Args:
        ranks: Processes, each with the file of its output.
        status: The exit status that each one must have.
        timeout_s: Time after which they count as hanging.
    """
    running = {process.sentinel: (process, log) for process, log in ranks}
    deadline = time.monotonic() + timeout_s
    try:
        while running:
            ended = wait(list(running), max(0.0, deadline - time.monotonic()))
            assert ended, "\n".join(_where_it_hangs(*rank) for rank in running.values())
            for process, log in map(running.pop, ended):
                process.join()
                if process.exitcode == -signal.SIGABRT and GlooCrashError.is_in(log.read_text()):
                    raise GlooCrashError(last_words(log.read_text()))
                assert process.exitcode == status, last_words(log.read_text())
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()


def _where_it_hangs(process: Any, log: Path) -> str:
    """Ends a process, which writes the stacks of its threads."""
    os.kill(process.pid, signal.SIGABRT)
    process.join(30)
    return f"{log} of a process that hung:\n{last_words(log.read_text())}"


def run_ranks(ranks: int, folder: Path, work: Callable[..., object], **arguments: Any) -> None:
    """Calls a function in several processes; kills all of them if one fails or hangs.

    Args:
        ranks: Number of processes.
        folder: Empty folder of their output.
        work: The function, of a module.
        arguments: Its arguments, equal on all ranks.
    """
    assert not list(folder.iterdir())
    try:
        _run_ranks(ranks, folder, work, arguments)
    except GlooCrashError:
        shutil.rmtree(folder)
        folder.mkdir()
        _run_ranks(ranks, folder, work, arguments)


def _run_ranks(
    ranks: int, folder: Path, work: Callable[..., object], arguments: dict[str, Any]
) -> None:
    port = reserved_port()
    logs = [folder / f"rank{rank}.{port}.txt" for rank in range(ranks)]
    processes = [
        new_process(_work, rank, ranks, port, log, work, arguments) for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    wait_for_ranks(list(zip(processes, logs, strict=True)))


def _work(
    rank: int,
    ranks: int,
    port: int,
    log: Path,
    work: Callable[..., object],
    arguments: dict[str, Any],
) -> None:
    become_rank(rank, ranks, port, log)
    end_at_an_error(lambda: work(**arguments))


def again_after_a_crash(
    run: Callable[[], Sequence["subprocess.CompletedProcess[str]"]], folder: Path
) -> Sequence["subprocess.CompletedProcess[str]"]:
    """Runs commands that are ranks, or that start ranks; after a crash of gloo once more.

    Args:
        run: Runs the commands to their end.
        folder: What they write, removed before they run once more.
    """
    done = run()
    if any(GlooCrashError.is_in(one.stderr) for one in done):
        shutil.rmtree(folder, ignore_errors=True)
        done = run()
    return done


def end_at_an_error(work: Callable[[], object]) -> None:
    """Calls a function; ends the process at once if that fails."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a normal exit would wait for ranks in a collective
