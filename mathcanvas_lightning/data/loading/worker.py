"""How a worker process of the loader ends: with the main process, not by a signal to all."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from types import TracebackType

AGAIN_S = 0.1
"""Time until a worker that has not ended gets the next signal."""


def set_up_worker(worker: int) -> None:  # noqa: ARG001
    """Prepares a new worker, for signals that a scheduler or a terminal sends to all processes.

    After SIGTERM the main process finishes its step and saves, so the worker continues, until the
    main process ends it.

    Args:
        worker: Number of the worker.
    """
    sys.excepthook = _show_but_ended_transfers
    main = parent_process()
    if main is not None and main.pid is not None and hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_on_sigterm_of, args=(main.pid,), daemon=True).start()


def end_workers(workers: Sequence[BaseProcess]) -> None:
    """Ends worker processes.

    Args:
        workers: The processes; some may have ended.
    """
    for worker in workers:
        while worker.is_alive():
            # Of two signals at once, the system keeps one: a scheduler's can hide this one.
            worker.terminate()
            worker.join(AGAIN_S)


def _end_on_sigterm_of(sender: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != sender:
        pass
    os._exit(0)  # as torch does; any other status would raise in the main process


def _show_but_ended_transfers(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Shows no error of a worker if the main process ends while it takes a tensor."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)
