"""Prints tables of models."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MIN_WIDTH = 110

if TYPE_CHECKING:
    from mathcanvas_lightning.evaluation.leaderboard.command import ComparedModels


def comparison(found: "ComparedModels", console: Console) -> int:
    """Prints the tables of a comparison, or names the files that were written."""
    if found.text and not found.written:
        console.out(found.text, end="", highlight=False)
        return 0
    console.width = max(console.width, MIN_WIDTH)  # a narrower table cuts numbers
    for one in found.texts:
        table = Table(title=one.title, title_justify="left")
        for number, name in enumerate(one.columns):
            is_name = number < one.num_names
            table.add_column(
                escape(name),
                justify="left" if is_name else "right",
                overflow="fold",
                no_wrap=not is_name,
            )
        for row, cells in enumerate(one.rows):
            table.add_row(
                *(
                    f"[bold]{escape(text)}[/bold]" if (row, column) in one.bold else escape(text)
                    for column, text in enumerate(cells)
                )
            )
        console.print(table)
    for listed in found.lists:
        console.out(f"{listed.title}: {listed.shown}", highlight=False)
    for path in found.written:
        console.out(f"written: {path}", highlight=False)
    return 0
