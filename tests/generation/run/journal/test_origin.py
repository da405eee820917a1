"""Origins of answers: every difference is named, unknown parts agree with anything."""

from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.run.journal.lines import Entry, origin_of
from mathcanvas_lightning.generation.run.journal.origin import differences, require_same_origin

SETTINGS = {"model": "/m", "weights": "aa", "server": {"base_url": "http://a", "options": {"x": 1}}}


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        (("m", SETTINGS, {}), ("m", SETTINGS, {}), []),
        (("m", {}, {}), ("n", {}, {}), ["model"]),
        (("m", {}, {"seed": 1}), ("m", {}, {}), ["sampling.seed"]),
        (("m", {"weights": "a"}, {}), ("m", {"weights": "b"}, {}), ["settings.weights"]),
        (("m", {}, {}), ("m", {"weights": "b"}, {}), []),
        (("m", {"weights": None}, {}), ("m", {"weights": "b"}, {}), []),
        (
            ("m", {"s": {"base_url": "a"}}, {}),
            ("m", {"s": {"base_url": "b"}}, {}),
            ["settings.s.base_url"],
        ),
        (("m", {}, {}), ("m", {"dtype": "float32"}, {}), ["settings.dtype"]),
        (
            ("m", {"server": None}, {}),
            ("m", {"server": {"a": 1}}, {}),
            ["settings.server.a"],
        ),
        (("m", {"a": 1}, {}), ("", {"a": 2}, None), ["settings.a"]),
        ((None, None, None), ("m", SETTINGS, {"n": 2}), []),
    ],
)
def test_differences(before: Any, now: Any, names: list[str]) -> None:
    assert list(differences(origin_of(*before), origin_of(*now))) == names


def test_the_error_names_only_what_differs() -> None:
    entry = Entry(
        path=Path("/out.journal/rank0.jsonl"),
        offset=0,
        num_bytes=1,
        prompt_digest=None,
        failure=None,
        origin=origin_of("m", {"weights": "a", "dtype": "auto"}, {}),
    )
    with pytest.raises(OutputError, match="they have changed") as error:
        require_same_origin([entry], origin_of("m", {"weights": "b", "dtype": "auto"}, {}))
    wanted = 'answers of model "m" with settings.weights "a" -> "b"'
    assert error.value.found == wanted
