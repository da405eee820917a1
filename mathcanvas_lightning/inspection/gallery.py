"""Interleaved examples as one HTML page that needs nothing else: text, picture, text."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mathcanvas_lightning.common.html_page import figure, write_page
from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.rows.schema import (
    SECTIONS,
    ImageSegment,
    InterleavedExample,
    Segment,
)


def write_gallery(path: Path, examples: Sequence[InterleavedExample], *, title: str) -> None:
    """Writes the page.

    Args:
        path: File to write.
        examples: Drawn one below the other.
        title: Heading of the page.
    """
    write_page(path, "\n".join(_article(example) for example in examples), title=title)


def _article(example: InterleavedExample) -> str:
    facts = {"answer": example.answer, **example.extras}
    spans = "".join(f"<span>{escape(k)}: {escape(str(v))}</span>" for k, v in facts.items())
    sections = "".join(
        f"<section><h2>{name}</h2>{_segments(getattr(example, name))}</section>"
        for name in SECTIONS
    )
    return f"<article><header><b>{escape(example.uid)}</b>{spans}</header>{sections}</article>"


def _segments(segments: Iterable[Segment]) -> str:
    return "".join(
        _figure(segment) if isinstance(segment, ImageSegment) else f"<p>{escape(segment.text)}</p>"
        for segment in segments
    )


def _figure(image: ImageSegment) -> str:
    try:
        info = check_image(image.data, ImageLimits(), depth="header")
    except ImageError as error:
        return f"<figure>{escape(str(image.path))}: {escape(str(error))}</figure>"
    caption = f"{image.path or 'image'}, {info.width_px}x{info.height_px}"
    return figure(image.data, info.format, caption)
