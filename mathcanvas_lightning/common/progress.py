"""The progress bar of all long work: how much, how fast, how long still, and a word more."""

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


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


@contextlib.contextmanager
def progress_bar(description: str, total: int | None, *, show: bool = True) -> Iterator[Advance]:
    """Shows a bar on standard error while the block runs; nothing where that is no terminal.

    Args:
        description: What is being done.
        total: How many there are, None if unknown.
        show: False for silence.

    Yields:
        A function to call with how many more are done and a short remark.
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
