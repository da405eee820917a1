"""Processes of tests, and ranks that communicate over gloo.

Importing takes seconds, so it is done once, in a server from which all others are forked.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.warm import LATER

IMPORTED = [
    "mathcanvas_lightning.cli.fit",
    "mathcanvas_lightning.conversion.convert",
    "mathcanvas_lightning.data.index.index",
    "tests.training.launch",
    *LATER,
    "tests.freeze",
]
TIMEOUT_S = 900


def new_process(work: Callable[..., object], *arguments: object) -> Any:
    """A process that calls a function; it imports nothing but the function's module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)  # there is one server; `fit` may have set other ones
    return context.Process(target=work, args=arguments)


def free_port() -> int:
    """A port of this machine that is not used."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
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
    torch.set_num_threads(1)


def run_ranks(ranks: int, folder: Path, work: Callable[..., object], **arguments: Any) -> None:
    """Calls a function in several processes; kills all of them if one fails or hangs.

    Args:
        ranks: Number of processes.
        folder: Folder of their output.
        work: The function, of a module.
        arguments: Its arguments, equal on all ranks.
    """
    port = free_port()
    logs = [folder / f"rank{rank}.{port}.txt" for rank in range(ranks)]
    processes = [
        new_process(_work, rank, ranks, port, log, work, arguments) for rank, log in enumerate(logs)
    ]
    try:
        for process in processes:
            process.start()
        for process, log in zip(processes, logs, strict=True):
            process.join(TIMEOUT_S)
            assert process.exitcode == 0, log.read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()


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


def end_at_an_error(work: Callable[[], object]) -> None:
    """Calls a function; ends the process at once if that fails."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a normal exit would wait for ranks in a collective
