"""Tables of texts as Markdown and LaTeX."""

import re
from collections.abc import Sequence
from html import escape

from mathcanvas_lightning.evaluation.leaderboard.texts import RecordList, TextTable

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_markdown(tables: Sequence[TextTable], lists: Sequence[RecordList]) -> str:
    """Renders tables and lists of records in Markdown.

    Args:
        tables: Tables in order.
        lists: Lists of records.
    """
    parts = [_markdown_table(one) for one in tables]
    if lists:
        parts.append("\n".join(f"- {_plain(one.title)}: {_plain(one.shown)}" for one in lists))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: TextTable) -> str:
    lines = [
        " | ".join(map(_plain, table.columns)),
        " | ".join("---" if n < table.num_names else "---:" for n in range(len(table.columns))),
    ]
    for number, row in enumerate(table.rows):
        cells = [
            f"**{_plain(text)}**" if (number, column) in table.bold else _plain(text)
            for column, text in enumerate(row)
        ]
        lines.append(" | ".join(cells))
    return f"{table.title}\n\n" + "\n".join(f"| {line} |" for line in lines)


def _plain(text: str) -> str:
    """Text in which Markdown and HTML find no syntax."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def as_latex(tables: Sequence[TextTable]) -> str:
    """Renders tables in LaTeX with booktabs.

    Args:
        tables: Tables in order.
    """
    return "\n".join(map(_latex_table, tables))


def _latex_table(table: TextTable) -> str:
    rows = [
        [
            rf"\textbf{{{_escaped(text)}}}" if (number, column) in table.bold else _escaped(text)
            for column, text in enumerate(row)
        ]
        for number, row in enumerate(table.rows)
    ]
    num_numbers = len(table.columns) - table.num_names
    return "\n".join(
        (
            f"% {' '.join(table.title.split())}; needs \\usepackage{{booktabs}}",
            rf"\begin{{tabular}}{{{'l' * table.num_names}{'r' * num_numbers}}}",
            r"\toprule",
            " & ".join(map(_escaped, table.columns)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        )
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
