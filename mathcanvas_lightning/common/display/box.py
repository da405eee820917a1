"""A box with names and values on standard output, for the end of a run."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_box(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints a box.

    Args:
        title: Text above the box.
        rows: Names and values.
    """
    table = Table(box=box.ROUNDED, show_header=False, title=title)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    Console().print(table)


def duration(seconds: float) -> str:
    """Formats a time as minutes and seconds, or hours, minutes and seconds: 4:07, 1:04:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
