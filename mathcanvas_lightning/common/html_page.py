"""HTML pages that need nothing else: their frame, their look, and pictures inside them."""

from base64 import b64encode
from html import escape
from pathlib import Path

from mathcanvas_lightning.common.atomic import written_whole

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever a page says, a browser loads nothing for it and runs nothing in it."""
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
article { border: 1px solid var(--line); border-radius: .6rem; margin: 2rem 0; overflow: hidden; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1.2rem;
  padding: .6rem 1rem; background: var(--soft); }
header b { margin-right: auto; }
section { padding: .4rem 1rem 1rem; }
section + section { border-top: 1px solid var(--line); }
h2 { font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; opacity: .6; }
p { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
img { max-width: min(100%, 32rem); background: #fff; border: 1px solid var(--line); }
figcaption { font-size: .8rem; opacity: .6; }
"""


def write_page(path: Path, body: str, *, title: str, style: str = "") -> None:
    """Writes a page; it appears whole or not at all.

    Args:
        path: File to write; its folder is made if absent.
        body: HTML.
        title: Plain text; the heading too.
        style: CSS beyond what all pages have.
    """
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def figure(data: bytes, image_format: str, caption: str) -> str:
    """A picture inside a page.

    Args:
        data: The encoded file.
        image_format: Pillow's name of its format; one that browsers show.
        caption: Plain text.

    Returns:
        HTML.
    """
    source = f"data:image/{image_format.lower()};base64,{b64encode(data).decode()}"
    return (
        f'<figure><img src="{source}" alt="{escape(caption)}" loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
