"""Functions that change answers before they are written."""

import pytest

from mathcanvas_lightning.generation.run.post_processors import remove_thinking, strip


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("4", "4"),
        ("<think>2 + 2</think>\n\n4\n", "4"),
        ("<think>a</think>4<think>b\nc</think> or 5", "4 or 5"),
        ("2 + 2 is\n</think>4", "4"),
        ("4 <think>or was it", "4"),
        ("<think>only thoughts", ""),
        ("a < b and </b>", "a < b and </b>"),
    ],
)
def test_remove_thinking(said: str, wanted: str) -> None:
    assert remove_thinking(said) == wanted


def test_strip() -> None:
    assert strip(" \n4 \t") == "4"
