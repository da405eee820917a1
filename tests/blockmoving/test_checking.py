"""Answers are checked statement by statement; their drawings are read back."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mathcanvas_lightning import generate_blockmoving
from mathcanvas_lightning.blockmoving.checking import CHECKS, chances, check_answer


@pytest.fixture(scope="module", params=[1, 2])
def answered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list:
    """Puzzles with the texts and drawings of their own chains of thought."""
    folder = tmp_path_factory.mktemp("puzzles")
    report = generate_blockmoving(
        str(folder), num_tasks=4, level=request.param, num_workers=0, progress=False
    )
    found = []
    for record in json.loads(Path(report.source_file).read_text()):
        task = json.loads((folder / f"task_{record['task_id']}" / "data.json").read_text())
        _, *parts = re.split(r"<image>(.*?)</image>", record["cot_text"])
        texts, pictures = parts[1::2], parts[2::2]
        found.append((task, texts, [Image.open(folder / path).convert("RGB") for path in pictures]))
    return found


def test_the_reference_passes_every_check(answered: list) -> None:
    for task, texts, drawings in answered:
        found = check_answer(task, texts, drawings)
        assert found.checks == dict.fromkeys(CHECKS, True)
        assert found.drawings == (True,) * len(task["steps"])
        assert found.first_error is None


def test_each_wrong_statement_fails_its_check(answered: list) -> None:
    task, texts, drawings = answered[0]
    other = answered[1]

    def failed(changed: list[str], shown: list[Image.Image]) -> set[str]:
        checks = check_answer(task, changed, shown).checks
        return {name for name, good in checks.items() if not good}

    text = "\n".join(texts)
    before = re.search(r"Before: (\w+ \d\d\d)", text)[1]
    assert failed([text.replace(f"Before: {before}", "Before: white 222", 1)], drawings) == {
        "before",
        "everything",
    }
    assert failed([text.replace("After:", "Then:")], drawings) == {"after", "everything"}
    assert failed([text], other[2]) == {"drawings", "everything"}
    assert failed([text], drawings[:-1]) == {"drawings", "everything"}
    assert failed([text], [*drawings, drawings[-1]]) == {"drawings", "everything"}
    assert failed([text.replace("Step 1:", "Step one:")], drawings) >= {"states", "everything"}
    assert failed([], []) == set(CHECKS)


def test_the_first_error_of_a_chain(answered: list) -> None:
    task, texts, drawings = answered[0]
    other, last = answered[1][2][0], len(task["steps"])

    def first(changed: str, shown: list[Image.Image]) -> tuple[str | None, tuple[bool, ...]]:
        found = check_answer(task, [changed], shown)
        return found.first_error, found.drawings

    text, right = "\n".join(texts), (True,) * last
    assert first(text.replace("After:", "Then:"), drawings) == ("after", right)
    assert first(text.replace("Before:", "Then:"), [other]) == ("before", (False,) * last)
    assert first(text, [other, *drawings[1:]]) == ("drawing 1", (False, *right[1:]))
    assert first(text, drawings[:-1]) == (f"drawing {last}", (*right[1:], False))
    assert first(text, [*drawings, other]) == (f"drawing {last + 1}", right)
    moved = re.sub(rf"(Step {last}:(?: \w+\.)?)[^.]*\.", r"\1 white 222.", text)
    assert first(moved, [*drawings[:-1], other]) == (f"state {last}", (*right[1:], False))


def test_chances_of_guesses(answered: list) -> None:
    task = answered[0][0]
    found = chances(task)
    assert set(found) == {"answer", *CHECKS}
    assert found["answer"] == found["moves"] == 0.25
    assert found["before"] == pytest.approx(1 / 1350)
    assert found["states"] == pytest.approx(1350.0 ** -len(task["steps"]))
