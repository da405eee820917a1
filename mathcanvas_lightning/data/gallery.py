"""Interleaved examples as one HTML page that needs nothing else: text, picture, text."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mathcanvas_lightning.data.images import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.schema import (
    SECTIONS,
    ImageSegment,
    InterleavedExample,
    Segment,
)

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
article { border: 1px solid var(--line); border-radius: .6rem; margin: 2rem 0; overflow: hidden; }
header { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: .6rem 1rem;
  background: var(--soft); }
header b { margin-right: auto; }
section { padding: .4rem 1rem 1rem; }
section + section { border-top: 1px solid var(--line); }
h2 { font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; opacity: .6; }
p { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
img { max-width: min(100%, 32rem); background: #fff; border: 1px solid var(--line); }
figcaption { font-size: .8rem; opacity: .6; }
"""


def write_gallery(path: Path, examples: Sequence[InterleavedExample], *, title: str) -> None:
    """Writes the page.

    Args:
        path: File to write.
        examples: Drawn one below the other.
        title: Heading of the page.
    """
    articles = "\n".join(_article(example) for example in examples)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{articles}\n</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


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
    source = f"data:image/{info.format.lower()};base64,{b64encode(image.data).decode()}"
    caption = f"{image.path or 'image'}, {info.width_px}x{info.height_px}"
    return (
        f'<figure><img src="{source}" alt="{escape(caption)}" loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
