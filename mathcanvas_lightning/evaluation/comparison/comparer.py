"""Comparisons with a time limit, in child processes that can be killed."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from queue import Empty, LifoQueue

import mathcanvas_lightning
from mathcanvas_lightning.common.parallel import result_of, signals_blocked, signals_postponed
from mathcanvas_lightning.errors import ConfigError, WorkerError
from mathcanvas_lightning.evaluation.comparison.equivalence import (
    Comparison,
    compare,
    compare_integers,
)

MEMORY_BYTES = 2 * 2**30
"""Limit of a process's address space: 10^10^10 would fill any memory before the time limit."""
READY = "ready\n"
"""The first line of a process that has started."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer and its reference."""

    given: str
    expected: str
    options: tuple[str, ...] = ()


class Comparer:
    """Compares answers in child processes, since algebra can't be interrupted otherwise.

    A process that exceeds the time or memory limit ends and is replaced by a new one. Thread-safe.
    A context manager; `close` ends the processes.

    Args:
        num_processes: Number of concurrent comparisons.
        time_limit_s: Time limit of one comparison, in seconds of processor time.

    Raises:
        ConfigError: If either is not above 0.
    """

    def __init__(self, num_processes: int = 1, time_limit_s: float = 5.0) -> None:
        for name, value in (("num_processes", num_processes), ("time_limit_s", time_limit_s)):
            if value <= 0:
                raise ConfigError(
                    f"Comparer.{name}", found=str(value), wanted="above 0", remedy="Raise it."
                )
        self._num_processes = num_processes
        self._time_limit_s = time_limit_s
        self._known: dict[Pair, Comparison] = {}
        self._idle: LifoQueue[subprocess.Popen[str] | None] = LifoQueue()
        for _ in range(num_processes):
            self._idle.put(None)

    def compare(self, given: str, expected: str, options: Sequence[str] = ()) -> Comparison:
        """Compares an answer with the reference, like `equivalence.compare`.

        Args:
            given: An answer.
            expected: The reference answer.
            options: Texts of the choices of a multiple-choice question.

        Returns:
            Whether they are equivalent; `how` is `time_limit` if the comparison took too long.

        Raises:
            WorkerError: If processes can't start.
        """
        pair = Pair(given, expected, tuple(options))
        if pair not in self._known:
            known = compare_integers(given, expected, pair.options)
            self._known[pair] = known or self._ask(pair)
        return self._known[pair]

    def compare_all(self, pairs: Iterable[Pair]) -> Iterator[Comparison]:
        """Compares pairs concurrently.

        Args:
            pairs: Pairs to compare; all are read before the first comparison is yielded.

        Yields:
            A comparison for each pair, in order.
        """
        to_compare = list(pairs)
        with ThreadPoolExecutor(self._num_processes) as threads:
            try:
                with signals_postponed():  # Ctrl-C between two steps would leave locks
                    futures = [
                        threads.submit(self.compare, pair.given, pair.expected, pair.options)
                        for pair in to_compare
                    ]
                for future in futures:
                    yield result_of(future)
            finally:
                threads.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Ends all processes; the next comparison starts new ones."""
        with suppress(Empty):  # Ctrl-C may have lost a place
            while True:
                if (process := self._idle.get_nowait()) is not None:
                    _end(process)
        for _ in range(self._num_processes):
            self._idle.put(None)

    def __enter__(self) -> "Comparer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, pair: Pair) -> Comparison:
        process, answer = self._idle.get(), ""
        try:
            process = process or _start(self._time_limit_s)
            answer = _exchange(process, json.dumps(astuple(pair)) + "\n")
        finally:
            if process is not None and not answer.endswith("\n"):
                _end(process)  # it exceeded a limit, or is busy while we are interrupted
                process = None
            self._idle.put(process)
        return Comparison(*json.loads(answer)) if answer else Comparison(False, "time_limit")


def _start(time_limit_s: float) -> "subprocess.Popen[str]":
    """Starts a process that answers each line of JSON with a line of JSON."""
    with signals_blocked():
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", __name__, str(time_limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": _module_path()},
        )
    if _exchange(process, "") != READY:
        _end(process)
        raise WorkerError(
            "comparison process",
            found=f"it exited at its start, with status {process.returncode}",
            wanted="a process that waits for answers to compare",
            remedy=f"Run {sys.executable} -m {__name__} 5 to see why.",
        )
    return process


def _module_path() -> str:
    """The folders of modules, without the working folder, which may hold any files."""
    here, package = Path.cwd().resolve(), Path(mathcanvas_lightning.__file__).parents[1]
    folders = [path for path in sys.path if path and Path(path).resolve() != here]
    return os.pathsep.join([*folders, str(package)])


def _exchange(process: "subprocess.Popen[str]", line: str) -> str:
    """Sends a line and returns the answer; an incomplete line if the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return ""


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _serve(time_limit_s: float) -> None:
    """Answers lines until standard input ends, or until one exceeds the time limit."""
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    answers.write(READY)
    answers.flush()
    for line in sys.stdin:
        given, expected, options = json.loads(line)
        # The signal has no handler, so it ends the process, even during one long operation. The
        # timer counts the time of this process: a busy machine must not change verdicts.
        signal.setitimer(signal.ITIMER_PROF, time_limit_s)
        found = compare(given, expected, options)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(astuple(found)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
