"""Self-contained HTML pages from Jinja2 templates, with their pictures inside."""

from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.display.tex import with_formulas


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePicture:
    """A picture on a page."""

    data: bytes
    """The encoded file."""
    format: str
    """Pillow's name of a format that browsers show."""
    caption: str
    """Plain text."""

    @property
    def url(self) -> str:
        """The file as a data URL."""
        return f"data:image/{self.format.lower()};base64,{b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Notice:
    """A message in place of something that can't be shown."""

    text: str


Piece = str | PagePicture | Notice
"""One paragraph, picture or notice; the macro `pieces` of `pieces.html.j2` renders them."""


def write_page(path: Path, template: str, *, title: str, **values: Any) -> None:
    """Renders a page and writes it atomically.

    Args:
        path: File to write; its folder is made if absent.
        template: Path of a template below the package; it extends `common/page.html.j2`.
        title: Title and heading, plain text.
        values: Further variables of the template; all texts are escaped.
    """
    page = render(template, title=title, **values)
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def render(template: str, **values: Any) -> str:
    """Renders a template.

    Args:
        template: Path of a template below the package.
        values: Variables of the template; all texts are escaped.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mathcanvas_lightning", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["formulas"] = with_formulas
    environment.tests["picture"] = lambda piece: isinstance(piece, PagePicture)
    environment.tests["notice"] = lambda piece: isinstance(piece, Notice)
    return environment
