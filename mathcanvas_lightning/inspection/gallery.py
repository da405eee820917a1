"""Interleaved examples on one HTML page, texts and pictures in reading order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.html_page import Notice, PagePicture, Piece, write_page
from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.pixels import image_for_page
from mathcanvas_lightning.data.rows.schema import (
    SECTIONS,
    ImageSegment,
    InterleavedExample,
    Segment,
)


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
        sections={name: [*map(_piece, getattr(example, name))] for name in SECTIONS},
    )


def _piece(segment: Segment) -> Piece:
    if not isinstance(segment, ImageSegment):
        return segment.text
    try:
        info = check_image(segment.data, ImageLimits(), depth="header")
        data, kind = image_for_page(segment.data, ImageLimits())
    except ImageError as error:
        return Notice(f"{segment.path}: {error}")
    caption = f"{segment.path or 'image'}, {info.width_px}x{info.height_px}"
    if info.orientation != 1:
        caption += f", with the EXIF orientation {info.orientation}, which is ignored"
    return PagePicture(data=data, format=kind, caption=caption)
