"""What a notebook shows of an object: texts, formulas and small pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from mathcanvas_lightning.common.html_page import Piece, render

MAX_CHARACTERS = 2000
"""Longer texts are cut."""


def view(
    title: str,
    sections: Mapping[str, Sequence[Piece]] | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    table: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Renders an object as HTML for a notebook.

    Args:
        title: Name of the object.
        sections: Heading -> texts and pictures in order.
        facts: Name -> value, in one line.
        table: Row -> column -> text.

    Returns:
        Escaped HTML; its pictures are inside.
    """
    shown = {name: [*map(_cut, pieces)] for name, pieces in (sections or {}).items()}
    template = "common/display/notebook.html.j2"
    return render(template, title=title, sections=shown, facts=facts or {}, table=table or {})


def _cut(piece: Piece) -> Piece:
    is_long = isinstance(piece, str) and len(piece) > MAX_CHARACTERS
    return f"{str(piece)[:MAX_CHARACTERS]} ..." if is_long else piece
