"""The table of models as texts: cells and lists of records, for all formats."""

from collections.abc import Sequence
from dataclasses import dataclass

from mathcanvas_lightning.evaluation.leaderboard.scored import Key
from mathcanvas_lightning.evaluation.leaderboard.table import Cell, ModelTable

NO_CELL = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1
    """Number of columns at the left with names, not numbers."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the cells to emphasize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordList:
    """Some of the records that only one of two models answers correctly."""

    title: str
    shown: str
    """Their ids, and how many more there are."""


def accuracy_table(table: ModelTable) -> TextTable:
    """A row for each model, a column for each data set; the best of a column is emphasized.

    Args:
        table: The models.
    """
    counts = {
        name: next(found[name].num_records for found in table.cells.values() if name in found)
        for name in table.datasets
    }
    return TextTable(
        title="Accuracy in % (95 % interval)",
        columns=("model", *(f"{name} ({counts[name]:,})" for name in table.datasets)),
        rows=tuple(
            (model, *(_cell(found.get(name)) for name in table.datasets))
            for model, found in table.cells.items()
        ),
        bold=frozenset(
            (row, column)
            for row, found in enumerate(table.cells.values())
            for column, name in enumerate(table.datasets, start=1)
            if len(table.cells) > 1 and name in found and found[name].accuracy == table.best[name]
        ),
    )


def difference_table(table: ModelTable) -> TextTable | None:
    """A row for each pair of models that is compared; None without pairs.

    Args:
        table: The models.
    """
    rows = []
    for one in table.differences:
        low, high = (f"{100 * bound:+.1f}" for bound in one.counts.interval)
        rows.append(
            (
                one.dataset,
                one.first,
                one.second,
                f"{100 * one.counts.difference:+.1f}",
                f"{low} to {high}",
                f"{one.counts.p_value:.2g}",
                f"{one.counts.num_first_only:,}",
                f"{one.counts.num_second_only:,}",
            )
        )
    if not rows:
        return None
    names = ("data set", "first", "second")
    return TextTable(
        title="First minus second, record by record",
        columns=(*names, "points", "95 %", "McNemar p", "only first", "only second"),
        rows=tuple(rows),
        num_names=len(names),
    )


def record_lists(table: ModelTable, limit: int) -> list[RecordList]:
    """The records that only the first or only the second of two models answers correctly.

    Args:
        table: The models.
        limit: How many ids to show of each list.
    """
    lists = []
    for one in table.differences:
        for right, wrong, keys in (
            (one.first, one.second, one.first_only),
            (one.second, one.first, one.second_only),
        ):
            if keys and limit:
                title = f"{one.dataset}: {right} right, {wrong} wrong ({len(keys):,})"
                lists.append(RecordList(title=title, shown=_listed(keys, limit)))
    return lists


def _listed(keys: Sequence[Key], limit: int) -> str:
    more = f", and {len(keys) - limit:,} more" if len(keys) > limit else ""
    return ", ".join(map(str, keys[:limit])) + more


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return NO_CELL
    low, high = (100 * bound for bound in cell.interval)
    return f"{100 * cell.accuracy:.1f} ({low:.1f} to {high:.1f})"


def compared_texts(table: ModelTable) -> list[TextTable]:
    """Both tables.

    Args:
        table: The models.
    """
    found: list[TextTable | None] = [accuracy_table(table), difference_table(table)]
    return [one for one in found if one is not None]
