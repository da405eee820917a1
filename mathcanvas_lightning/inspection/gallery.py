"""Interleaved examples on one HTML page, texts and pictures in reading order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.html_page import Piece, write_page
from mathcanvas_lightning.data.rows.schema import SECTIONS, InterleavedExample, shown_segment


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleArticle:
    """An example as the page shows it."""

    uid: str
    facts: Mapping[str, Any]
    """The answer and the extra columns, by name."""
    sections: Mapping[str, Sequence[Piece]]
    """Texts and pictures, by name of the section."""


def write_gallery(path: Path, examples: Sequence[InterleavedExample], *, title: str) -> None:
    """Writes the page, with the pictures as the model gets them.

    Args:
        path: File to write.
        examples: One article each, in this order.
        title: Heading of the page.
    """
    articles = [_article(example) for example in examples]
    write_page(path, "inspection/gallery.html.j2", title=title, examples=articles)


def _article(example: InterleavedExample) -> ExampleArticle:
    return ExampleArticle(
        uid=example.uid,
        facts={"answer": example.answer, **example.extras},
        sections={name: [*map(shown_segment, getattr(example, name))] for name in SECTIONS},
    )
