"""Answer sheets as HTML: scores and filters on top, an article a record below."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import get_args

from mathcanvas_lightning.common.html_page import figure
from mathcanvas_lightning.evaluation.report.sheets import (
    Fault,
    Piece,
    Sheet,
    SheetResponse,
    Thumbnail,
)
from mathcanvas_lightning.evaluation.score_files import ScoreSummary
from mathcanvas_lightning.evaluation.score_table import score_rows
from mathcanvas_lightning.evaluation.verdicts import PartVerdict, Verdict

VERDICTS = (*get_args(Verdict), "unscored")
_COLOURS = {"right": "#1a7f37", "wrong": "#c62828", "failed": "#8e24aa"}
_OTHER_COLOUR = "#8a6d00"

STYLE = """
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; white-space: pre-wrap; }
.parts td { overflow-wrap: anywhere; }
.numbers td { text-align: right; white-space: nowrap; }
.filters { position: sticky; top: 0; padding: .5rem 0; background: Canvas; }
.filters label { margin-right: 1rem; white-space: nowrap; }
.badge { padding: 0 .5rem; border-radius: .6rem; color: #fff; font-size: .8rem; }
.fault { padding: .3rem .7rem; border-left: 3px solid #c62828; background: var(--soft);
  overflow-wrap: anywhere; }
article { content-visibility: auto; contain-intrinsic-size: auto 40rem; }
header span { overflow-wrap: anywhere; }
""" + "".join(
    f".badge.{verdict} {{ background: {_COLOURS.get(verdict, _OTHER_COLOUR)}; }}\n"
    f"body:has(#only-{verdict}:checked) article:not([data-verdicts~={verdict}]) "
    "{ display: none; }\n"
    for verdict in VERDICTS
)
"""The filters are CSS alone."""


def render(sheets: Sequence[Sheet], summary: ScoreSummary | None, remarks: Sequence[str]) -> str:
    """Renders the body of a page.

    Args:
        sheets: In order.
        summary: Shown on top, if there is one.
        remarks: Plain texts, shown on top.

    Returns:
        HTML; whatever texts say is escaped.
    """
    parts = [f"<p>{escape(remark)}</p>" for remark in remarks]
    if summary is not None:
        rows = score_rows(summary.overall, summary.groups)
        parts.append(_table(rows, "numbers"))
    parts.append(_filters(sheets))
    parts += map(_article, sheets)
    return "\n".join(parts)


def _table(rows: Mapping[str, Mapping[str, str]], kind: str) -> str:
    """A table with named rows and columns."""
    names = next(iter(rows.values()))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    lines = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{escape(x)}</td>' for x in row.values())}</tr>"
        for label, row in rows.items()
    )
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{lines}</table></div>'


def _filters(sheets: Sequence[Sheet]) -> str:
    """A choice of verdicts, with how many records have a response of each."""
    counts = Counter(verdict for sheet in sheets for verdict in _verdicts(sheet))
    shown = {"all": len(sheets)} | {v: counts[v] for v in VERDICTS if counts[v]}
    choices = "".join(
        f'<label><input type="radio" name="only" id="only-{name}"{" checked" * (name == "all")}> '
        f"{name} ({count:,})</label>"
        for name, count in shown.items()
    )
    return f'<div class="filters">{choices}</div>'


def _verdicts(sheet: Sheet) -> list[str]:
    return sorted({response.verdict for response in sheet.responses})


def _article(sheet: Sheet) -> str:
    facts = "".join(f"<span>{escape(k)}: {escape(v)}</span>" for k, v in sheet.facts.items())
    verdicts = _verdicts(sheet)
    badges = "".join(f'<span class="badge {name}">{name}</span>' for name in verdicts)
    sections = [_section("Question", _pieces(sheet.question))]
    is_alone = len(sheet.responses) == 1
    for number, response in enumerate(sheet.responses, start=1):
        title = "Answer" if is_alone else f"Answer {number}"
        sections.append(_section(title, _response(response)))
    if any(response.scored is None for response in sheet.responses):
        reference = "\n".join(sheet.reference) or "(none)"
        sections.append(_section("Reference", f"<p>{escape(reference)}</p>"))
    return (
        f'<article data-verdicts="{" ".join(verdicts)}"><header><b>{escape(sheet.name)}</b>'
        f"{facts}{badges}</header>{''.join(sections)}</article>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _response(response: SheetResponse) -> str:
    content = _pieces(response.steps)
    if response.failure:
        content += f'<p class="fault">{escape(response.failure)}</p>'
    if response.text:
        content += (
            "<details><summary>the answer in the record says something else</summary>"
            f"<p>{escape(response.text)}</p></details>"
        )
    if response.scored is not None:
        parts = response.scored.parts
        rows = {
            f"part {i}" if len(parts) > 1 else "": _cells(part) for i, part in enumerate(parts, 1)
        }
        content += _table(rows, "parts")
    return content


def _cells(part: PartVerdict) -> dict[str, str]:
    return {
        "reference": part.expected,
        "extracted": part.extracted or "(none)",
        "verdict": part.verdict,
        "found by": part.how,
    }


def _pieces(pieces: Sequence[Piece]) -> str:
    return "".join(_piece(piece) for piece in pieces if piece)


def _piece(piece: Piece) -> str:
    match piece:
        case Thumbnail():
            return figure(piece.data, piece.format, piece.caption)
        case Fault():
            return f'<p class="fault">{escape(piece.text)}</p>'
        case _:
            return f"<p>{escape(piece)}</p>"
