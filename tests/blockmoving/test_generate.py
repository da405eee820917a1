"""Generated sets: words, drawings and answers are right, and the seed decides everything."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mathcanvas_lightning import generate_blockmoving
from mathcanvas_lightning.blockmoving.drawing import (
    COLOURS,
    all_visible,
    draw_composite,
    draw_state,
)
from mathcanvas_lightning.blockmoving.rules import Move, Stack, simulate
from mathcanvas_lightning.errors import ConfigError
from tests.conftest import folder_bytes

MOVE = re.compile(r"\((\d),(\d),(\d)\) ([+-][xyz])")
PLACE = re.compile(r"(\w+) \((\d),(\d),(\d)\)")


def parse_stack(blocks: list[dict], size: int) -> Stack:
    numbers = {name: number for number, name in enumerate(COLOURS)}
    stack = Stack.empty(size)
    for block in sorted(blocks, key=lambda b: b["cell"][2]):
        x, y, z = block["cell"]
        assert len(stack.column(x, y)) == z, "it floats"
        stack = stack.with_column(x, y, (*stack.column(x, y), numbers[block["colour"]]))
    return stack


def parse_moves(text: str) -> tuple[Move, ...]:
    return tuple(
        Move((int(x), int(y), int(z)), direction) for x, y, z, direction in MOVE.findall(text)
    )


def test_task_files_hold_a_puzzle_with_one_right_option(puzzles: Path) -> None:
    records = json.loads((puzzles / "enhanced_cot_cleaned.json").read_text())
    for record in records:
        task = json.loads((puzzles / f"task_{record['task_id']}" / "data.json").read_text())
        initial = parse_stack(task["initial"], task["size"])
        final = parse_stack(task["final"], task["size"])
        right = [
            letter
            for letter, text in task["options"].items()
            if simulate(initial, parse_moves(text))[-1].after == final
        ]
        assert right == [record["gt"]] == [task["answer"]]


def test_text_tells_the_stack_and_ends_with_the_prediction(puzzles: Path) -> None:
    for record in json.loads((puzzles / "enhanced_cot_cleaned.json").read_text()):
        task = json.loads((puzzles / f"task_{record['task_id']}" / "data.json").read_text())
        text = record["cot_text"]
        stated = PLACE.findall(text.split("The final stack is")[0])
        assert [(name, [int(c) for c in cell]) for name, *cell in stated] == [
            (block["colour"], block["cell"]) for block in task["initial"]
        ]
        assert text.endswith(f"So the answer is {record['pred']}.")
        pictures = re.findall("<image>(.*?)</image>", text)
        assert pictures[0] == f"task_{record['task_id']}/composite.png"
        assert all((puzzles / picture).is_file() for picture in pictures)
        assert len(pictures) + text.count("[render_result]") == 4


@pytest.mark.parametrize("level", [1, 2, 5])
def test_without_drawings_the_words_stay(tmp_path: Path, level: int) -> None:
    texts = []
    for drawings in (True, False):
        folder = tmp_path / str(drawings)
        report = generate_blockmoving(
            str(folder), num_tasks=3, level=level, drawings=drawings, num_workers=0
        )
        assert report.num_images == len(list(folder.rglob("*.png")))
        records = json.loads(Path(report.source_file).read_text())
        texts.append([record["cot_text"] for record in records])
    drawn, plain = texts
    assert all(text.count("<image>") == 1 for text in plain)
    picture = re.compile(r"\s*<image>task_\d+/step_\d+.png</image>\s*")
    assert [picture.sub(" ", text).split() for text in drawn] == [t.split() for t in plain]


@pytest.mark.usefixtures("no_worker_starts")
def test_short_work_starts_no_workers(tmp_path: Path) -> None:
    for name, workers in (("none", 0), ("default", None)):
        generate_blockmoving(str(tmp_path / name), num_tasks=9, level=1, num_workers=workers)
    assert folder_bytes(tmp_path / "default") == folder_bytes(tmp_path / "none")


@pytest.mark.slow
def test_fractions(tmp_path: Path) -> None:
    report = generate_blockmoving(
        str(tmp_path), num_tasks=200, wrong_fraction=0.3, view_px=48, num_workers=2
    )
    assert 40 <= report.num_wrong <= 80
    assert report.num_images == 800 == len(list(tmp_path.rglob("*.png")))
    records = json.loads(Path(report.source_file).read_text())
    assert [r["task_id"] for r in records] == list(range(200))
    assert sum(r["pred"] != r["gt"] for r in records) == report.num_wrong


@pytest.mark.slow
def test_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed, count, workers in (("a", 5, 6, 0), ("b", 5, 9, 2), ("c", 6, 6, 0)):
        generate_blockmoving(
            str(tmp_path / name), num_tasks=count, seed=seed, view_px=48, num_workers=workers
        )
    a, b, c = (folder_bytes(tmp_path / name) for name in "abc")
    a.pop("enhanced_cot_cleaned.json")
    assert a == {name: b[name] for name in a}
    assert a["task_0/composite.png"] != c["task_0/composite.png"]


def test_pictures_show_both_stacks() -> None:
    initial = Stack.empty(3).with_column(0, 0, (0,)).with_column(2, 1, (1, 2))
    final = Stack.empty(3).with_column(1, 1, (2, 0, 1))
    composite = np.asarray(draw_composite(initial, final, view_px=96))
    assert composite.shape == (192, 288, 3)
    assert (composite[:96] == np.asarray(draw_state(initial, view_px=96))).all()
    assert (composite[96:] == np.asarray(draw_state(final, view_px=96))).all()
    for name in ("red", "green"):  # blue is below green: its top is hidden
        faces = (composite[:96] == COLOURS[name]).all(axis=-1)
        assert faces.sum() > 20, f"{name} can't be seen"


def test_view_from_above_has_x_to_the_right_and_y_up() -> None:
    picture = np.asarray(draw_state(Stack.empty(2).with_column(1, 0, (0,)), view_px=80))
    above = (picture[:, 160:] == COLOURS["red"]).all(axis=-1)
    rows, columns = np.nonzero(above)
    assert columns.mean() > 40 < rows.mean()


def test_hidden_blocks_are_noticed() -> None:
    full = Stack.empty(3)
    for x in range(3):
        for y in range(3):
            full = full.with_column(x, y, (9, 9))
    assert all_visible(full)
    assert not all_visible(full.with_column(1, 1, (0, 9)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_tasks": 0},
        {"size": 1},
        {"min_blocks": 9, "max_blocks": 8},
        {"max_blocks": 50},
        {"num_moves": 0},
        {"wrong_fraction": 1.5},
        {"view_px": 1},
        {"seed": -1},
        {"num_workers": -1},
        {"size": 2, "min_blocks": 2, "max_blocks": 2, "num_moves": 12, "num_tasks": 3},
    ],
)
def test_bad_settings(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--"):
        generate_blockmoving(str(tmp_path), **{"num_workers": 0, **options})
    assert not (tmp_path / "enhanced_cot_cleaned.json").exists()


def test_pictures_are_what_the_viewer_expects(puzzles: Path) -> None:
    with Image.open(puzzles / "task_0" / "composite.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (192, 128))
