"""Compares models by their scores of the same records: `mathcanvas compare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Literal

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.display.notebook import view
from mathcanvas_lightning.common.display.short import counted, short_repr
from mathcanvas_lightning.common.html_page import write_page
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.leaderboard.formats import as_latex, as_markdown
from mathcanvas_lightning.evaluation.leaderboard.scored import read_scored
from mathcanvas_lightning.evaluation.leaderboard.table import ModelTable, make_table
from mathcanvas_lightning.evaluation.leaderboard.texts import (
    RecordList,
    TextTable,
    compared_texts,
    record_lists,
)

Format = Literal["table", "markdown", "latex", "html"]
HTML_FILE = "compare.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedModels:
    """Models compared on data sets, and how they are shown."""

    table: ModelTable
    texts: tuple[TextTable, ...]
    lists: tuple[RecordList, ...]
    text: str
    """The tables in Markdown or LaTeX; empty for other formats."""
    written: tuple[Path, ...]
    """Files that were written."""

    def __repr__(self) -> str:
        models, datasets = len(self.table.cells), len(self.table.datasets)
        return short_repr(self, counted(models, "model"), counted(datasets, "data set"))

    def _repr_html_(self) -> str:
        first = self.texts[0]
        rows = {row[0]: dict(zip(first.columns[1:], row[1:], strict=True)) for row in first.rows}
        return view(first.title, table=rows)


def compare_models(
    files: Sequence[str],
    *,
    format: Format = "table",  # noqa: A002
    output: str | None = None,
    json: str | None = None,
    max_listed: int = 10,
) -> ComparedModels:
    """Compares models on data sets by their scores of the same records.

    Files of one data set (by its name, or by records in common) are compared with the first of
    them: accuracies with Wilson's 95 % interval, the difference record by record with its interval
    (Agresti and Min), and McNemar's exact test. Of several answers to a record the difference takes
    the first one, the accuracy the mean.

    Args:
        files: Files of mathcanvas score, or the files of answers beside them.
        format: What to print or write: a table for the terminal, markdown, latex or html.
        output: File to write in this format; by default the terminal, and compare.html for html.
        json: File to write with all numbers, and the ids of all records in which models differ.
        max_listed: How many records to list in which one model is right and the other is wrong.

    Returns:
        The tables.

    Raises:
        InputError: If a file is no file of scores, or the records of a data set differ.
        ConfigError: If an option can't be used.
    """
    paths = [files] if isinstance(files, str) else list(dict.fromkeys(files))
    _check(paths, format, output, json)
    scored = [read_scored(path) for path in paths]
    table = make_table(scored)
    texts, lists = compared_texts(table), record_lists(table, max(0, max_listed))
    text = {"markdown": as_markdown(texts, lists), "latex": as_latex(texts)}.get(format, "")
    written = []
    if json is not None:
        written.append(_write(json, dumps(table.to_json(), ensure_ascii=False, indent=1) + "\n"))
    if format == "html":
        page = local_path(output or HTML_FILE)
        title = f"{len(table.cells)} models on {len(table.datasets)} data sets"
        template = "evaluation/leaderboard/table.html.j2"
        write_page(page, template, title=title, tables=texts, lists=lists)
        written.append(page)
    elif output is not None:
        written.append(_write(output, text))
    return ComparedModels(
        table=table, texts=tuple(texts), lists=tuple(lists), text=text, written=tuple(written)
    )


def _check(paths: Sequence[str], kind: Format, output: str | None, json: str | None) -> None:
    if not paths:
        raise ConfigError(
            "compare",
            found="no file",
            wanted="files of scores",
            remedy="Name the files that mathcanvas score wrote.",
        )
    if kind == "table" and output is not None:
        raise ConfigError(
            "--output",
            found="a file for the table of the terminal",
            wanted="--format markdown, latex or html",
            remedy="Set --format.",
        )
    inputs = {local_path(path).resolve() for path in paths}
    for option, value in (("--output", output), ("--json", json)):
        if value is not None and local_path(value).resolve() in inputs:
            raise ConfigError(
                option,
                found=f"{value}, which is an input",
                wanted="another file",
                remedy="Name another.",
            )


def _write(path: str, text: str) -> Path:
    target = local_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return target
