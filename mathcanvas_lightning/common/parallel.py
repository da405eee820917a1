"""Work on many processes, results in order, memory bounded, no process left behind."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

from mathcanvas_lightning.errors import ConfigError, WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNKS_AHEAD = 4
"""Chunks under way per worker: enough to keep it busy, few enough to keep memory bounded."""


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(wanted: int | None, num_items: int, chunk_items: int) -> int:
    """Worker processes to start: those wanted, or one a core, but no more than have work.

    Args:
        wanted: 0 for none, None for one a core.
        num_items: Work to do.
        chunk_items: What a worker takes at a time.

    Returns:
        What `ordered_map` takes.

    Raises:
        ConfigError: If the number wanted is negative.
    """
    if wanted is not None and wanted < 0:
        raise ConfigError(
            "--num_workers",
            found=str(wanted),
            wanted="0 or more",
            remedy="Leave it out for one on each core.",
        )
    useful = -(-num_items // chunk_items)
    return min(usable_cores() if wanted is None else wanted, useful)


def chunked(items: Iterable[Item], chunk_items: int) -> Iterator[list[Item]]:
    """Items a few at a time; the last chunk may have fewer."""
    remaining = iter(items)
    return iter(lambda: list(islice(remaining, chunk_items)), [])


def ordered_map(
    function: Callable[[Sequence[Item]], Sequence[Result]],
    chunks: Iterable[Sequence[Item]],
    *,
    num_workers: int,
) -> Generator[Result]:
    """Applies a function to chunks of items and yields the results in the items' order.

    Args:
        function: Takes a chunk, gives a result an item; sent to the workers once a chunk, so
            small, and importable there.
        chunks: Read only a little ahead of the results.
        num_workers: Processes; 0 works in this one.

    Yields:
        One result an item.

    Raises:
        WorkerError: If a worker is killed, or can't start.
    """
    if num_workers == 0:
        for chunk in chunks:
            yield from function(chunk)
        return
    # Spawned, not forked: the parent runs threads (progress bar, Arrow) that a fork would break.
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_guard)
    try:
        underway: deque[Future[Sequence[Result]]] = deque()
        for chunk in chunks:
            underway.append(pool.submit(function, chunk))
            if len(underway) >= num_workers * CHUNKS_AHEAD:
                yield from underway.popleft().result()
        while underway:
            yield from underway.popleft().result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "worker process",
            found=f"it ended before its work did ({error})",
            wanted="all workers alive",
            remedy="Was it killed for memory? Finished files stay: run again with fewer "
            "--num_workers. In a script of your own, start the work below "
            'if __name__ == "__main__".',
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _guard() -> None:
    """Leaves Ctrl-C to the parent, and ends with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
