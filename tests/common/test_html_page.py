"""Pages: whatever the texts contain, the markup stays the same, and nothing is loaded."""

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.common.display.notebook import view
from mathcanvas_lightning.common.html_page import Notice, PagePicture, Piece, render
from mathcanvas_lightning.evaluation.leaderboard.texts import RecordList, TextTable
from mathcanvas_lightning.inspection.gallery import ExampleArticle
from tests.conftest import examples, png

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onfocus='alert(1)",
    "<!-- ]]> </style></title>",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028\u2029 \u202edcba\u202c \u200f",
)
CHARACTERS = "<>\"'&/={}%#!-`; \n\u2028\u202ea"


class Markup(HTMLParser):
    """The elements of a page with the names of their attributes, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[str]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(("/" + tag, []))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", [data]))

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(text: str) -> dict[str, str]:
    """Each page with this text in all places."""
    picture = PagePicture(data=png(), format="PNG", caption=text)
    pieces: list[Piece] = [f"a{text}", Notice(text), picture]
    article = ExampleArticle(uid=text, facts={text: text}, sections={text: pieces})
    table = TextTable(
        title=text,
        columns=(text, text),
        rows=((text, text),),
        num_names=1,
        bold=frozenset({(0, 1)}),
    )
    run: dict[str, Any] = {
        "last_step": 5,
        "curves": picture,
        "pictures": [picture],
        "values": {text: [(text, text, text)]},
        "commands": [text],
        "config": f"a{text}",
    }
    lists = [RecordList(title=text, shown=text)]
    return {
        "rows": render("inspection/gallery.html.j2", title=text, examples=[article]),
        "models": render(
            "evaluation/leaderboard/table.html.j2", title=text, tables=[table], lists=lists
        ),
        "run": render("training/run/report.html.j2", title=text, **run),
        "notebook": view(text, {text: pieces}, facts={text: text}, table={text: {text: text}}),
    }


PLAIN = {name: Markup(page).elements for name, page in pages("plain").items()}


@given(st.text(CHARACTERS, max_size=20))
@settings(max_examples=examples(40), deadline=None)
@example(HOSTILE[0])
@example(HOSTILE[1])
@example(HOSTILE[2])
@example(HOSTILE[3])
@example(HOSTILE[4])
@example(HOSTILE[5])
def test_no_text_changes_the_markup(text: str) -> None:
    for name, page in pages(text).items():
        found = Markup(page)
        assert found.elements == PLAIN[name], name
        assert text.replace("\r", "\n") in found.text, name


@pytest.mark.parametrize("name", ["rows", "models", "run"])
def test_pages_load_nothing(name: str) -> None:
    page = pages("https://example.org/a.png")[name]
    assert (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'" in page
    )
    assert "<script" not in page
    assert page.count("src=") == page.count('src="data:image/')
    assert "url(" not in page


def test_texts_have_their_own_direction() -> None:
    """A mark of direction in a text would otherwise turn what follows it on the line."""
    assert "unicode-bidi: plaintext" in pages("a")["rows"]
