"""Formulas become MathML, everything else stays text, and nothing becomes markup by accident."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from mathcanvas_lightning.common.display.tex import with_formulas

pytest.importorskip("latex2mathml")
MATHML = re.compile(r"</?(math|m[a-z]+)( [a-z]+=\"[\w .%#+-]*\")*>")


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("$x^2$", '<math display="inline"><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math>'),
        (r"so \(a<b\).", "<mo>&lt;</mo>"),
        (r"$$\frac{1}{2}$$", '<math display="block">'),
        (r"\[\sqrt{x}\]", "<msqrt>"),
        (r"\begin{align}a&=b\\c&=d\end{align}", "<mtable"),
        (r"$\mathbb{R}$", "\u211d"),
        (r"$90^\circ$ and $\pi$", "\u03c0"),
    ],
)
def test_formulas(text: str, html: str) -> None:
    found = str(with_formulas(text))
    assert html in found
    assert "$" not in found


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5, or $10 for two.",
        "$ 5 and 6 $",
        "a$b$c",
        r"\$x\$",
        "no formula <b> & \"quotes\" 'too'",
        r"$\frac{1$",  # unbalanced
        r"$\unknowncommand{x}$",
        r"$\left( x$",
        "$x_$",
        "$" + "{" * 900 + "}" * 900 + "$",
        r"$\text{" + "a" * 3000 + "}$",
        r"\boxed{3}",
        "$x\n\ny$",
    ],
)
def test_what_cannot_be_rendered_stays_as_it_was_written(text: str) -> None:
    assert with_formulas(text) == escape(text)


@pytest.mark.parametrize(
    "text",
    [
        r"$\text{<script>alert(1)</script>}$",
        r"$\href{javascript:alert(1)}{x}$",
        r"$\style{background:url(http://x)}{x}$",
        r"$\class{x}{y}$",
        r"$\text{&lt;img src=x onerror=alert(1)&gt;}$",
        r"$\color{red;x:url(y)}{x}$",
        "$<b>x</b>$",
    ],
)
def test_formulas_cannot_smuggle_markup(text: str) -> None:
    found = str(with_formulas(text))
    assert not re.search(r"[<>]", MATHML.sub("", found))
    assert not re.search(r"<[^>]*\b(href|style|class|on\w+)=", found)


@given(st.text(alphabet=r"$\{}[]()^_&<>\"' abxtfrcmh12", max_size=60))
def test_any_text(text: str) -> None:
    left = MATHML.sub("", str(with_formulas(text)))
    assert "<" not in left
    assert ">" not in left
