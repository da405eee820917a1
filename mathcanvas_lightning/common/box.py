"""A box with names and values on standard output, for the end of a run."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table


def print_box(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints a box.

    Args:
        title: Text above the box.
        rows: Names and values.
    """
    table = Table(box=box.ROUNDED, show_header=False, title=title)
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def duration(seconds: float) -> str:
    """Formats a time as minutes and seconds, or hours, minutes and seconds: 4:07, 1:04:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
