"""A child process that always ends with its parent, together with all processes that it started.

The child runs in its own session: Ctrl-C in the terminal reaches only the parent, and one signal to
the child's process group stops the child and all its descendants. When either process ends, its end
of the pipe is closed, and the other process stops the rest. A forked copy of the parent, such as a
DataLoader worker, can keep the parent's end open, so the child also polls the parent's process id.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from mathcanvas_lightning.common.parallel import signals_postponed

GRACE_S = 20.0
"""Time for a regular shutdown before all processes are killed."""
POLL_S = 0.5
MAX_LINES = 400

logger = logging.getLogger(__name__)


class ProcessEndedError(Exception):
    """The process has ended, or has closed its end of the pipe."""


class EngineProcess:
    """Runs a function in a new Python process and exchanges objects with it through a pipe.

    Args:
        target: `module:function`; called with the file descriptor of its end of the pipe.
        environment: All environment variables of the process.
    """

    def __init__(self, target: str, environment: Mapping[str, str]) -> None:
        self._connection, child_end = Pipe()
        # A child of `multiprocessing` would run the user's script again, if that has no main guard.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import host; "
            f"host({target!r}, {child_end.fileno()}, {os.getpid()}, {GRACE_S})"
        )
        with child_end, signals_postponed():
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", code],
                env=dict(environment),
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._threads = (
            threading.Thread(target=_reap, args=(self._process,), daemon=True),
            threading.Thread(target=_listen, args=(self._process, self._lines), daemon=True),
        )
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(
            self, _end, self._process, self._connection, self._threads, os.getpid()
        )

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status; negative signal number if a signal ended it; None while it runs."""
        return self._process.returncode

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines of output of the process and its descendants."""
        return tuple(self._lines)

    @property
    def has_message(self) -> bool:
        """Whether `receive` would return or raise at once."""
        try:
            return self._connection.poll()
        except (OSError, EOFError):
            return True

    def send(self, message: Any) -> None:
        """Sends an object.

        Raises:
            ProcessEndedError: If the process has ended.
        """
        try:
            self._connection.send(message)
        except OSError as error:
            raise ProcessEndedError(str(error)) from error

    def receive(self) -> Any:
        """Waits for an object.

        Raises:
            ProcessEndedError: If the process has ended.
        """
        try:
            return self._connection.recv()
        except (OSError, EOFError) as error:
            raise ProcessEndedError(str(error)) from error

    def close(self) -> None:
        """Stops the process and all its descendants; may be repeated."""
        self._end()


def host(target: str, descriptor: int, parent_pid: int, grace_s: float) -> None:
    """Runs a function in the new process.

    Args:
        target: `module:function`.
        descriptor: File descriptor of this end of the pipe.
        parent_pid: Process id of the parent.
        grace_s: Time for a regular shutdown after the parent has ended.
    """
    watch = threading.Thread(target=_watch_parent, args=(parent_pid, grace_s), daemon=True)
    watch.start()
    module, function = target.split(":")
    getattr(import_module(module), function)(descriptor)
    sys.stdout.flush()
    os._exit(0)  # else the interpreter first frees what it imported, which takes seconds with vLLM


def _watch_parent(parent_pid: int, grace_s: float) -> None:
    while os.getppid() == parent_pid:
        time.sleep(POLL_S)
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)


def _reap(process: "subprocess.Popen[str]") -> None:
    """Waits until the process ends, then kills the rest of its group."""
    with contextlib.suppress(ChildProcessError):
        # WNOWAIT: the id stays taken until the group is killed, so no other process can get it.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    _kill_group(process)
    process.wait()


def _listen(process: "subprocess.Popen[str]", lines: "deque[str]") -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line.rstrip())
            logger.debug("%s", line.rstrip())


def _end(
    process: "subprocess.Popen[str]",
    connection: Connection,
    threads: tuple[threading.Thread, ...],
    owner: int,
) -> None:
    if os.getpid() != owner:  # a forked copy of this process, such as a DataLoader worker
        return
    reaper, listener = threads
    connection.close()
    reaper.join(timeout=GRACE_S)
    if reaper.is_alive():
        _kill_group(process)
        reaper.join()
    listener.join(timeout=GRACE_S)


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
