"""Progress with counts, rate, remaining time and a remark: a bar, or lines without a terminal."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mathcanvas_lightning.common.display.box import duration
from mathcanvas_lightning.common.logs import is_quiet

log = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
"""Adds a number of finished items and sets the remark."""
LINE_EVERY_S = 30.0
"""Seconds between two lines."""


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.3g}/s" if speed < 10 else f"{speed:,.0f}/s")


@contextlib.contextmanager
def progress_bar(description: str, total: int | None, *, show: bool = True) -> Iterator[Advance]:
    """Shows the progress of a block on standard error.

    On a terminal it is a bar. Otherwise it is a line in the log of this package every 30 seconds,
    which commands show.

    Args:
        description: Text before the bar.
        total: Number of items, None if unknown.
        show: Whether to show anything at all.

    Yields:
        A function to call with the number of newly finished items and a short remark.
    """
    console = Console(stderr=True)
    if not show or is_quiet():
        yield _ignore
    elif console.is_terminal:
        with _bar(description, total, console) as advance:
            yield advance
    else:
        with _lines(description, total) as advance:
            yield advance


def _ignore(count: int, remark: str = "") -> None:
    pass


@contextlib.contextmanager
def _bar(description: str, total: int | None, console: Console) -> Iterator[Advance]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
        console=console,
    ) as progress:
        task = progress.add_task(description, total=total, remark="")

        def advance(count: int, remark: str = "") -> None:
            progress.update(task, advance=count, remark=remark)

        yield advance


@contextlib.contextmanager
def _lines(description: str, total: int | None) -> Iterator[Advance]:
    started, done = time.monotonic(), threading.Event()
    state: tuple[int, str] = (0, "")

    def advance(count: int, remark: str = "") -> None:
        nonlocal state
        state = (state[0] + count, remark)

    def report() -> None:
        while not done.wait(LINE_EVERY_S):
            count, remark = state
            seconds = time.monotonic() - started
            log.info("%s", progress_text(description, count, total, seconds, remark))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        done.set()
        thread.join()


def progress_text(
    description: str, count: int, total: int | None, seconds: float, remark: str
) -> str:
    """Describes the progress of some work in one line.

    Args:
        description: What is done.
        count: Number of finished items.
        total: Number of items, None if unknown.
        seconds: Time since the start.
        remark: Text at the end.

    Returns:
        A line such as "Converting: 1,200 of 3,600, 40/s, 1:00 left, 3 rejected".
    """
    parts = [f"{description}: {count:,}" + ("" if total is None else f" of {total:,}")]
    rate = count / max(seconds, 1e-9)
    if count:
        parts.append(f"{rate:,.3g}/s" if rate < 100 else f"{rate:,.0f}/s")
    if count and total is not None:
        parts.append(f"{duration((total - count) / rate)} left")
    else:
        parts.append(f"{duration(seconds)} so far")
    return ", ".join([*parts, *([remark] if remark else [])])
