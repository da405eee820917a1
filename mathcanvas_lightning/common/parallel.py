"""Parallel map over worker processes: ordered results, bounded memory, no orphans."""

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import (
    active_children,
    current_process,
    forkserver,
    get_all_start_methods,
    get_context,
    get_start_method,
    parent_process,
    resource_tracker,
    set_forkserver_preload,
    set_start_method,
)
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import FrameType
from typing import TypeVar

from mathcanvas_lightning.errors import ConfigError, WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""Signals that all processes get: Ctrl-C, and the end of their terminal."""
ENDING_SIGNALS: tuple[int, ...] = (*TERMINAL_SIGNALS, signal.SIGTERM)
"""Signals that end a command."""
WORKER_START_S, TORCH_START_S = 1.0, 3.0
"""About the time until a new worker process is ready, without torch and with it."""
CHUNKS_AHEAD = 3
"""Submitted chunks per worker beyond the one it works on: enough to keep it busy."""
MAX_CHUNKS_AHEAD = 32
"""Submitted chunks of all workers together; results stay in memory until their turn."""


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(wanted: int | None, num_items: int, chunk_items: int) -> int:
    """Number of worker processes to start, at most one per chunk.

    Args:
        wanted: Maximum number; 0 for no worker processes, None for one per core.
        num_items: Number of items.
        chunk_items: Number of items in a chunk.

    Returns:
        The number of workers for `ordered_map`.

    Raises:
        ConfigError: If the maximum is negative.
    """
    if wanted is not None and wanted < 0:
        raise ConfigError(
            "--num_workers",
            found=str(wanted),
            wanted="0 or more",
            remedy="Leave it out for one per core.",
        )
    useful = -(-num_items // chunk_items)
    return min(usable_cores() if wanted is None else wanted, useful)


def serial_time(wanted: int | None, start_s: float = WORKER_START_S) -> float:
    """Seconds to work without worker processes, as short work ends before they have started.

    Args:
        wanted: Number of workers that the user wants, see `count_workers`; one that is given counts
            from the start.
        start_s: Time until a worker is ready.

    Returns:
        `serial_s` for `ordered_map`.
    """
    return start_s if wanted is None else 0.0


def chunked(items: Iterable[Item], chunk_items: int) -> Iterator[list[Item]]:
    """Splits items into chunks; the last one may be shorter."""
    remaining = iter(items)
    return iter(lambda: list(islice(remaining, chunk_items)), [])


def ordered_map(
    function: Callable[[Sequence[Item]], Sequence[Result]],
    chunks: Iterable[Sequence[Item]],
    *,
    num_workers: int,
    serial_s: float = 0.0,
) -> Generator[Result]:
    """Applies a function to chunks of items and yields the results in the items' order.

    Args:
        function: Maps a chunk to one result per item. It is pickled with every chunk, so it must
            be importable and small.
        chunks: Chunks of items; read only a little ahead of the results.
        num_workers: Number of worker processes; 0 to work in this process.
        serial_s: Seconds to work in this process first; workers start only if chunks are left then.

    Yields:
        One result per item.

    Raises:
        WorkerError: If a worker is killed or can't start.
    """
    remaining = iter(chunks)
    end_s = math.inf if num_workers == 0 else time.monotonic() + serial_s
    while time.monotonic() < end_s:
        chunk = next(remaining, None)
        if chunk is None:
            return
        yield from function(chunk)
    # Spawn, since forking breaks the parent's threads (progress bar, Arrow).
    _run_resource_tracker()
    others = active_children()
    with signals_postponed():  # a half-made pool can't be removed
        pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_guard)
    try:
        submitted: deque[Future[Sequence[Result]]] = deque()
        for chunk in remaining:
            # It may start a worker, which this process ends.
            with signals_blocked(*ENDING_SIGNALS):
                submitted.append(pool.submit(function, chunk))
            if len(submitted) >= chunks_in_flight(num_workers):
                yield from result_of(submitted.popleft())
        while submitted:
            yield from result_of(submitted.popleft())
    except BaseException as error:  # such as Ctrl-C, or a caller that stops reading
        _kill_workers(pool, others)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise WorkerError(
            "worker process",
            found=f"it ended before its work was finished ({error})",
            wanted="all workers alive",
            remedy="It may have run out of memory. Finished files are kept: run again with fewer "
            "--num_workers. In your own script, start the work below "
            'if __name__ == "__main__".',
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _kill_workers(pool: ProcessPoolExecutor, others: Sequence[BaseProcess]) -> None:
    """Ends all child processes that are not others; the pool notices that they have ended."""
    with signals_postponed():
        for process in active_children():
            if process not in others:
                process.kill()
        # Or the pool would wait for the rest of a result that a worker was sending.
        pool._result_queue._writer.close()  # type: ignore[attr-defined]


def chunks_in_flight(num_workers: int) -> int:
    """Maximum number of chunks that are submitted and whose results are not used yet."""
    return num_workers + min(CHUNKS_AHEAD * num_workers, MAX_CHUNKS_AHEAD)


def result_of(future: Future[Result]) -> Result:
    """Waits for the result of another thread, as `future.result` does.

    Ctrl-C in that method can leave the future locked: the other thread would wait for it for good,
    and this thread for the other one.

    Args:
        future: The future.

    Returns:
        Its result; raises what the work raised.
    """
    finished: SimpleQueue[Future[Result]] = SimpleQueue()
    with signals_postponed():
        future.add_done_callback(finished.put)
    return finished.get().result()


@contextlib.contextmanager
def waiting_threads(num_threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait for servers. After an error or Ctrl-C, the block ends without them.

    Args:
        num_threads: Maximum number of threads.
        name: Start of their names.
    """
    pool = ThreadPoolExecutor(num_threads, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def signals_postponed(*numbers: int, notify: Callable[[], object] = lambda: None) -> Iterator[None]:
    """This process gets signals that come in the block after it, not between two of its steps.

    Args:
        numbers: Signal numbers; by default `ENDING_SIGNALS`.
        notify: Called when a signal comes, so that the block can end.
    """
    if threading.current_thread() is not threading.main_thread():  # Python raises in that one
        yield
        return
    came, owner = list[int](), os.getpid()
    handlers = {number: signal.getsignal(number) for number in numbers or ENDING_SIGNALS}
    handled = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}

    def postpone(number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:
            came.append(number)
            notify()
            return
        signal.signal(number, handled[number])  # in a fork, which never leaves the block
        signal.raise_signal(number)

    try:
        for number in handled:
            signal.signal(number, postpone)
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextlib.contextmanager
def signals_blocked(*numbers: int) -> Iterator[None]:
    """Processes that start in the block never get a signal; this one gets it after the block.

    A process inherits the mask of the thread that starts it. The mask does not protect that thread
    itself: the system gives the signal to another thread, and Python raises in the main thread.

    Args:
        numbers: Signals that new processes never get; by default `TERMINAL_SIGNALS`.
    """
    with signals_postponed():
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, numbers or TERMINAL_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _run_resource_tracker() -> None:
    """Starts the tracker of multiprocessing before workers, as its start unblocks signals."""
    with signals_blocked():
        resource_tracker.ensure_running()


def _guard() -> None:
    """Exits when the parent exits."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def refuse_in_a_starting_worker() -> None:
    """Call this before waiting for a lock that a process with workers may hold.

    A new worker imports the script of its parent. If that script does its work while it is
    imported, the worker would wait for its parent, and the parent for the worker.

    Raises:
        WorkerError: If this process is such a worker.
    """
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself checks it
        raise WorkerError(
            "worker process",
            found="a script that starts its work when a worker imports it",
            wanted='work below if __name__ == "__main__"',
            remedy='Put the work of your script below if __name__ == "__main__".',
        )


def start_from_a_server(preload: Sequence[str]) -> None:
    """Makes worker processes of this program start from a server process that has no threads.

    A fork of a process with threads (progress bar, gloo, autograd) copies their locks as they are
    at this moment, and the child may wait for one that nobody releases. Does nothing if the start
    method is set already, or where there is no such server.

    Args:
        preload: Modules that the server imports once for all workers.
    """
    if get_start_method(allow_none=True) is None and "forkserver" in get_all_start_methods():
        set_start_method("forkserver")
        set_forkserver_preload(list(preload))


def protect_server(start_method: str | None) -> None:
    """Starts the server of worker processes, if there is one, so that none gets a Ctrl-C.

    Each would end with a traceback; the main process stops them.

    Args:
        start_method: How workers start; None for the default of this process.
    """
    if (start_method or get_start_method(allow_none=True)) == "forkserver":
        _run_resource_tracker()
        with signals_blocked():
            forkserver.ensure_running()
