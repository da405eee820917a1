r"""TeX in a text as MathML, which browsers draw without scripts.

Formulas are those between $ and $, $$ and $$, \( and \), \[ and \], or \begin and \end of an
environment of equations. What can't be converted stays as it was written.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from html import unescape
from typing import Any
from xml.etree.ElementTree import Element

from markupsafe import Markup, escape

MAX_CHARACTERS = 2000
"""Longer formulas stay as they are."""
_BODY = rf".{{1,{MAX_CHARACTERS}}}?"
_FORMULA = re.compile(
    rf"\$\$(?P<shown>{_BODY})\$\$"
    rf"|\\\[(?P<bracketed>{_BODY})\\\]"
    rf"|\\\((?P<inline>{_BODY})\\\)"
    rf"|(?P<equations>\\begin\{{(?P<kind>(?:equation|align|gather)\*?)\}}{_BODY}\\end\{{(?P=kind)\}})"
    # As Pandoc: no space inside the marks, no digit behind them, so that amounts of money are text.
    rf"|(?<![\\$\w])\$(?![\s$])(?P<dollars>[^$\n]{{1,{MAX_CHARACTERS}}}?)(?<![\s\\])\$(?![\d$])",
    re.DOTALL,
)
_CHILDREN = {
    "mfrac": 2,
    "msup": 2,
    "msub": 2,
    "mover": 2,
    "munder": 2,
    "mroot": 2,
    "msubsup": 3,
    "munderover": 3,
}
"""Number of parts that an element needs."""
_TAGS = frozenset(
    (
        *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msup"),
        *("msub", "msubsup", "mover", "munder", "munderover", "mtable", "mtr", "mtd", "mstyle"),
        *("mpadded", "mphantom", "menclose"),
    )
)
_ATTRIBUTES = frozenset(
    (
        *("display", "displaystyle", "scriptlevel", "mathvariant", "mathcolor", "mathsize"),
        *("stretchy", "fence", "form", "separator", "accent", "symmetric", "largeop", "notation"),
        *("movablelimits", "minsize", "maxsize", "lspace", "rspace", "width", "height", "depth"),
        *("linethickness", "columnalign", "columnspacing", "columnlines", "rowspacing", "rowlines"),
    )
)
MAX_DEPTH = 40
"""Maximum nesting of elements; deeper formulas stay as they were written."""
_VALUE = re.compile(r"[\w .%#+-]*")


class _UnusableError(Exception):
    """A formula without a correct rendering."""


def with_formulas(text: str) -> Markup:
    """Escapes a text, and renders the formulas in it.

    Args:
        text: Any text.

    Returns:
        HTML in which only `<math>` elements of known kinds are markup.
    """
    return Markup("").join(_parts(text))


def _parts(text: str) -> Iterator[Markup]:
    end = 0
    for found in _FORMULA.finditer(text):
        yield escape(text[end : found.start()])
        names = ("shown", "bracketed", "inline", "equations", "dollars")
        name = next(name for name in names if found[name] is not None)
        rendered = _mathml(found[name].strip(), is_block=name not in ("inline", "dollars"))
        yield escape(found[0]) if rendered is None else rendered
        end = found.end()
    yield escape(text[end:])


@lru_cache(maxsize=4096)
def _mathml(formula: str, *, is_block: bool) -> Markup | None:
    """MathML of a formula; None if it can't be converted."""
    bare = re.sub(r"\\.", "", formula, flags=re.DOTALL)
    if bare.count("{") != bare.count("}"):
        return None
    try:
        from latex2mathml.converter import convert_to_element  # reads its table of symbols

        element = convert_to_element(formula, display="block" if is_block else "inline")
        return Markup("").join(_markup(element))
    except Exception:  # the library raises many kinds for TeX that it does not know
        return None


def _markup(element: Element, depth: int = 0) -> Iterator[Markup]:
    tag, children = element.tag, list(element)
    text = unescape(element.text or "")
    is_known = tag in _TAGS and len(children) == _CHILDREN.get(tag, len(children))
    if not is_known or depth > MAX_DEPTH:
        raise _UnusableError(tag)
    if text.startswith("\\") and len(text) > 1:  # a command that the library does not know
        raise _UnusableError(text)
    known: dict[str, Any] = {
        name: value
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _VALUE.fullmatch(value)
    }
    attributes = (Markup(' {}="{}"').format(name, value) for name, value in known.items())
    yield Markup("<{}{}>{}").format(tag, Markup("").join(attributes), text)
    for child in children:
        yield from _markup(child, depth + 1)
    yield Markup("</{}>").format(tag)
