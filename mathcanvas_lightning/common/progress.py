"""Progress bars with counts, rate, remaining time and a remark."""

import contextlib
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

Advance = Callable[[int, str], None]
"""Adds a number of finished items and sets the remark."""


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


@contextlib.contextmanager
def progress_bar(description: str, total: int | None, *, show: bool = True) -> Iterator[Advance]:
    """Shows a progress bar on standard error during the block, if that is a terminal.

    Args:
        description: Text before the bar.
        total: Number of items, None if unknown.
        show: Whether to show the bar at all.

    Yields:
        A function to call with the number of newly finished items and a short remark.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
        console=console,
        disable=not show or not console.is_terminal,
    ) as progress:
        task = progress.add_task(description, total=total, remark="")

        def advance(count: int, remark: str = "") -> None:
            progress.update(task, advance=count, remark=remark)

        yield advance
