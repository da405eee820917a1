"""A process that works for this one, and is gone, with all it has started, once this one is.

It runs in a session of its own: Ctrl-C at the terminal reaches this process alone, and one signal
to its process group ends it with every process below it. Each side of the pipe between the two
closes when its process ends, however that comes about; the other side then ends the rest. A forked
copy of this process, such as a data loader's worker, may keep this side open for longer; so the
other one watches this process too.
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

GRACE_S = 20.0
"""Time to end in good order before everything is killed."""
POLL_S = 0.5
MAX_LINES = 400

logger = logging.getLogger(__name__)


class ProcessEndedError(Exception):
    """The process is gone, or closed its side of the pipe."""


class EngineProcess:
    """Runs a function in a new Python process, and exchanges objects with it.

    Args:
        target: `module:function`; called with the descriptor of its side of the pipe.
        environment: All its environment variables.
    """

    def __init__(self, target: str, environment: Mapping[str, str]) -> None:
        self._connection, theirs = Pipe()
        # Not `multiprocessing`: its children run the caller's script again, and so need it guarded.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import host; "
            f"host({target!r}, {theirs.fileno()}, {os.getpid()}, {GRACE_S})"
        )
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", code],
                env=dict(environment),
                pass_fds=[theirs.fileno()],
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
        """Its number, which is that of its process group too."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, minus a signal that ended it; None while it runs."""
        return self._process.returncode

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines that it, or a process below it, wrote."""
        return tuple(self._lines)

    @property
    def has_message(self) -> bool:
        """Whether `receive` would return, or raise, at once."""
        try:
            return self._connection.poll()
        except (OSError, EOFError):
            return True

    def send(self, message: Any) -> None:
        """Sends an object.

        Raises:
            ProcessEndedError: If nobody is there to take it.
        """
        try:
            self._connection.send(message)
        except OSError as error:
            raise ProcessEndedError(str(error)) from error

    def receive(self) -> Any:
        """Waits for an object.

        Raises:
            ProcessEndedError: If there will be none.
        """
        try:
            return self._connection.recv()
        except (OSError, EOFError) as error:
            raise ProcessEndedError(str(error)) from error

    def close(self) -> None:
        """Ends it and all processes below it; may be called at any time, repeatedly."""
        self._end()


def host(target: str, descriptor: int, parent_pid: int, grace_s: float) -> None:
    """Runs a function in the new process.

    Args:
        target: `module:function`.
        descriptor: Of this side of the pipe.
        parent_pid: The process at the other side.
        grace_s: Time to end in good order once that is gone.
    """
    watch = threading.Thread(target=_watch_parent, args=(parent_pid, grace_s), daemon=True)
    watch.start()
    module, function = target.split(":")
    getattr(import_module(module), function)(descriptor)


def _watch_parent(parent_pid: int, grace_s: float) -> None:
    while os.getppid() == parent_pid:
        time.sleep(POLL_S)
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)


def _reap(process: "subprocess.Popen[str]") -> None:
    """Once the process has ended, ends what is left of its group."""
    with contextlib.suppress(ChildProcessError):
        # Not reaped before the group is killed: until then nothing else can get its number.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    _kill_group(process)
    process.wait()


def _listen(process: "subprocess.Popen[str]", lines: "deque[str]") -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line.rstrip())
            logger.info("%s", line.rstrip())


def _end(
    process: "subprocess.Popen[str]",
    connection: Connection,
    threads: tuple[threading.Thread, ...],
    owner: int,
) -> None:
    if os.getpid() != owner:  # a forked copy of this process, such as a data loader's worker
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
