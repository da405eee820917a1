"""Child processes that start warm, for tests with real engines.

A Python process with vLLM imports for eight seconds of a processor, and an engine has up to four
such processes. A nursery imports once. While it is in use, `subprocess` and `multiprocessing` get
their Python processes as forks of it. These are real children of the process that starts them:
streams, open files, process groups, parents and exit status are those of a cold start. Each has a
separate nursery for the processes that it starts.
"""

import _posixsubprocess
import ctypes
import fcntl
import gc
import json
import multiprocessing.process
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NoReturn
from unittest import mock

from tests.warm import run_and_end

try:
    from setproctitle import setproctitle
except ImportError:  # a package of the vllm-cpu extra; without it, processes look like the nursery

    def setproctitle(title: str) -> None: ...


ROOT = Path(__file__).parent.parent
MAX_MESSAGE_BYTES, MAX_FILES = 200_000, 64
FIRST_FREE_FILE = 512
"""Number above those of the files that a process passes on."""
PR_SET_CHILD_SUBREAPER = 36
ENGINE_MODULES = (
    "mathcanvas_lightning.cli.predict",
    "mathcanvas_lightning.generation.backends.vllm.engine",
    "mathcanvas_lightning.vllm_bagel.model",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_model_runner",
)
"""What processes of engines import."""
ENGINE_VARIABLES = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
FLAGS = ("-B", "-P")
COLD_START = _posixsubprocess.fork_exec
prctl = ctypes.CDLL(None).prctl


class Nursery:
    """The connection of a process to its nursery, a child of it.

    Args:
        connection: Connection to the nursery.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @contextmanager
    def used(self) -> Iterator[None]:
        """In the block, Python processes that this process starts are warm."""
        with (
            mock.patch.object(subprocess, "_fork_exec", self.fork_exec),
            mock.patch.object(_posixsubprocess, "fork_exec", self.fork_exec),
        ):
            yield

    def fork_exec(
        self,
        args: Sequence[Any],
        executables: Any,
        close_fds: bool,
        pass_fds: Sequence[int],
        cwd: Any,
        env: Sequence[bytes] | None,
        *rest: Any,
    ) -> int:
        """What `subprocess` and `multiprocessing` call with these arguments to start a process."""
        words = [os.fsdecode(word) for word in args]
        if os.getpid() != self._owner or not _is_warm(words):
            return int(COLD_START(args, executables, close_fds, pass_fds, cwd, env, *rest))
        stdin, _, _, stdout, _, stderr, _, error_pipe, _, is_leader = rest[:10]
        kept = [number for number in pass_fds if number != error_pipe]
        files = [n if n >= 0 else own for own, n in enumerate((stdin, stdout, stderr))]
        pairs = [os.fsdecode(pair).partition("=")[::2] for pair in env or ()]
        variables = dict(os.environ) if env is None else dict(pairs)
        folder = os.fsdecode(cwd or Path.cwd())
        message = json.dumps([words[1:], folder, variables, kept, bool(is_leader)])
        with self._lock:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # an orphan below becomes a child
            socket.send_fds(self._connection, [message.encode()], [*files, *kept])
            pid = int(self._connection.recv(16))
            self._connection.recv(1)  # it is an orphan now
            prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return pid


@contextmanager
def start_nursery(
    modules: Sequence[str], variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Nursery]:
    """Starts a nursery for this process.

    Args:
        modules: What it imports.
        variables: Environment variables that matter to these imports.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here:
        with there:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_children", str(there.fileno()), *modules],
                cwd=ROOT,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | variables,
            )
        yield Nursery(here)
    process.wait(60)


def _is_warm(words: Sequence[str]) -> bool:
    """Whether a command line starts Python in a way that `_run` knows, and not a small helper."""
    kind, *rest = [word for word in words[1:] if word not in FLAGS] or [""]
    is_known = kind in ("-c", "-m") or kind.endswith(".py")
    return words[0] == sys.executable and is_known and "resource_tracker" not in "".join(rest[:1])


def adopt(unused_files: Sequence[int] = ()) -> None:
    """Gives this process a nursery, which is a fork of it: it must not have threads yet.

    Args:
        unused_files: Numbers of files that the nursery closes.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        here.close()
        for number in unused_files:
            os.close(number)
        _serve(there)
    there.close()
    nursery = Nursery(socket.socket(fileno=_moved(here.detach())))
    subprocess._fork_exec = _posixsubprocess.fork_exec = nursery.fork_exec  # type: ignore


def _serve(connection: socket.socket) -> NoReturn:
    """Forks processes until the connection ends; they run here to their end, too."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = [entry for entry in sys.path if entry not in own]
    message, files = _forked(connection)
    connection.close()
    words, folder, variables, kept, is_leader = json.loads(message)
    if is_leader:
        os.setsid()
    adopt(files)
    for number, target in zip([_moved(n) for n in files], (0, 1, 2, *kept), strict=True):
        os.dup2(number, target)
        os.close(number)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    setproctitle(" ".join([sys.executable, *words]))
    run_and_end(_run, words)


def _forked(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Forks a process for each message; returns the message and its files in that process."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, MAX_FILES)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            middle = os.getpid()
            if child := os.fork():
                connection.send(str(child).encode())
                os._exit(0)
            while os.getppid() == middle:
                time.sleep(0.001)
            return message, files
        os.wait()
        connection.send(b".")
        for number in files:
            os.close(number)


def _moved(number: int) -> int:
    """A file under a number that nobody passes on."""
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FILE)
    os.close(number)
    return moved


def _run(words: list[str]) -> None:
    """Runs as `python WORDS` would run."""
    is_safe = "-P" in words[:2]
    kind, *rest = words[next(n for n, word in enumerate(words) if word not in FLAGS) :]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[:0] = [] if is_safe else [""]
        module = sys.modules["__main__"] = ModuleType("__main__")
        exec(rest[0], vars(module))
    elif kind == "-m":
        sys.argv = rest
        sys.path[:0] = [] if is_safe else [str(Path.cwd())]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        sys.path[:0] = [] if is_safe else [str(Path(kind).resolve().parent)]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    setproctitle("python tests/warm_children.py")  # later, it would not find its own environment
    del sys.path[0]
    for module_name in sys.argv[2:]:
        import_module(module_name)
    sys.stderr.flush()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
